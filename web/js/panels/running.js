// While a node runs: pass, memory in use, time left, and a way to stop it. Shown with the first news of the node.
import { rememberSize } from '../graph/sizes.js'
import { findNode, toast } from '../host/front_end.js'
import { cancel, listen } from '../host/runs.js'
import { button, el } from '../ui/dom.js'
import { bytes, duration } from '../ui/format.js'
import { t } from '../ui/text.js'
import { addPanel } from './panel.js'

/**
 * @import { Status } from '../host/answers'
 * @import { GraphNode } from '../host/types'
 * @typedef {{update: (status: Status) => void, end: () => void}} Gauge what a node shows of its run
 */

/** @type {WeakMap<GraphNode, Gauge>} */
const gauges = new WeakMap()
/** @type {Map<string, Gauge>} */
const running = new Map()

/** @param {GraphNode} node */
export function addRunning(node) {
  const panel = addPanel(node, 'seamless_run', { height: 62, shown: false, label: t('running') })
  const filled = el('div')
  const bar = el(
    'div',
    { class: 'seamless-bar', role: 'progressbar', 'aria-label': t('running'), 'aria-valuemin': 0, 'aria-valuemax': 100 },
    filled
  )
  const text = el('span', { class: 'seamless-run-text' })
  const stop = button(t('cancel'), () => {
    stop.disabled = true
    stop.textContent = t('cancelling')
    cancel().catch((error) => {
      stop.disabled = false
      stop.textContent = t('cancel')
      toast('warn', t('routeFailed'), String(error))
    })
  })
  panel.content.replaceChildren(bar, el('div', { class: 'seamless-row' }, text, stop))
  gauges.set(node, {
    update(status) {
      const share = status.total > 0 ? status.done / status.total : 0
      filled.style.width = `${100 * share}%`
      bar.setAttribute('aria-valuenow', String(Math.floor(100 * share)))
      const parts = [`${Math.floor(100 * share)} %`]
      if (status.passes > 1) parts.push(t('pass', { pass: status.pass, passes: status.passes }))
      if (status.memory) parts.push(t('inUse', { memory: bytes(status.memory) }))
      if (typeof status.seconds_left === 'number') parts.push(t('secondsLeft', { time: duration(status.seconds_left) }))
      text.textContent = parts.join(' · ')
      panel.show(true)
    },
    end() {
      stop.disabled = false
      stop.textContent = t('cancel')
      panel.show(false)
    }
  })
}

/** Show what the back end says of its runs, from now on. */
export function showRuns() {
  listen(
    (status) => {
      const id = String(status.node)
      const node = findNode(id)
      if (node) rememberSize(node, status)
      const gauge = node && gauges.get(node)
      if (!gauge) return
      running.set(id, gauge)
      gauge.update(status)
    },
    (hasEnded) => {
      for (const [id, gauge] of [...running].filter(([each]) => hasEnded(each))) {
        running.delete(id)
        gauge.end()
      }
    }
  )
}
