// Small graphs of the shape that the front end's have.

let last = 0

/**
 * @typedef {import('../../../web/js/host/types').GraphNode} GraphNode
 * @typedef {import('../../../web/js/host/types').Graph} Graph
 */

/**
 * A node of a type with widgets, inputs and outputs.
 * @param {string} type
 * @param {{values?: Record<string, unknown>, inputs?: Record<string, string>, outputs?: string[], options?: Record<string, object>}} parts
 *   widgets by name, inputs by name with their types, the types of outputs, options of widgets by name
 */
export function nodeOf(type, { values = {}, inputs = {}, outputs = [], options = {} } = {}) {
  const node = {
    id: (last += 1),
    type,
    title: type,
    mode: 0,
    pos: [0, 0],
    size: [200, 100],
    flags: {},
    graph: null,
    widgets: Object.entries(values).map(([name, value]) => ({ name, value, options: options[name] ?? {} })),
    inputs: Object.entries(inputs).map(([name, kind]) => ({ name, type: kind, link: null })),
    outputs: outputs.map((kind) => ({ name: kind.toLowerCase(), type: kind, links: [] })),
    getInputLink: (slot) => node.graph.getLink(node.inputs[slot].link) ?? null,
    getInputNode: (slot) => node.graph.getNodeById(node.getInputLink(slot)?.origin_id),
    connect(slot, target, targetSlot, parentId) {
      const link = { id: (last += 1), origin_id: node.id, origin_slot: slot, target_id: target.id, target_slot: targetSlot }
      node.graph.links.set(link.id, parentId === undefined ? link : { ...link, parentId })
      node.outputs[slot].links.push(link.id)
      target.inputs[targetSlot].link = link.id
    }
  }
  return node
}

/**
 * A graph of nodes, and of the graphs of its subgraph nodes.
 * @param {...object} nodes
 */
export function graphOf(...nodes) {
  const graph = { id: `graph ${(last += 1)}`, nodes, links: new Map(), subgraphs: new Map(), isRootGraph: true }
  graph.rootGraph = graph
  graph.getNodeById = (id) => nodes.find((node) => String(node.id) === String(id)) ?? null
  graph.getLink = (id) => graph.links.get(id)
  graph.add = (node) => {
    node.graph = graph
    nodes.push(node)
    node.onAdded?.(graph)
  }
  graph.remove = (node) => {
    nodes.splice(nodes.indexOf(node), 1)
    for (const [id, link] of graph.links) if ([link.origin_id, link.target_id].includes(node.id)) graph.links.delete(id)
    node.onRemoved?.()
    node.graph = null
  }
  for (const node of nodes) {
    node.graph = graph
    if (node.subgraph) {
      graph.subgraphs.set(node.subgraph.id, node.subgraph)
      Object.assign(node.subgraph, { rootGraph: graph, isRootGraph: false })
    }
  }
  return graph
}

/**
 * Link an output to the input of a name.
 * @param {object} from
 * @param {number} slot
 * @param {object} to
 * @param {string} input
 */
export function link(from, slot, to, input) {
  from.connect(
    slot,
    to,
    to.inputs.findIndex((each) => each.name === input)
  )
}

/**
 * The graph of a subgraph node: its edges, at which links begin and end.
 * @param {object[]} nodes
 * @param {{from?: [object, string][], to?: [object, number][]}} edges by slot: the input that the edge of inputs leads to,
 *   and the output that leads to the edge of outputs
 */
export function subgraphOf(nodes, { from = [], to = [] }) {
  const graph = graphOf(...nodes)
  graph.inputNode = { id: -10, slots: [] }
  graph.outputNode = { id: -20, slots: [] }
  for (const [slot, [node, name]] of from.entries()) {
    const target_slot = node.inputs.findIndex((each) => each.name === name)
    const edge = { id: (last += 1), origin_id: -10, origin_slot: slot, target_id: node.id, target_slot }
    graph.links.set(edge.id, edge)
    node.inputs[target_slot].link = edge.id
  }
  for (const [slot, [node, origin_slot]] of to.entries()) {
    const edge = { id: (last += 1), origin_id: node.id, origin_slot, target_id: -20, target_slot: slot }
    graph.links.set(edge.id, edge)
    graph.outputNode.slots[slot] = { linkIds: [edge.id] }
  }
  return graph
}
