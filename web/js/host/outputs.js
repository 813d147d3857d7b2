// What a node has given out: shown when it arrives, and again where a graph is opened whose outputs are still known.
import { chain } from '../graph/node.js'
import { outputsOf } from './front_end.js'

/** @import { GraphNode, NodeOutput, PanelNode } from './types' */

/**
 * @param {GraphNode} node
 * @param {(output: NodeOutput) => void} show
 */
export function onOutput(node, show) {
  chain(node, 'onExecuted', (output) => output && show(output))
  const again = () => {
    const known = outputsOf(node)
    if (known) show(known)
  }
  chain(node, 'onConfigure', () => setTimeout(again)) // its id is known by then
}

// What the canvas calls the widget with a node's images.
const HOST_PREVIEW = '$$canvas-image-preview'

/**
 * The host shows the images of every node by itself; a node does without while its panel shows them.
 * @param {GraphNode} node
 * @param {{shown: () => boolean, whenShown: (act: () => void) => void}} panel
 */
export function keepImagesInPanel(node, panel) {
  const own = /** @type {PanelNode} */ (node)
  const usual = own.onDrawBackground
  own.onDrawBackground = function (...drawing) {
    if (!panel.shown()) usual?.apply(this, drawing)
  }
  Object.defineProperty(own, 'hideOutputImages', { configurable: true, get: panel.shown })
  panel.whenShown(() => {
    own.imgs = own.images = undefined // so that the host loads them again when it shows them next
    const index = own.widgets.findIndex((widget) => widget.name === HOST_PREVIEW)
    if (index < 0) return
    own.widgets[index].onRemove?.()
    own.widgets.splice(index, 1)
  })
}
