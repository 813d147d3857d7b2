// Panels: DOM widgets at the end of a node, in both renderers. Nothing in them has to be saved.
import { chain } from '../graph/node.js'
import { app, isVueNodes } from '../host/front_end.js'
import { capturesWheel, el } from '../ui/dom.js'

/** @import { GraphNode, PanelNode } from '../host/types' */

const MARGIN = 6

/**
 * @typedef {object} Panel
 * @property {HTMLElement} content where the panel's elements go
 * @property {(visible: boolean) => void} show
 * @property {() => boolean} shown
 * @property {(act: () => void) => void} whenShown `act` is called whenever the panel appears again, while its node's size
 *   is settled again
 */

/**
 * @param {GraphNode} node
 * @param {string} name
 * @param {{height?: number, width?: number, fill?: boolean, shown?: boolean, label?: string}} [options] `height` is
 *   what the usual content needs, and the panel grows when there is more; with `fill` it grows with its node. A new node
 *   is at least as wide as `width`.
 * @returns {Panel}
 */
export function addPanel(node, name, { height = 60, width = 0, fill = false, shown = true, label } = {}) {
  const content = el('div', { class: 'seamless-content' })
  const root = el('div', { class: 'seamless-panel', role: 'group', 'aria-label': label }, content)
  root.classList.toggle('seamless-fill', fill)
  if (fill) root.style.minHeight = `${height}px`
  let measured = height
  const needed = () => (widget.hidden ? 0 : measured + 2 * MARGIN) // hidden widgets too are given room
  const widget = /** @type {PanelNode} */ (node).addDOMWidget(name, 'seamless_panel', root, {
    serialize: false,
    margin: MARGIN,
    getValue: () => '',
    setValue: () => {},
    getMinHeight: needed,
    getMaxHeight: fill ? undefined : needed
  })
  widget.serialize = false
  widget.hidden = widget.options.hidden = !shown
  root.classList.toggle('seamless-hidden', !shown)
  // At once, and not when it is first drawn: by then the host has noted the new node as a step to undo.
  const least = isVueNodes() ? 0 : node.computeSize()[1] // Nodes 2.0 lays out by itself
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], least)])

  let grown = 0 // by how much the panel has changed the height of its node since
  /**
   * Change what the panel needs, and the node's height with it: one that had no more than it needed stays as tight.
   * @param {() => void} change
   */
  const refit = (change) => {
    const before = node.computeSize()[1]
    change()
    if (isVueNodes()) return
    const least = node.computeSize()[1]
    const height = node.size[1]
    if (height <= before + 1 || height < least) {
      node.setSize([node.size[0], least])
      grown += node.size[1] - height
    }
    node.setDirtyCanvas(true, true)
  }
  // Nor is it saved: what an answer or a run does to the height is not a step to undo: undoing it would change nothing else.
  chain(node, 'onSerialize', (saved) => (saved.size = [saved.size[0], saved.size[1] - grown]))
  chain(node, 'onConfigure', () => grown && node.setSize([node.size[0], node.size[1] + grown]))

  const observer = new ResizeObserver(() => {
    // Never smaller again: a node whose size changes with every answer is restless.
    if (fill || content.offsetHeight <= measured) return
    const placed = Math.abs(root.offsetWidth - (node.size[0] - 2 * MARGIN)) < 2 // narrower while it is put in place
    if (placed) refit(() => (measured = content.offsetHeight))
    else node.setDirtyCanvas(true, true) // a node that was resized and not drawn: drawing puts the panel in place
  })
  observer.observe(content)
  chain(node, 'onRemoved', () => observer.disconnect())
  root.addEventListener('wheel', zoomGraph, { passive: false })

  /** @type {(() => void)[]} */
  const appearing = []
  /** @param {boolean} visible */
  const show = (visible) => {
    if (widget.hidden === !visible) return
    refit(() => {
      widget.hidden = widget.options.hidden = !visible
      if (visible) for (const act of appearing) act()
    })
    root.classList.toggle('seamless-hidden', !visible)
  }
  return { content, show, shown: () => !widget.hidden, whenShown: (act) => appearing.push(act) }
}

/**
 * The wheel over a panel zooms the graph, as it does over the rest of a node.
 * @param {WheelEvent} event
 */
function zoomGraph(event) {
  if (event.defaultPrevented || capturesWheel(event) || isVueNodes()) return
  app.canvas.processMouseWheel(event)
}
