// The tiled nodes: what a run will do, as the widgets move.
import { asker } from '../lib/ask.js'
import { widgetOf } from '../lib/host.js'
import { addPanel } from '../lib/panel.js'
import { t } from '../lib/text.js'
import { valueOf } from '../lib/sources.js'
import { lastSizeOf, sizeOf, vaeOf } from '../lib/upstream.js'
import { watch } from '../lib/watch.js'
import { note, planView } from './plan_view.js'

/**
 * @typedef {import('../lib/host.js').LGraphNode} LGraphNode
 * @typedef {import('./plan_view.js').Plan} Plan
 */

const ASSUMED = { width: 1024, height: 1024, batch: 1, source: '' }
const CHOICES = ['mode', 'tile_size', 'overlap', 'memory_budget', 'circular']
// Widgets that a mode does not look at.
const IDLE = /** @type {Record<string, string[]>} */ ({ exact: ['overlap'], blended: ['memory_budget', 'circular'] })

/**
 * @param {LGraphNode} node
 * @param {'encode' | 'decode'} direction
 */
export function addPlan(node, direction) {
  const panel = addPanel(node, 'seamless_plan', { height: 120, label: t('plan') })
  /** @type {import('../lib/ask.js').Ask<Plan>} */
  const ask = asker(node, panel.content)
  panel.content.replaceChildren(note(t('planning')))
  const look = () => ({ ...question(node, direction), shown: panel.shown() })
  watch(node, look, ({ size, known, linked, shown, ...body }) => {
    greyOut(node, body)
    if (!shown) return
    void ask('/seamless_vae/plan', { ...body, width: size.width, height: size.height, batch: size.batch }, (plan) => {
      panel.content.replaceChildren(...(plan ? planView(plan, size, known, linked) : [note(t('unavailable'))]))
    })
  })
  return panel
}

/**
 * @param {LGraphNode} node
 * @param {'encode' | 'decode'} direction
 */
function question(node, direction) {
  const size = sizeOf(node, direction === 'encode' ? 'pixels' : 'samples') ?? lastSizeOf(node)
  const values = Object.fromEntries(CHOICES.map((name) => [name, valueOf(node, name)]))
  return {
    direction,
    ...vaeOf(node),
    ...values,
    size: size ?? ASSUMED,
    known: size !== null,
    linked: CHOICES.filter((name) => widgetOf(node, name) && values[name] === undefined)
  }
}

/**
 * @param {LGraphNode} node
 * @param {Record<string, unknown>} values of the widgets
 */
function greyOut(node, { mode, circular }) {
  // Blended tiles that are to be circular cannot run: the widget is at hand to say so no more.
  const idle = (IDLE[String(mode)] ?? []).filter((name) => name !== 'circular' || circular === 'none')
  for (const name of Object.values(IDLE).flat()) {
    const widget = /** @type {any} */ (widgetOf(node, name))
    if (!widget) continue
    widget.disabled = idle.includes(name)
    if (widget.options) widget.options.disabled = idle.includes(name)
  }
  node.setDirtyCanvas(true, false)
}
