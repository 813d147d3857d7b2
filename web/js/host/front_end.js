// The only module that imports from the host's front end, and what it is asked for in one call.
import { api as hostApi } from '../../../../scripts/api.js'
import { app as hostApp } from '../../../../scripts/app.js'

/** @import { Api, App, CanvasClass, Graph, GraphNode, Id, LiteGraph, NodeOutput, Toast } from './types' */

/** @type {App} */
export const app = hostApp
/** @type {Api} */
export const api = hostApi

/** The page's globals of the front end. */
function globals() {
  return /** @type {{LiteGraph?: LiteGraph, LGraphCanvas?: CanvasClass}} */ (/** @type {unknown} */ (window))
}

/**
 * A new node that is in no graph yet; null if there is no such type.
 * @param {string} type
 */
export function createNode(type) {
  return globals().LiteGraph?.createNode(type) ?? null
}

/** The class of the canvas. */
export function canvasClass() {
  return globals().LGraphCanvas
}

/** Whether Nodes 2.0 draws the nodes. */
export function isVueNodes() {
  return Boolean(globals().LiteGraph?.vueNodesMode)
}

/**
 * The node of an id as the back end writes it: `5`, or `3:5` for node 5 in subgraph node 3.
 * @param {Id} id
 * @returns {GraphNode | null}
 */
export function findNode(id) {
  const parts = String(id).split(':')
  /** @type {Graph | null | undefined} */
  let graph = app.rootGraph ?? app.graph
  for (const part of parts.slice(0, -1)) {
    graph = graph?.getNodeById(part)?.subgraph ?? graph?.getNodeById(Number(part))?.subgraph
  }
  const last = /** @type {string} */ (parts.at(-1))
  return graph?.getNodeById(last) ?? graph?.getNodeById(Number(last)) ?? null
}

/**
 * What a node gave out in its last run. That of a node in a subgraph is kept under the subgraph's id and its own.
 * @param {GraphNode} node
 * @returns {NodeOutput | undefined}
 */
export function outputsOf(node) {
  const graph = node.graph
  const key = graph?.isRootGraph === false ? `${graph.id}:${node.id}` : String(node.id)
  return /** @type {NodeOutput | undefined} */ ((app.nodeOutputs ?? {})[key])
}

/**
 * @param {Toast['severity']} severity
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
 * The value of a setting; `fallback` where it has none.
 * @template T
 * @param {string} id
 * @param {T} fallback
 * @returns {T}
 */
export function setting(id, fallback) {
  return /** @type {T | null | undefined} */ (app.extensionManager?.setting?.get(id)) ?? fallback
}
