// Core VAE nodes become Seamless ones, and back: links, values, place and looks are kept.
import { widgetOf } from './node.js'

/**
 * @import { Canvas, GraphNode, Link } from '../host/types'
 * @typedef {{to: string, values?: Record<string, unknown>}} Target `values` are set where the old node has none
 * @typedef {'reasonMissing' | 'reasonValue' | 'reasonInput' | 'reasonOutput'} ReasonKey
 * @typedef {{key: ReasonKey, values: Record<string, string>}} Reason why a node stays, as a text and what is put into it
 * @typedef {{replaced: number, left: Reason[], dropped: string[]}} Outcome
 * @typedef {(type: string) => GraphNode | null} Create
 */

/** Widgets that say nothing about a node's result where their node is at its defaults. */
const ASIDE = new Set(['control_after_generate', 'control after generate'])

/**
 * Replace nodes of the graph in view, as one step to be undone.
 * @param {Canvas} canvas
 * @param {GraphNode[]} nodes those of other types are passed over
 * @param {Record<string, Target>} table
 * @param {Create} create
 * @returns {Outcome}
 */
export function replaceNodes(canvas, nodes, table, create) {
  /** @type {Outcome} */
  const outcome = { replaced: 0, left: [], dropped: [] }
  canvas.emitBeforeChange()
  try {
    for (const node of nodes) {
      const target = table[String(node.type)]
      if (target) replaceNode(canvas, node, target, create, outcome)
    }
  } finally {
    canvas.emitAfterChange()
    canvas.setDirty(true, true)
  }
  return outcome
}

/**
 * @param {Canvas} canvas
 * @param {GraphNode} node
 * @param {Target} target
 * @param {Create} create
 * @param {Outcome} outcome
 */
function replaceNode(canvas, node, { to, values = {} }, create, outcome) {
  const { title, graph } = node
  const fresh = create(to)
  if (!graph) return
  if (!fresh) return void outcome.left.push({ key: 'reasonMissing', values: { title, type: to } })
  const obstacle = valuesObstacle(node, fresh) ?? linksObstacle(node, fresh)
  if (obstacle) return void outcome.left.push(obstacle)
  const selected = canvas.selectedItems.has(node)
  fresh.pos = [node.pos[0], node.pos[1]]
  fresh.size = [Math.max(node.size[0], fresh.size[0]), fresh.size[1]]
  fresh.mode = node.mode
  Object.assign(fresh.flags, node.flags)
  if (node.color !== undefined) fresh.color = node.color
  if (node.bgcolor !== undefined) fresh.bgcolor = node.bgcolor
  if (node.shape !== undefined) fresh.shape = node.shape
  const usualTitle = /** @type {{title?: string}} */ (node.constructor).title
  if (title !== usualTitle && title !== node.type) fresh.title = title
  graph.add(fresh)
  outcome.dropped.push(...copyValues(node, fresh, values, create(node.type)))
  moveLinks(node, fresh)
  graph.remove(node)
  if (selected) canvas.select(fresh)
  outcome.replaced += 1
}

/**
 * @param {GraphNode} node
 * @param {GraphNode} fresh
 * @returns {Reason | null}
 */
function valuesObstacle(node, fresh) {
  for (const widget of node.widgets ?? []) {
    const options = widgetOf(fresh, widget.name)?.options.values
    const offered = typeof options === 'function' ? options() : options
    if (Array.isArray(offered) && !offered.includes(widget.value)) {
      return { key: 'reasonValue', values: { title: node.title, value: String(widget.value) } }
    }
  }
  return null
}

/**
 * @param {GraphNode} node
 * @param {GraphNode} fresh
 * @returns {Reason | null}
 */
function linksObstacle(node, fresh) {
  for (const [index, input] of node.inputs?.entries() ?? []) {
    if (node.getInputLink(index) && !fresh.inputs.some((each) => each.name === input.name)) {
      return { key: 'reasonInput', values: { title: node.title, input: input.name } }
    }
  }
  for (const link of linksFrom(node)) {
    const output = node.outputs[link.origin_slot]
    if (fresh.outputs[link.origin_slot]?.type !== output.type) {
      return { key: 'reasonOutput', values: { title: node.title, output: output.name } }
    }
  }
  return null
}

/**
 * @param {GraphNode} node
 * @returns {Link[]}
 */
function linksFrom(node) {
  return [...(node.graph?.links.values() ?? [])].filter((link) => String(link.origin_id) === String(node.id))
}

/**
 * Give a new node the values of the old one.
 * @param {GraphNode} node
 * @param {GraphNode} fresh
 * @param {Record<string, unknown>} values set beside them
 * @param {GraphNode | null} usual another node of the old one's type, at its defaults
 * @returns {string[]} the settings of the old node that the new one does not have, if they were changed
 */
export function copyValues(node, fresh, values, usual) {
  const dropped = []
  for (const widget of node.widgets ?? []) {
    if (widget.serialize === false || ASIDE.has(widget.name)) continue
    const other = widgetOf(fresh, widget.name)
    if (other) {
      other.value = within(widget.value, other)
      continue
    }
    const wasChanged = usual === null || widgetOf(usual, widget.name)?.value !== widget.value
    if (wasChanged) dropped.push(`${widget.name} = ${widget.value} (${node.title})`)
  }
  for (const [name, value] of Object.entries(values)) {
    const other = widgetOf(fresh, name)
    if (other) other.value = value
  }
  return dropped
}

/**
 * A value, within what a widget takes.
 * @param {unknown} value
 * @param {import('../host/types').Widget} widget
 */
function within(value, widget) {
  if (typeof value !== 'number') return value
  const { min = -Infinity, max = Infinity } = widget.options ?? {}
  if (value < min) return value === 0 ? widget.value : min // 0 is automatic
  return Math.min(value, max)
}

/**
 * Links with the reroutes on them, from and to the edges of a subgraph too.
 * @param {GraphNode} node
 * @param {GraphNode} fresh
 */
function moveLinks(node, fresh) {
  const { graph } = node
  if (!graph) return
  for (const [index, input] of node.inputs?.entries() ?? []) {
    const link = node.getInputLink(index)
    if (!link) continue
    const slot = fresh.inputs.findIndex((each) => each.name === input.name)
    const origin = graph.getNodeById(link.origin_id)
    if (origin) origin.connect(link.origin_slot, fresh, slot, link.parentId)
    else graph.inputNode?.slots[link.origin_slot]?.connect(fresh.inputs[slot], fresh, link.parentId)
  }
  for (const link of linksFrom(node)) {
    const target = graph.getNodeById(link.target_id)
    if (target) fresh.connect(link.origin_slot, target, link.target_slot, link.parentId)
    else graph.outputNode?.slots[link.target_slot]?.connect(fresh.outputs[link.origin_slot], fresh, link.parentId)
  }
}
