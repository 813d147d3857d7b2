import assert from 'node:assert/strict'
import { test } from 'node:test'

import { View } from '../../../web/js/ui/view.js'

const stage = { width: 400, height: 200 }

/** A view of an image on the stage. */
const viewOf = (/** @type {number} */ width, /** @type {number} */ height) =>
  new View(
    () => stage,
    () => ({ width, height })
  )

test('an image fits the stage and is in its middle', () => {
  const view = viewOf(100, 100)
  assert.equal(view.scale, 2)
  assert.deepEqual(view.corner, { x: 100, y: 0 })
  assert.deepEqual(view.at({ x: 100, y: 0 }), { x: 0, y: 0 })
  assert.deepEqual(view.at({ x: 300, y: 200 }), { x: 100, y: 100 })
})

test('zooming keeps the pixel under the pointer where it is', () => {
  const view = viewOf(200, 100)
  const point = { x: 120, y: 60 }
  const before = view.at(point)
  view.zoomBy(2, point)
  assert.equal(view.zoom, 2)
  assert.deepEqual(view.at(point), before)
})

test('zoom ends at 64 screen pixels for one of the image, and at the size that fits', () => {
  const view = viewOf(200, 100)
  for (let step = 0; step < 40; step++) view.zoomBy(1.5)
  assert.equal(view.scale, 64)
  for (let step = 0; step < 40; step++) view.zoomBy(0.5)
  assert.deepEqual([view.zoom, view.x, view.y], [1, 0.5, 0.5])
})

test('a small image is not enlarged beyond what fits where that is more than 64 times', () => {
  const view = viewOf(2, 1)
  assert.equal(view.scale, 200)
  view.zoomBy(2)
  assert.equal(view.zoom, 1)
})

test('an image cannot be moved off the stage', () => {
  const view = viewOf(200, 100)
  view.moveBy(1000, 1000)
  assert.deepEqual([view.x, view.y], [0.5, 0.5]) // it fits exactly: nowhere to go
  view.zoomBy(4)
  view.moveBy(1e6, -1e6)
  assert.deepEqual(view.at({ x: 0, y: 200 }), { x: 0, y: 100 })
  view.moveBy(-8, 0)
  assert.deepEqual(view.at({ x: 0, y: 200 }), { x: 1, y: 100 })
})
