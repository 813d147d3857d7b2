// Where what is on an input comes from: links are followed, through reroutes, bypassed nodes and edges of subgraphs.
import { widgetOf } from './node.js'

/**
 * @import { Graph, GraphNode, Link } from '../host/types'
 * @typedef {{node: GraphNode, slot: number}} Source
 */

const MUTED = 2
const BYPASSED = 4
const DEPTH = 50 // links to follow at most

/**
 * The node that makes what is on an input.
 * @param {GraphNode} node
 * @param {string} input
 * @param {number} [depth]
 * @returns {Source | null}
 */
export function sourceOf(node, input, depth = 0) {
  const index = indexOf(node, input)
  return index < 0 ? null : sourceOfSlot(node, index, depth)
}

/**
 * What a run will find in a widget: its own value, or that of the node which a link brings it from; undefined if it
 * is not known before the run.
 * @param {GraphNode} node
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
 * @param {GraphNode} node
 * @param {string} input
 */
function indexOf(node, input) {
  return node.inputs?.findIndex((slot) => slot.name === input) ?? -1
}

/**
 * @param {GraphNode} node
 * @param {number} index
 */
function linkOf(node, index) {
  const id = node.inputs?.[index]?.link ?? null
  return id === null ? null : (node.graph?.getLink(id) ?? null)
}

/**
 * @param {GraphNode} node
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
  const source = node.subgraph ? node.graph?.getNodeById(link.origin_id) : node.getInputNode(index)
  return source ? madeBy(source, link.origin_slot, depth) : null
}

/**
 * @param {GraphNode} source
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
  const { subgraph } = source
  if (!subgraph) return { node: source, slot }
  const link = subgraph.getLink(subgraph.outputNode.slots[slot]?.linkIds[0])
  if (link && isFromEdge(subgraph, link)) return sourceOfSlot(source, link.origin_slot, depth + 1)
  const inner = link && subgraph.getNodeById(link.origin_id)
  return inner ? madeBy(inner, link.origin_slot, depth + 1) : null
}

/**
 * Whether a link comes from where a subgraph's inputs do, and not from a node.
 * @param {Graph | null} graph
 * @param {Link} link
 */
function isFromEdge(graph, link) {
  return graph?.inputNode ? String(link.origin_id) === String(graph.inputNode.id) : false
}

/**
 * The input of the node of a subgraph that a link from the subgraph's edge goes on from; null for other links, and where
 * several nodes show this subgraph.
 * @param {GraphNode} node in the subgraph
 * @param {Link} link
 * @returns {Source | null}
 */
function outsideOf(node, link) {
  if (!isFromEdge(node.graph, link)) return null
  const root = /** @type {Graph} */ (node.graph).rootGraph
  const nodes = [root, ...root.subgraphs.values()].flatMap((graph) => graph.nodes)
  const uses = nodes.filter((each) => each.subgraph === node.graph)
  return uses.length === 1 ? { node: uses[0], slot: link.origin_slot } : null
}
