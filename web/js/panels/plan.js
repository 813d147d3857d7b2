// The tiled nodes: what a run will do, as the widgets change.
import { widgetOf } from '../graph/node.js'
import { lastSizeOf, sizeOf, vaeOf } from '../graph/sizes.js'
import { valueOf } from '../graph/sources.js'
import { watch } from '../graph/watch.js'
import { sizeOfFile } from '../host/images.js'
import { el, facts, note, svg, warning } from '../ui/dom.js'
import { t, translated } from '../ui/text.js'
import { asker } from './ask.js'
import { addPanel } from './panel.js'
import { detailFacts, isTooMuch, mainFacts, parts } from './plan_facts.js'

/**
 * @import { Size } from '../graph/sizes.js'
 * @import { NoPlan, Plan, PlanQuestion } from '../host/answers'
 * @import { GraphNode } from '../host/types'
 * @import { Asker } from './ask.js'
 * @typedef {{size: Size, known: boolean, linked: string[]}} Basis what is planned for: `known` is false for a size that is
 *   assumed, `linked` names widgets whose values are not known before the run
 */

/** @type {Size} */
const ASSUMED = { width: 1024, height: 1024, batch: 1, source: '' }
const CHOICES = /** @type {const} */ (['mode', 'tile_size', 'overlap', 'memory_budget', 'circular'])
// Widgets that a mode does not use.
/** @type {Record<string, string[]>} */
const IDLE = { exact: ['overlap'], blended: ['memory_budget', 'circular'] }

/**
 * @param {GraphNode} node
 * @param {'encode' | 'decode'} direction
 */
export function addPlan(node, direction) {
  const panel = addPanel(node, 'seamless_plan', { height: 120, label: t('plan') })
  /** @type {Asker<Plan | NoPlan>} */
  const { ask } = asker(node, panel.content)
  panel.content.replaceChildren(note(t('planning')))
  let open = false // the details, which every answer shows again
  const look = () => ({ ...question(node, direction), shown: panel.shown() })
  watch(node, look, ({ body, basis, shown }) => {
    greyOut(node, body)
    if (!shown) return
    void ask('/seamless_vae/plan', body, (plan) => {
      const content = plan ? view(plan, basis, open, (now) => (open = now)) : [note(t('unavailable'))]
      panel.content.replaceChildren(...content)
    })
  })
  return panel
}

/**
 * @param {GraphNode} node
 * @param {'encode' | 'decode'} direction
 * @returns {{body: PlanQuestion, basis: Basis}}
 */
function question(node, direction) {
  const found = sizeOf(node, direction === 'encode' ? 'pixels' : 'samples', sizeOfFile)
  const last = found ?? lastSizeOf(node)
  const size = last ?? ASSUMED
  const { width, height, batch } = size
  const [mode, tile_size, overlap, memory_budget, circular] = CHOICES.map((name) => valueOf(node, name))
  const values = { mode, tile_size, overlap, memory_budget, circular }
  return {
    body: { direction, ...vaeOf(node), width, height, batch, ...values },
    basis: {
      size,
      known: last !== null,
      linked: CHOICES.filter((name) => widgetOf(node, name) && values[name] === undefined)
    }
  }
}

/**
 * @param {GraphNode} node
 * @param {PlanQuestion} values
 */
function greyOut(node, { mode, circular }) {
  // Blended tiles cannot be circular: the widget can still be used to mend that.
  const idle = (IDLE[String(mode)] ?? []).filter((name) => name !== 'circular' || circular === 'none')
  for (const name of Object.values(IDLE).flat()) {
    const widget = widgetOf(node, name)
    if (!widget) continue
    widget.disabled = idle.includes(name)
    if (widget.options) widget.options.disabled = idle.includes(name)
  }
  node.setDirtyCanvas(true, false)
}

/**
 * @param {Plan | NoPlan} plan
 * @param {Basis} basis
 * @param {boolean} open whether the details are shown
 * @param {(open: boolean) => void} opened called when they are shown or hidden
 * @returns {HTMLElement[]}
 */
function view(plan, { size, known, linked }, open, opened) {
  const { width, height } = size
  const source = size.source ?? t('lastRun')
  const notes = [
    note(known ? t('imageSize', { width, height, source }) : t('imageAssumed', { width, height })),
    ...(plan.assumed_vae ? [note(t('vaeAssumed'))] : []),
    ...(linked.length ? [note(t('valuesAssumed', { names: linked.join(', ') }))] : [])
  ]
  if (plan.problem !== null) return [warning(plan.problem), ...notes]
  const details = facts(detailFacts(plan))
  details.classList.add('seamless-details')
  const more = el(
    'details',
    { open },
    el('summary', {}, t('details')),
    el('p', {}, t(`way.${plan.way}`, { reason: translated('because', plan.reason) })),
    details
  )
  more.addEventListener('toggle', () => opened(more.open))
  return [
    el('div', { class: 'seamless-plan' }, drawing(plan), facts(mainFacts(plan))),
    ...(isTooMuch(plan) ? [warning(t('memoryTooMuch'))] : []),
    more,
    ...notes
  ]
}

/** @param {Plan} plan */
function drawing(plan) {
  const { width, height } = plan
  const image = svg(
    'svg',
    { class: 'seamless-drawing', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${width} x ${height}` },
    svg('rect', { x: 0, y: 0, width, height, class: 'seamless-frame' }),
    ...parts(plan).map(([x, y, w, h]) => svg('rect', { x, y, width: w, height: h, class: 'seamless-tile' }))
  )
  return el('div', { class: 'seamless-drawing-box' }, image)
}
