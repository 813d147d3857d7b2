// Notices what changes a node's picture of the graph: its widgets, and anything upstream of it.
import { api, chain, toastOnce } from './host.js'
import { ENDS } from './runs.js'
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

/** Let every watch act again: what the back end answers may be another by now. */
export function renew() {
  for (const watch of watches) watch.told = ''
}

// A run loads and frees memory and may write files; a back end that was away may be another one.
for (const name of ENDS) {
  api.addEventListener(/** @type {any} */ (name), renew)
}

/**
 * Call `act` with what `look` returns, now, after every change of it and when the back end's answers may be out of date,
 * while the node is in a graph.
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
