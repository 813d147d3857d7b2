// Core VAE nodes become Seamless ones, and back: links, values, place and looks are kept.
import { app, widgetOf } from './host.js'
import { t } from './text.js'

/**
 * @typedef {import('./host.js').LGraphNode} LGraphNode
 * @typedef {{to: string, values?: Record<string, unknown>}} Target `values` are set where the old node has none
 * @typedef {{replaced: number, left: string[], dropped: string[]}} Outcome
 */

/** Only nodes that do the same: core's VAEEncodeForInpaint paints the masked part grey, which ours does not. */
/** @type {Record<string, Target>} */
export const TO_SEAMLESS = {
  VAELoader: { to: 'SeamlessVAELoad' },
  VAEEncode: { to: 'SeamlessVAEEncode' },
  VAEDecode: { to: 'SeamlessVAEDecode' },
  VAEEncodeTiled: { to: 'SeamlessVAEEncodeTiled' },
  VAEDecodeTiled: { to: 'SeamlessVAEDecodeTiled' },
  VAESave: { to: 'SeamlessVAESave', values: { format: 'single_file' } }
}

/** @type {Record<string, Target>} */
export const TO_CORE = Object.fromEntries(Object.entries(TO_SEAMLESS).map(([core, { to }]) => [to, { to: core }]))

/** Widgets that say nothing about a node's result where their node is at its defaults. */
const ASIDE = new Set(['control_after_generate', 'control after generate'])

/**
 * Replace nodes of the graph in view, as one step to be undone.
 * @param {LGraphNode[]} nodes those of other types are passed over
 * @param {Record<string, Target>} table
 * @returns {Outcome}
 */
export function replaceNodes(nodes, table) {
  /** @type {Outcome} */
  const outcome = { replaced: 0, left: [], dropped: [] }
  const canvas = /** @type {any} */ (app.canvas)
  canvas.emitBeforeChange()
  try {
    for (const node of nodes) {
      const target = table[String(node.type)]
      if (target) replaceNode(node, target, outcome)
    }
  } finally {
    canvas.emitAfterChange()
    canvas.setDirty(true, true)
  }
  return outcome
}

/**
 * @param {any} node
 * @param {Target} target
 * @param {Outcome} outcome
 */
function replaceNode(node, { to, values = {} }, outcome) {
  const { title, graph } = node
  const fresh = /** @type {any} */ (window).LiteGraph.createNode(to)
  const obstacle = fresh ? (valuesObstacle(node, fresh) ?? linksObstacle(node, fresh)) : t('reasonMissing', { title, type: to })
  if (obstacle) {
    outcome.left.push(obstacle)
    return
  }
  const selected = app.canvas.selectedItems?.has(node)
  fresh.pos = [node.pos[0], node.pos[1]]
  fresh.size = [Math.max(node.size[0], fresh.size[0]), fresh.size[1]]
  fresh.mode = node.mode
  Object.assign(fresh.flags, node.flags)
  for (const look of ['color', 'bgcolor', 'shape']) if (node[look] !== undefined) fresh[look] = node[look]
  if (title !== node.constructor.title && title !== node.type) fresh.title = title
  graph.add(fresh)
  copyValues(node, fresh, values, outcome)
  moveLinks(node, fresh)
  graph.remove(node)
  if (selected) app.canvas.select?.(fresh)
  outcome.replaced += 1
}

/**
 * @param {any} node
 * @param {any} fresh
 */
function valuesObstacle(node, fresh) {
  for (const widget of node.widgets ?? []) {
    const options = /** @type {any} */ (widgetOf(fresh, widget.name)?.options)?.values
    const offered = typeof options === 'function' ? options() : options
    if (Array.isArray(offered) && !offered.includes(widget.value)) {
      return t('reasonValue', { title: node.title, value: widget.value })
    }
  }
  return null
}

/**
 * @param {any} node
 * @param {any} fresh
 */
function linksObstacle(node, fresh) {
  for (const [index, input] of node.inputs?.entries() ?? []) {
    if (node.getInputLink(index) && !fresh.inputs.some((/** @type {any} */ each) => each.name === input.name)) {
      return t('reasonInput', { title: node.title, input: input.name })
    }
  }
  for (const link of linksFrom(node)) {
    const output = node.outputs[link.origin_slot]
    if (fresh.outputs[link.origin_slot]?.type !== output.type) {
      return t('reasonOutput', { title: node.title, output: output.name })
    }
  }
  return null
}

/**
 * @param {any} node
 * @returns {any[]}
 */
function linksFrom(node) {
  return [...node.graph.links.values()].filter((link) => String(link.origin_id) === String(node.id))
}

/**
 * @param {any} node
 * @param {any} fresh
 * @param {Record<string, unknown>} values
 * @param {Outcome} outcome
 */
function copyValues(node, fresh, values, outcome) {
  const usual = /** @type {any} */ (window).LiteGraph.createNode(node.type)
  for (const widget of node.widgets ?? []) {
    if (widget.serialize === false || ASIDE.has(widget.name)) continue
    const other = /** @type {any} */ (widgetOf(fresh, widget.name))
    if (!other) {
      const wasChanged = widgetOf(usual, widget.name)?.value !== widget.value
      if (wasChanged) outcome.dropped.push(`${widget.name} = ${widget.value} (${node.title})`)
      continue
    }
    let { value } = widget
    const { min, max } = other.options ?? {}
    if (typeof value === 'number' && value < min) value = value === 0 ? other.value : min // 0 is automatic
    if (typeof value === 'number' && value > max) value = max
    other.value = value
  }
  for (const [name, value] of Object.entries(values)) {
    const other = widgetOf(fresh, name)
    if (other) other.value = /** @type {any} */ (value)
  }
}

/**
 * Links with the reroutes on them, from and to the edges of a subgraph too.
 * @param {any} node
 * @param {any} fresh
 */
function moveLinks(node, fresh) {
  const { graph } = node
  for (const [index, input] of node.inputs?.entries() ?? []) {
    const link = node.getInputLink(index)
    if (!link) continue
    const slot = fresh.inputs.findIndex((/** @type {any} */ each) => each.name === input.name)
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
