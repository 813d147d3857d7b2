// What can be done from menus and commands: replace VAE nodes, all of a graph's or the chosen ones.
import { app, toast } from './lib/host.js'
import { replaceNodes, TO_CORE, TO_SEAMLESS } from './lib/replace.js'
import { t } from './lib/text.js'

/**
 * @typedef {import('./lib/host.js').LGraphNode} LGraphNode
 * @typedef {import('./lib/replace.js').Target} Target
 */

const DIRECTIONS = [
  { table: TO_SEAMLESS, all: 'toSeamless', one: 'thisToSeamless', id: 'SeamlessVAE.ToSeamless' },
  { table: TO_CORE, all: 'toCore', one: 'thisToCore', id: 'SeamlessVAE.ToCore' }
]

/**
 * @param {LGraphNode[]} nodes
 * @param {Record<string, Target>} table
 */
function replace(nodes, table) {
  const { replaced, left, dropped } = replaceNodes(nodes, table)
  const details = [
    left.length ? t('notReplaced', { reasons: left.join(', ') }) : '',
    dropped.length ? t('dropped', { settings: dropped.join(', ') }) : ''
  ].filter(Boolean)
  const summary = replaced || left.length ? t('replaced', { count: replaced }) : t('nothingToReplace')
  toast(details.length ? 'warn' : replaced ? 'success' : 'info', summary, details.join('\n') || undefined)
}

/** The nodes that are chosen, or else all of the graph in view. */
function nodesInView() {
  const chosen = Object.values(app.canvas.selected_nodes ?? {})
  return /** @type {LGraphNode[]} */ (chosen.length ? chosen : [...(app.canvas.graph?.nodes ?? [])])
}

export const commands = DIRECTIONS.map(({ id, table, all }) => ({
  id,
  icon: 'pi pi-sync',
  label: () => t(all),
  function: () => replace(nodesInView(), table)
}))

/** For the menu of the empty canvas. */
export function canvasItems() {
  return DIRECTIONS.filter(({ table }) => nodesInView().some((node) => table[String(node.type)])).map(
    ({ table, all }) => ({ content: t(all), callback: () => replace(nodesInView(), table) })
  )
}

/**
 * For the menu of a node.
 * @param {LGraphNode} node
 */
export function nodeItems(node) {
  return DIRECTIONS.filter(({ table }) => table[String(node.type)]).map(({ table, one }) => ({
    content: t(one),
    callback: () => replace([node], table)
  }))
}

/** Front ends that do not ask extensions for their items take them in the older ways. */
export function addToOldMenus() {
  if (typeof (/** @type {any} */ (app).collectCanvasMenuItems) === 'function') return
  const { LGraphCanvas } = /** @type {any} */ (window)
  const canvasOptions = LGraphCanvas.prototype.getCanvasMenuOptions
  LGraphCanvas.prototype.getCanvasMenuOptions = function (/** @type {any[]} */ ...args) {
    const items = canvasItems()
    return [...canvasOptions.apply(this, args), ...(items.length ? [null, ...items] : [])]
  }
  const nodeOptions = LGraphCanvas.prototype.getNodeMenuOptions
  LGraphCanvas.prototype.getNodeMenuOptions = function (/** @type {LGraphNode} */ node) {
    const items = nodeItems(node)
    return [...nodeOptions.call(this, node), ...(items.length ? [null, ...items] : [])]
  }
}
