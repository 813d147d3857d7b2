// Notices what changes a node's view of the graph: its widgets, and anything upstream of it.
//
// It polls, because no event covers all of these changes. A widget's callback runs where its own control is used, and not
// for `widget.value = ...`, undo, a linked primitive or a widget that a subgraph node shows. `onConnectionsChange` is
// called on the two nodes of a link, and not on those further down. Muting, bypassing and titles are plain properties.
// And the two renderers differ in what they announce. Looking takes tens of microseconds a node, and only while such
// a node is in a graph and the page is visible; what it finds is compared as JSON, and only a change is acted on.
import { chain } from './node.js'

/** @import { GraphNode } from '../host/types' */

export const PERIOD = 150 // milliseconds; a value has to stay for one period, so that a drag asks for its end alone

/** @type {Set<{look: () => unknown, act: (value: unknown) => void, seen: string, acted: string}>} */
const watches = new Set()
/** @type {ReturnType<typeof setInterval> | null} */
let timer = null
/** @type {(error: unknown) => void} */
let report = () => {}

/**
 * Say what is done with an error of a node of another pack, which may answer as it likes.
 * @param {(error: unknown) => void} act
 */
export function onFault(act) {
  report = act
}

function tick() {
  if (globalThis.document?.hidden) return
  for (const watch of [...watches]) {
    let value
    try {
      value = watch.look()
    } catch (error) {
      report(error) // and the other watches go on
      continue
    }
    const seen = JSON.stringify(value)
    if (seen === watch.seen && seen !== watch.acted) {
      watch.acted = seen
      watch.act(value)
    }
    watch.seen = seen
  }
}

/** Let every watch act again: what the back end answers may have changed. */
export function renew() {
  for (const watch of watches) watch.acted = ''
}

/**
 * Call `act` with what `look` returns, now, after every change of it and when the back end's answers may be out of date,
 * while the node is in a graph.
 * @template T
 * @param {GraphNode} node
 * @param {() => T} look cheap; what it returns is compared as JSON
 * @param {(value: T) => void} act
 */
export function watch(node, look, act) {
  const entry = { look, act: /** @type {(value: unknown) => void} */ (act), seen: '', acted: '' }
  const start = () => {
    watches.add(entry)
    timer ??= setInterval(tick, PERIOD)
  }
  if (node.graph) start()
  chain(node, 'onAdded', start) // not before: a node may be made and never be used
  chain(node, 'onRemoved', () => {
    watches.delete(entry)
    if (watches.size === 0 && timer !== null) {
      clearInterval(timer)
      timer = null
    }
  })
}
