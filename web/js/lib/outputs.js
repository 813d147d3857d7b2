// What a node has given out: shown when it arrives, and again where a graph is opened whose outputs are still known.
import { api, chain, outputsOf } from './host.js'

/**
 * @typedef {import('./host.js').LGraphNode} LGraphNode
 * @typedef {{filename: string, subfolder: string, type: string}} File
 * @typedef {{images?: File[], text?: string[]}} Output
 */

/**
 * @param {LGraphNode} node
 * @param {(output: Output) => void} show
 */
export function onOutput(node, show) {
  chain(node, 'onExecuted', (output) => output && show(output))
  const again = () => {
    const known = outputsOf(node)
    if (known) show(known)
  }
  chain(node, 'onConfigure', () => setTimeout(again)) // its id is known by then
}

/** @param {File} file */
export function addressOf({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/**
 * The host shows the pictures of every node by itself; a node whose panel shows them does without.
 * @param {LGraphNode} node
 * @param {() => boolean} inPanel
 */
export function keepPicturesInPanel(node, inPanel) {
  const own = /** @type {any} */ (node)
  const usual = own.onDrawBackground
  own.onDrawBackground = function (/** @type {any[]} */ ...args) {
    if (!inPanel()) usual?.apply(this, args)
  }
  Object.defineProperty(own, 'hideOutputImages', { configurable: true, get: inPanel })
}
