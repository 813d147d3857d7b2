// Notices what changes a node's picture of the graph: its widgets, and anything upstream of it.
import { chain, toastOnce } from './host.js'
import { t } from './text.js'

/** @typedef {import('./host.js').LGraphNode} LGraphNode */

const PERIOD = 150 // milliseconds; a value has to stay for one period

/** @type {Set<{look: () => unknown, act: (value: any) => void, seen: string, told: string}>} */
const watches = new Set()
/** @type {ReturnType<typeof setInterval> | null} */
let timer = null

function tick() {
  if (document.hidden) return
  for (const watch of [...watches]) {
    let value
    try {
      value = watch.look()
    } catch (error) {
      // A node of another pack may answer as it likes. The other watches go on.
      toastOnce('watch', t('followFailed'), String(error))
      continue
    }
    const seen = JSON.stringify(value)
    if (seen === watch.seen && seen !== watch.told) {
      watch.told = seen
      watch.act(value)
    }
    watch.seen = seen
  }
}

/**
 * Call `act` with what `look` returns, now and after every change of it, while the node is in a graph.
 * @template T
 * @param {LGraphNode} node
 * @param {() => T} look cheap; what it returns is compared as JSON
 * @param {(value: T) => void} act
 */
export function watch(node, look, act) {
  const entry = { look, act, seen: '', told: '' }
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
