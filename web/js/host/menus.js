// Items in the menus of the canvas and of nodes, for front ends that do not ask extensions for theirs.
import { app, canvasClass } from './front_end.js'

/** @import { GraphNode, MenuItem } from './types' */

/**
 * @param {() => MenuItem[]} canvasItems
 * @param {(node: GraphNode) => MenuItem[]} nodeItems
 */
export function addToOldMenus(canvasItems, nodeItems) {
  const menus = canvasClass()?.prototype
  if ('collectCanvasMenuItems' in app || !menus) return
  /** @param {(MenuItem | null)[]} usual @param {MenuItem[]} own */
  const extended = (usual, own) => (own.length ? [...usual, null, ...own] : usual)
  const { getCanvasMenuOptions, getNodeMenuOptions } = menus
  menus.getCanvasMenuOptions = function () {
    return extended(getCanvasMenuOptions.call(this), canvasItems())
  }
  menus.getNodeMenuOptions = function (node) {
    return extended(getNodeMenuOptions.call(this, node), nodeItems(node))
  }
}
