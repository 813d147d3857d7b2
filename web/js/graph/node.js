// A node's widgets and callbacks.

/** @import { Callbacks, GraphNode, Widget } from '../host/types' */

/**
 * Call `after` whenever the node's own callback of this name runs, with its arguments; what was there runs first and
 * decides what is returned.
 * @template {keyof Callbacks} K
 * @param {Callbacks} node
 * @param {K} name
 * @param {(...args: Parameters<NonNullable<Callbacks[K]>>) => void} after
 */
export function chain(node, name, after) {
  const callbacks = /** @type {Record<string, Function | undefined>} */ (/** @type {unknown} */ (node))
  const before = callbacks[name]
  callbacks[name] = function (/** @type {Parameters<NonNullable<Callbacks[K]>>} */ ...args) {
    const result = before?.apply(this, args)
    after.apply(this, args)
    return result
  }
}

/**
 * @param {GraphNode} node
 * @param {string} name
 * @returns {Widget | undefined}
 */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)
}
