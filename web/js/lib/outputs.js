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

// What the canvas calls the widget with a node's pictures.
const HOST_PREVIEW = '$$canvas-image-preview'

/**
 * The host shows the pictures of every node by itself; a node does without while its panel shows them.
 * @param {LGraphNode} node
 * @param {import('./panel.js').Panel} panel
 */
export function keepPicturesInPanel(node, panel) {
  const own = /** @type {any} */ (node)
  const usual = own.onDrawBackground
  own.onDrawBackground = function (/** @type {any[]} */ ...args) {
    if (!panel.shown()) usual?.apply(this, args)
  }
  Object.defineProperty(own, 'hideOutputImages', { configurable: true, get: panel.shown })
  panel.whenShown(() => {
    own.imgs = own.images = undefined // so that the host loads them again when it shows them next
    const index = own.widgets.findIndex((/** @type {any} */ widget) => widget.name === HOST_PREVIEW)
    if (index < 0) return
    own.widgets[index].onRemove?.()
    own.widgets.splice(index, 1)
  })
}
