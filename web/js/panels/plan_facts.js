// What a plan says, as texts and numbers: what matters first, then the details.
import { bytes, duration, flops } from '../ui/format.js'
import { t } from '../ui/text.js'

/**
 * @import { Plan, Seconds } from '../host/answers'
 * @typedef {[string, string]} Fact a name and a value
 */

const MOST_LINES = 24 // that are drawn, in each direction, of parts whose places are not given

/**
 * Memory, disk, time.
 * @param {Plan} plan
 * @returns {Fact[]}
 */
export function mainFacts({ peak_bytes: peak, free_bytes: free, places, seconds }) {
  const memory = bytes(peak)
  return [
    [t('memory'), free === null ? memory : t('memoryOfFree', { memory, free: bytes(free) })],
    ...(places.cpu > 0 ? [/** @type {Fact} */ ([t('offload.cpu'), bytes(places.cpu)])] : []),
    [t('disk'), places.disk > 0 ? bytes(places.disk) : t('disk.none')],
    [t('time'), time(seconds)]
  ]
}

/**
 * How long it will take, with what is uncertain of it.
 * @param {Seconds | null} seconds
 */
function time(seconds) {
  if (seconds === null) return t('time.unknown')
  if (seconds.high < 1) return t('time.short')
  const [likely, low, high] = [seconds.likely, seconds.low, seconds.high].map(duration)
  return low === high ? t('time.about', { likely }) : t('time.range', { likely, low, high })
}

/**
 * Into what the image is cut, and how much is computed.
 * @param {Plan} plan
 * @returns {Fact[]}
 */
export function detailFacts({ way, strips, passes, count, columns, rows, cost, flops: total }) {
  /** @type {Record<Plan['way'], Fact[]>} */
  const cut = {
    whole: [],
    strips: [[t('strips'), t('stripsValue', { strips, passes })]],
    tiles: [[t('tiles'), t('tilesValue', { count, columns, rows })]]
  }
  const compared = cost < 1.005 ? t('costSame') : t('costMore', { cost: cost.toFixed(2) })
  return [...cut[way], [t('compute'), t('computeValue', { flops: flops(total), compared })]]
}

/**
 * Whether a run takes more memory than is free.
 * @param {Plan} plan
 */
export function isTooMuch({ peak_bytes: peak, free_bytes: free }) {
  return free !== null && peak > free
}

/**
 * The rectangles to draw, [x, y, width, height] in pixels: tiles or strips where their places are given, else parts of one
 * size, as many as there are, or as a pass has on average, because each pass cuts its strips as suits it.
 * @param {Plan} plan
 * @returns {[number, number, number, number][]}
 */
export function parts({ way, tiles, width, height, columns, rows, strips, passes }) {
  if (tiles.length) return tiles
  /** @param {number} count */
  const most = (count) => Math.max(1, Math.min(MOST_LINES, Math.round(count)))
  const across = way === 'tiles' ? most(columns) : 1
  const down = { whole: 1, strips: most(strips / Math.max(1, passes)), tiles: most(rows) }[way]
  const wide = width / across
  const high = height / down
  return Array.from({ length: across * down }, (_, index) => {
    return [(index % across) * wide, Math.floor(index / across) * high, wide, high]
  })
}
