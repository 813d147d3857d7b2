// Panels: DOM widgets at the end of a node, in both renderers. They hold nothing that has to be saved.
import { app, chain } from './host.js'
import { el } from './dom.js'

/** @typedef {import('./host.js').LGraphNode} LGraphNode */

const MARGIN = 6

/**
 * @typedef {object} Panel
 * @property {HTMLElement} content where the panel's elements go
 * @property {(visible: boolean) => void} show
 * @property {() => boolean} shown
 */

/**
 * @param {LGraphNode} node
 * @param {string} name
 * @param {{height?: number, width?: number, fill?: boolean, shown?: boolean, label?: string}} [options] `height` is
 *   taken until the content is measured; with `fill` it is the least, and the panel grows with its node. A new node is
 *   at least as wide as `width`.
 * @returns {Panel}
 */
export function addPanel(node, name, { height = 60, width = 0, fill = false, shown = true, label } = {}) {
  const content = el('div', { class: 'seamless-content' })
  const root = el('div', { class: 'seamless-panel', role: 'group', 'aria-label': label }, content)
  root.classList.toggle('seamless-fill', fill)
  if (fill) root.style.minHeight = `${height}px`
  let measured = height
  const needed = () => (widget.hidden ? 0 : measured + 2 * MARGIN) // hidden widgets too are given room
  /** @type {any} */
  const widget = /** @type {any} */ (node).addDOMWidget(name, 'seamless_panel', root, {
    serialize: false,
    margin: MARGIN,
    getValue: () => '',
    setValue: () => {},
    getMinHeight: needed,
    getMaxHeight: fill ? undefined : needed
  })
  widget.serialize = false

  /**
   * Change what the panel needs, and the node's height with it: one that had no more than it needed stays as tight.
   * @param {() => void} change
   */
  const refit = (change) => {
    const before = node.computeSize()[1]
    change()
    if (isVueNodes()) return // which lays out by itself
    const least = node.computeSize()[1]
    if (node.size[1] <= before + 1 || node.size[1] < least) node.setSize([node.size[0], least])
    node.setDirtyCanvas(true, true)
  }

  const observer = new ResizeObserver(() => {
    if (fill || !root.isConnected || content.offsetHeight === 0 || content.offsetHeight === measured) return
    refit(() => (measured = content.offsetHeight))
  })
  observer.observe(content)
  chain(node, 'onRemoved', () => observer.disconnect())
  root.addEventListener('wheel', zoomGraph, { passive: false })

  /** @param {boolean} visible */
  const show = (visible) => {
    if (widget.hidden === !visible) return
    refit(() => (widget.hidden = widget.options.hidden = !visible))
    root.classList.toggle('seamless-hidden', !visible)
  }
  widget.hidden = false
  show(shown)
  if (node.size[0] < width) node.setSize([width, node.size[1]])
  return { content, show, shown: () => !widget.hidden }
}

/**
 * The wheel over a panel zooms the graph, as it does over the rest of a node.
 * @param {WheelEvent} event
 */
function zoomGraph(event) {
  if (event.defaultPrevented || isVueNodes()) return
  app.canvas?.processMouseWheel?.(event)
}

/** Whether Nodes 2.0 draws the nodes. */
export function isVueNodes() {
  return Boolean(/** @type {any} */ (window).LiteGraph?.vueNodesMode)
}
