// The only module that imports from the host's front end.
import { app } from '../../../../scripts/app.js'
import { api } from '../../../../scripts/api.js'

export { api, app }

/**
 * @typedef {NonNullable<ReturnType<import('@comfyorg/comfyui-frontend-types').ComfyApp['graph']['getNodeById']>>} LGraphNode
 * @typedef {NonNullable<LGraphNode['widgets']>[number]} Widget
 */

/**
 * Call `after` whenever the node's own callback of this name runs, with its arguments; what was there runs first and
 * decides what is returned.
 * @param {any} target
 * @param {string} name
 * @param {(...args: any[]) => void} after
 */
export function chain(target, name, after) {
  const before = target[name]
  target[name] = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args)
    after.apply(this, args)
    return result
  }
}

/**
 * @param {LGraphNode} node
 * @param {string} name
 * @returns {Widget | undefined}
 */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)
}

/**
 * The node of an id as the back end says it: `5`, or `3:5` for node 5 in subgraph node 3.
 * @param {string | number} id
 * @returns {LGraphNode | null}
 */
export function findNode(id) {
  /** @type {any} */
  let graph = app.rootGraph ?? app.graph
  const parts = String(id).split(':')
  for (const part of parts.slice(0, -1)) {
    graph = graph?.getNodeById(part)?.subgraph ?? graph?.getNodeById(Number(part))?.subgraph
  }
  const last = /** @type {string} */ (parts.at(-1))
  return graph?.getNodeById(last) ?? graph?.getNodeById(Number(last)) ?? null
}

/**
 * What a node gave out in its last run. That of a node in a subgraph is kept under the subgraph's id and its own.
 * @param {LGraphNode} node
 */
export function outputsOf(node) {
  const graph = /** @type {any} */ (node.graph)
  const key = graph?.isRootGraph === false ? `${graph.id}:${node.id}` : String(node.id)
  return /** @type {Record<string, any>} */ (app.nodeOutputs ?? {})[key]
}

/**
 * @param {'info' | 'success' | 'warn' | 'error'} severity
 * @param {string} summary
 * @param {string} [detail]
 */
export function toast(severity, summary, detail) {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: 6000 })
}

/** @type {Set<string>} */
const said = new Set()

/**
 * Say something once.
 * @param {string} key
 * @param {string} summary
 * @param {string} [detail]
 */
export function toastOnce(key, summary, detail) {
  if (said.has(key)) return
  said.add(key)
  toast('warn', summary, detail)
}

/**
 * @template T
 * @param {string} id
 * @param {T} fallback
 * @returns {T}
 */
export function setting(id, fallback) {
  const value = /** @type {any} */ (app.extensionManager?.setting)?.get(id)
  return value === undefined || value === null ? fallback : value
}
