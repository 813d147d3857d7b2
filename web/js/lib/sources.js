// Where what is on an input comes from: links are followed, through reroutes, bypassed nodes and edges of subgraphs.
import { app, widgetOf } from './host.js'

/**
 * @typedef {import('./host.js').LGraphNode} LGraphNode
 * @typedef {{node: LGraphNode, slot: number}} Source
 */

const MUTED = 2
const BYPASSED = 4
const DEPTH = 50 // links to follow at most

/**
 * The node that makes what is on an input.
 * @param {LGraphNode} node
 * @param {string} input
 * @param {number} [depth]
 * @returns {Source | null}
 */
export function sourceOf(node, input, depth = 0) {
  const index = indexOf(node, input)
  return index < 0 ? null : sourceOfSlot(node, index, depth)
}

/**
 * What a run will find in a widget: its own value, or that of the node which a link brings it from; undefined if only
 * the run tells.
 * @param {LGraphNode} node
 * @param {string} name
 * @param {number} [depth]
 * @returns {unknown}
 */
export function valueOf(node, name, depth = 0) {
  const link = linkOf(node, indexOf(node, name))
  if (!link) return widgetOf(node, name)?.value
  const edge = outsideOf(node, link)
  if (edge) return depth > DEPTH ? undefined : valueOf(edge.node, String(edge.node.inputs[edge.slot]?.name), depth + 1)
  const source = sourceOf(node, name)?.node
  if (!source) return undefined
  if (String(source.type) === 'PrimitiveNode') return widgetOf(node, name)?.value // it keeps the two alike
  return valueOf(source, 'value', depth + 1)
}

/**
 * @param {LGraphNode} node
 * @param {string} input
 */
function indexOf(node, input) {
  return node.inputs?.findIndex((slot) => slot.name === input) ?? -1
}

/**
 * @param {LGraphNode} node
 * @param {number} index
 */
function linkOf(node, index) {
  const id = node.inputs?.[index]?.link ?? null
  return id === null ? null : (node.graph?.getLink?.(id) ?? node.graph?.links?.get?.(id) ?? null)
}

/**
 * @param {LGraphNode} node
 * @param {number} index
 * @param {number} depth
 * @returns {Source | null}
 */
function sourceOfSlot(node, index, depth) {
  const link = linkOf(node, index)
  if (!link || depth > DEPTH) return null
  const edge = outsideOf(node, link)
  if (edge) return sourceOfSlot(edge.node, edge.slot, depth + 1)
  // The node of a subgraph takes `getInputNode` for a question about what is in it.
  const own = !(/** @type {any} */ (node).subgraph)
  const source = own ? node.getInputNode?.(index) : node.graph?.getNodeById(link.origin_id)
  return source ? madeBy(source, link.origin_slot, depth) : null
}

/**
 * @param {LGraphNode} source
 * @param {number} slot
 * @param {number} depth
 * @returns {Source | null}
 */
function madeBy(source, slot, depth) {
  if (source.mode === MUTED || depth > DEPTH) return null
  const isReroute = source.type === 'Reroute'
  if (isReroute || source.mode === BYPASSED) {
    const type = source.outputs?.[slot]?.type
    const through = isReroute ? 0 : (source.inputs?.findIndex((each) => each.type === type) ?? -1)
    return through < 0 ? null : sourceOfSlot(source, through, depth + 1)
  }
  const { subgraph } = /** @type {any} */ (source)
  if (!subgraph) return { node: source, slot }
  const link = subgraph.getLink?.(subgraph.outputNode?.slots[slot]?.linkIds[0])
  if (isFromEdge(subgraph, link)) return sourceOfSlot(source, link.origin_slot, depth + 1)
  const inner = link && subgraph.getNodeById(link.origin_id)
  return inner ? madeBy(inner, link.origin_slot, depth + 1) : null
}

/**
 * Whether a link comes from where a subgraph's inputs do, and not from a node.
 * @param {any} graph
 * @param {{origin_id: unknown} | null | undefined} link
 */
function isFromEdge(graph, link) {
  return link && graph?.inputNode ? String(link.origin_id) === String(graph.inputNode.id) : false
}

/**
 * The input of the node of a subgraph that a link from the subgraph's edge goes on from; null for other links, and where
 * several nodes are of this subgraph.
 * @param {LGraphNode} node in the subgraph
 * @param {{origin_id: unknown, origin_slot: number}} link
 * @returns {Source | null}
 */
function outsideOf(node, link) {
  if (!isFromEdge(node.graph, link)) return null
  /** @type {any} */
  const root = app.rootGraph ?? app.graph
  const nodes = [root, ...(root?.subgraphs?.values() ?? [])].flatMap((graph) => graph?.nodes ?? [])
  const uses = nodes.filter((each) => each.subgraph === node.graph)
  return uses.length === 1 ? { node: uses[0], slot: link.origin_slot } : null
}
