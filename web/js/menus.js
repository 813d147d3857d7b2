// What can be done from menus and commands: replace VAE nodes, all of a graph's or the selected ones.
import { replaceNodes } from './graph/replace.js'
import { app, createNode, toast } from './host/front_end.js'
import { NODES } from './nodes.js'
import { t } from './ui/text.js'

/**
 * @import { Target } from './graph/replace.js'
 * @import { Command, GraphNode, MenuItem } from './host/types'
 * @typedef {Record<string, Target>} Table by the type of the node that is replaced
 */

const pairs = Object.entries(NODES).flatMap(([own, { core, values }]) => (core ? [{ own, core, values }] : []))
/** @type {Table} */
const toSeamless = Object.fromEntries(pairs.map(({ own, core, values }) => [core, { to: own, values }]))
/** @type {Table} */
const toCore = Object.fromEntries(pairs.map(({ own, core }) => [own, { to: core }]))

const DIRECTIONS = [
  { table: toSeamless, all: 'toSeamless', one: 'thisToSeamless', id: 'SeamlessVAE.ToSeamless' },
  { table: toCore, all: 'toCore', one: 'thisToCore', id: 'SeamlessVAE.ToCore' }
]

/**
 * @param {GraphNode[]} nodes
 * @param {Table} table
 */
function replace(nodes, table) {
  const { replaced, left, dropped } = replaceNodes(app.canvas, nodes, table, createNode)
  const reasons = left.map(({ key, values }) => t(key, values)).join(', ')
  const details = [
    reasons && t('notReplaced', { reasons }),
    dropped.length ? t('dropped', { settings: dropped.join(', ') }) : ''
  ].filter(Boolean)
  const summary = replaced || left.length ? t('replaced', { count: replaced }) : t('nothingToReplace')
  toast(details.length ? 'warn' : replaced ? 'success' : 'info', summary, details.join('\n') || undefined)
}

/** The nodes that are selected, or else all of the graph in view. */
function nodesInView() {
  const selected = Object.values(app.canvas.selected_nodes ?? {})
  return selected.length ? selected : [...(app.canvas.graph?.nodes ?? [])]
}

/** @type {Command[]} */
export const commands = DIRECTIONS.map(({ id, table, all }) => ({
  id,
  icon: 'pi pi-sync',
  label: () => t(all),
  function: () => replace(nodesInView(), table)
}))

/**
 * For the menu of the empty canvas.
 * @returns {MenuItem[]}
 */
export function canvasItems() {
  return DIRECTIONS.filter(({ table }) => nodesInView().some((node) => table[String(node.type)])).map(
    ({ table, all }) => ({ content: t(all), callback: () => replace(nodesInView(), table) })
  )
}

/**
 * For the menu of a node.
 * @param {GraphNode} node
 * @returns {MenuItem[]}
 */
export function nodeItems(node) {
  return DIRECTIONS.filter(({ table }) => table[String(node.type)]).map(({ table, one }) => ({
    content: t(one),
    callback: () => replace([node], table)
  }))
}
