// The picture of a plan: a rectangle with its strips or tiles, and what the run takes.
import { el, facts, svg } from '../lib/dom.js'
import { bytes, t } from '../lib/text.js'

/**
 * @typedef {object} Plan the answer of `/seamless_vae/plan`
 * @property {string | null} problem
 * @property {boolean} assumed_vae
 * @property {number} width
 * @property {number} height
 * @property {[number, number, number, number][]} tiles
 * @property {number} [count] of blended tiles
 * @property {number} [columns] of them
 * @property {number} [rows]
 * @property {number} [passes]
 * @property {number} [strips]
 * @property {string} store
 * @property {number} peak_bytes
 * @property {number} file_bytes
 * @property {number | null} free_bytes
 * @property {number} cost
 */

const MOST_LINES = 24 // that are drawn, in each direction, of parts which are not named

/** @param {string} text */
export function note(text) {
  return el('p', { class: 'seamless-note' }, text)
}

/**
 * @param {Plan} plan
 * @param {import('../lib/upstream.js').Size} size
 * @param {boolean} known whether the size is more than an assumption
 * @param {string[]} linked widgets whose values only the run tells
 * @returns {HTMLElement[]}
 */
export function planView(plan, size, known, linked) {
  const { width, height } = size
  const source = size.source ?? t('lastRun')
  const notes = [
    note(known ? t('pictureSize', { width, height, source }) : t('pictureAssumed', { width, height })),
    ...(plan.assumed_vae ? [note(t('vaeAssumed'))] : []),
    ...(linked.length ? [note(t('valuesAssumed', { names: linked.join(', ') }))] : [])
  ]
  if (plan.problem !== null) {
    return [el('div', { class: 'seamless-warning', role: 'alert' }, el('p', {}, plan.problem)), ...notes]
  }
  const tooMuch = plan.free_bytes !== null && plan.peak_bytes > plan.free_bytes
  const warning = tooMuch ? [el('p', { class: 'seamless-warning', role: 'alert' }, t('memoryTooMuch'))] : []
  return [el('div', { class: 'seamless-plan' }, drawing(plan), facts(rows(plan))), ...warning, ...notes]
}

/**
 * @param {Plan} plan
 * @returns {[string, string][]}
 */
function rows(plan) {
  const free = plan.free_bytes
  return [
    plan.count === undefined
      ? [t('strips'), t('stripsValue', { strips: plan.strips ?? 0, passes: plan.passes ?? 0 })]
      : [t('tiles'), t('tilesValue', { count: plan.count, columns: plan.columns ?? 0, rows: plan.rows ?? 0 })],
    [t('store'), plan.store.split(/,? and |, /).map((place) => t(`store.${place}`)).join(' + ')],
    ...(plan.file_bytes ? /** @type {[string, string][]} */ ([[t('fileSize'), bytes(plan.file_bytes)]]) : []),
    [t('memory'), bytes(plan.peak_bytes)],
    ...(free === null ? [] : /** @type {[string, string][]} */ ([[t('free'), bytes(free)]])),
    [t('cost'), plan.cost < 1.005 ? t('costSame') : t('costValue', { cost: plan.cost.toFixed(2) })]
  ]
}

/** @param {Plan} plan */
function drawing(plan) {
  const { width, height } = plan
  const frame = { x: 0, y: 0, width, height, class: 'seamless-frame' }
  const picture = svg('svg', {
    class: 'seamless-drawing',
    viewBox: `0 0 ${width} ${height}`,
    role: 'img',
    'aria-label': `${width} x ${height}`
  })
  picture.append(svg('rect', frame))
  for (const [x, y, w, h] of plan.tiles.length ? plan.tiles : evenly(plan)) {
    picture.append(svg('rect', { x, y, width: w, height: h, class: 'seamless-tile' }))
  }
  return el('div', { class: 'seamless-drawing-box' }, picture)
}

/**
 * Parts of one size: so many strips as a pass has on average, for each pass cuts them as it suits; or tiles that are too
 * many to be named.
 * @param {Plan} plan
 * @returns {[number, number, number, number][]}
 */
function evenly({ width, height, columns = 1, rows, strips = 1, passes = 1 }) {
  /** @param {number} count */
  const most = (count) => Math.max(1, Math.min(MOST_LINES, Math.round(count)))
  const across = most(columns)
  const down = most(rows ?? strips / passes)
  const wide = width / across
  const high = height / down
  return Array.from({ length: across * down }, (_, index) => {
    return [(index % across) * wide, Math.floor(index / across) * high, wide, high]
  })
}
