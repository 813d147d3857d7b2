import assert from 'node:assert/strict'
import { test } from 'node:test'

import { detailFacts, isTooMuch, mainFacts, parts } from '../../../web/js/panels/plan_facts.js'

const GIB = 2 ** 30
/** @type {import('../../../web/js/host/answers').Plan} */
const PLAN = {
  problem: null,
  assumed_vae: false,
  downscale_factor: 8,
  width: 2048,
  height: 1024,
  device: 'cpu',
  way: 'strips',
  reason: 'you chose the size of strips',
  tiles: [],
  count: 0,
  columns: 0,
  rows: 0,
  passes: 35,
  strips: 140,
  places: { device: GIB, cpu: 0, disk: 0 },
  peak_bytes: 1.5 * GIB,
  free_bytes: 12 * GIB,
  cost: 1,
  flops: 5e12,
  seconds: null
}

/** Facts as `name: value`, with plain spaces. */
const lines = (/** @type {[string, string][]} */ facts) => facts.map((fact) => fact.join(': ').replaceAll('\u00a0', ' '))

test('memory, disk and time come first', () => {
  const unknown = 'Time: known after the first run'
  assert.deepEqual(lines(mainFacts(PLAN)), ['Memory: 1.5 GiB, 12 GiB free', 'Disk: not used', unknown])
  const places = { device: GIB, cpu: 2 * GIB, disk: 640 * 2 ** 20 }
  assert.deepEqual(lines(mainFacts({ ...PLAN, free_bytes: null, places })), [
    'Memory: 1.5 GiB',
    'Offload to CPU: 2 GiB',
    'Disk: 640 MiB',
    unknown
  ])
})

test('time says how uncertain it is', () => {
  /** @param {[number, number, number]} seconds */
  const time = ([likely, low, high]) => lines(mainFacts({ ...PLAN, seconds: { likely, low, high } })).at(-1)
  assert.equal(time([75, 60, 100]), 'Time: about 1 min 15 s (1 min 0 s to 1 min 40 s)')
  assert.equal(time([2.1, 1.9, 2.4]), 'Time: about 2 s')
  assert.equal(time([0.4, 0.2, 0.9]), 'Time: less than 1 s')
})

test('details say how the image is cut and what is computed', () => {
  const same = 'Compute: 5 TFLOPs, same as untiled'
  assert.deepEqual(lines(detailFacts(PLAN)), ['Strips: 140 in 35 passes', same])
  assert.deepEqual(lines(detailFacts({ ...PLAN, way: 'whole', strips: 0, passes: 1 })), [same])
  assert.deepEqual(lines(detailFacts({ ...PLAN, way: 'tiles', count: 18, columns: 6, rows: 3, cost: 1.687 })), [
    'Tiles: 18 (6 x 3)',
    'Compute: 5 TFLOPs, 1.69x untiled'
  ])
})

test('more than is free is too much, where it is known what is free', () => {
  assert.equal(isTooMuch(PLAN), false)
  assert.equal(isTooMuch({ ...PLAN, peak_bytes: 12 * GIB }), false)
  assert.equal(isTooMuch({ ...PLAN, peak_bytes: 12 * GIB + 1 }), true)
  assert.equal(isTooMuch({ ...PLAN, peak_bytes: 12 * GIB + 1, free_bytes: null }), false)
})

test('parts are drawn where they are, or evenly', () => {
  /** @type {[number, number, number, number][]} */
  const tiles = [[0, 0, 2048, 512]]
  assert.deepEqual(parts({ ...PLAN, tiles }), tiles)
  assert.deepEqual(parts({ ...PLAN, way: 'whole', strips: 0, passes: 1 }), [[0, 0, 2048, 1024]])
  assert.deepEqual(parts({ ...PLAN, way: 'whole', strips: 0, passes: 0 }), [[0, 0, 2048, 1024]])
  assert.deepEqual(
    parts(PLAN).map(([, y]) => y),
    [0, 256, 512, 768]
  )
})

test('what is drawn of very many parts covers the image', () => {
  const many = parts({ ...PLAN, way: 'tiles', columns: 16384, rows: 16384, count: 16384 ** 2 })
  assert.equal(many.length, 24 * 24)
  const [x, y, width, height] = /** @type {[number, number, number, number]} */ (many.at(-1))
  assert.ok(Math.abs(x + width - 2048) < 1e-9 && Math.abs(y + height - 1024) < 1e-9)
})
