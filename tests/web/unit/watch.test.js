import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'

import { chain } from '../../../web/js/graph/node.js'
import { onFault, PERIOD, renew, watch } from '../../../web/js/graph/watch.js'
import { graphOf, nodeOf } from './graph.js'

const graph = graphOf()

beforeEach(() => mock.timers.enable({ apis: ['setInterval'] }))
afterEach(() => {
  for (const node of [...graph.nodes]) graph.remove(node)
  mock.timers.reset()
})

/** A node in the graph with a value that is watched, and what was acted on. */
function watched() {
  const node = nodeOf('Some', { values: { size: 1 } })
  /** @type {unknown[]} */
  const acted = []
  graph.add(node)
  watch(
    node,
    () => ({ size: node.widgets[0].value }),
    ({ size }) => acted.push(size)
  )
  return { node, widget: node.widgets[0], acted }
}

test('a value is acted on once it has stayed for a period', () => {
  const { widget, acted } = watched()
  mock.timers.tick(PERIOD)
  assert.deepEqual(acted, [])
  mock.timers.tick(PERIOD)
  assert.deepEqual(acted, [1])
  for (const size of [2, 3, 4]) {
    widget.value = size
    mock.timers.tick(PERIOD)
  }
  assert.deepEqual(acted, [1])
  mock.timers.tick(10 * PERIOD)
  assert.deepEqual(acted, [1, 4])
})

test('a value that comes back is not acted on again, unless everything is renewed', () => {
  const { widget, acted } = watched()
  mock.timers.tick(2 * PERIOD)
  widget.value = 2
  mock.timers.tick(PERIOD)
  widget.value = 1
  mock.timers.tick(5 * PERIOD)
  assert.deepEqual(acted, [1])
  renew()
  mock.timers.tick(PERIOD)
  assert.deepEqual(acted, [1, 1])
})

test('a node that is not in a graph is not looked at, and one that comes back is', () => {
  const node = nodeOf('Some', { values: {} })
  let looks = 0
  watch(
    node,
    () => (looks += 1),
    () => {}
  )
  mock.timers.tick(5 * PERIOD)
  assert.equal(looks, 0)
  graph.add(node)
  mock.timers.tick(PERIOD)
  assert.equal(looks, 1)
  graph.remove(node)
  mock.timers.tick(5 * PERIOD)
  assert.equal(looks, 1)
  graph.add(node)
  mock.timers.tick(PERIOD)
  assert.equal(looks, 2)
})

test('a node that fails is reported, and the others are looked at', () => {
  /** @type {unknown[]} */
  const faults = []
  onFault((error) => faults.push(error))
  const node = nodeOf('Other', {})
  const error = new Error('of another pack')
  graph.add(node)
  watch(
    node,
    () => {
      throw error
    },
    () => assert.fail('nothing was seen')
  )
  const { acted } = watched()
  mock.timers.tick(2 * PERIOD)
  assert.deepEqual(acted, [1])
  assert.deepEqual(faults, [error, error])
})

test('a callback is added after what is there, which decides what is returned', () => {
  const node = nodeOf('Some', {})
  /** @type {unknown[]} */
  const heard = []
  node.onExecuted = function (/** @type {unknown} */ output) {
    heard.push(this, output)
    return 'theirs'
  }
  chain(node, 'onExecuted', (output) => heard.push(output))
  chain(node, 'onRemoved', () => heard.push('removed'))
  const output = { text: ['a'] }
  assert.equal(node.onExecuted(output), 'theirs')
  node.onRemoved()
  assert.deepEqual(heard, [node, output, output, 'removed'])
})
