import assert from 'node:assert/strict'
import { test } from 'node:test'

import { replaceNodes } from '../../../web/js/graph/replace.js'
import { graphOf, link, nodeOf } from './graph.js'

const TYPES = {
  VAEDecodeTiled: () => ({
    values: { tile_size: 512, overlap: 64, temporal_size: 64 },
    options: { tile_size: { min: 64, max: 4096 } },
    inputs: { samples: 'LATENT', vae: 'VAE' },
    outputs: ['IMAGE']
  }),
  SeamlessVAEDecodeTiled: () => ({
    values: { mode: 'exact', tile_size: 0, overlap: 128, memory_budget: 0 },
    options: { tile_size: { min: 0, max: 16384 }, mode: { values: ['exact', 'blended'] } },
    inputs: { samples: 'LATENT', vae: 'VAE' },
    outputs: ['IMAGE']
  }),
  SeamlessVAEEncode: () => ({ inputs: { pixels: 'IMAGE', vae: 'VAE' }, outputs: ['LATENT', 'VAE_POSTERIOR'] }),
  VAEEncode: () => ({ inputs: { pixels: 'IMAGE' }, outputs: ['LATENT'] }),
  VAELoader: () => ({ values: { vae_name: 'pixel_space' }, outputs: ['VAE'] }),
  SeamlessVAELoad: () => ({
    values: { vae_name: 'demo' },
    options: { vae_name: { values: () => ['demo', 'sdxl.safetensors'] } },
    outputs: ['VAE']
  })
}
const create = (/** @type {string} */ type) => (type in TYPES ? nodeOf(type, TYPES[type]()) : null)

function canvasOf() {
  /** @type {string[]} */
  const steps = []
  return {
    steps,
    selectedItems: new Set(),
    select: () => steps.push('select'),
    emitBeforeChange: () => steps.push('before'),
    emitAfterChange: () => steps.push('after'),
    setDirty: () => {}
  }
}

const replace = (/** @type {object[]} */ nodes, /** @type {Record<string, string>} */ table, canvas = canvasOf()) =>
  replaceNodes(canvas, nodes, Object.fromEntries(Object.entries(table).map(([from, to]) => [from, { to }])), create)

const valuesOf = (/** @type {object} */ node) => Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]))

test('values, links, place and looks are kept', () => {
  const [old, before, after] = [create('VAEDecodeTiled'), nodeOf('Before', { outputs: ['LATENT'] }), nodeOf('After', { inputs: { images: 'IMAGE' } })]
  const graph = graphOf(before, old, after)
  link(before, 0, old, 'samples')
  link(old, 0, after, 'images')
  Object.assign(old, { pos: [30, 40], title: 'Mine', mode: 4, color: '#123', size: [500, 90] })
  old.widgets[0].value = 768
  const canvas = canvasOf()
  canvas.selectedItems.add(old)
  assert.deepEqual(replace([old, before], { VAEDecodeTiled: 'SeamlessVAEDecodeTiled' }, canvas), { replaced: 1, left: [], dropped: [] })
  const fresh = graph.nodes.find((node) => node.type === 'SeamlessVAEDecodeTiled')
  assert.ok(fresh && !graph.nodes.includes(old))
  assert.deepEqual(valuesOf(fresh), { mode: 'exact', tile_size: 768, overlap: 64, memory_budget: 0 })
  assert.deepEqual([fresh.pos, fresh.title, fresh.mode, fresh.color, fresh.size], [[30, 40], 'Mine', 4, '#123', [500, 100]])
  const ends = [...graph.links.values()].map((each) => [each.origin_id, each.target_id])
  assert.deepEqual(ends, [
    [before.id, fresh.id],
    [fresh.id, after.id]
  ])
  assert.deepEqual(canvas.steps, ['before', 'select', 'after'])
})

test('values are brought within what the other node takes, and 0 becomes its default', () => {
  for (const [value, expected] of [[0, 512], [8, 64], [64, 64], [4096, 4096], [16384, 4096]]) {
    const old = create('SeamlessVAEDecodeTiled')
    const graph = graphOf(old)
    old.widgets[1].value = value
    replace([old], { SeamlessVAEDecodeTiled: 'VAEDecodeTiled' })
    assert.equal(valuesOf(graph.nodes[0]).tile_size, expected)
  }
})

test('settings that the other node does not have are listed, if they were changed', () => {
  const old = create('SeamlessVAEDecodeTiled')
  graphOf(old)
  old.widgets[3].value = 2
  const { dropped } = replace([old], { SeamlessVAEDecodeTiled: 'VAEDecodeTiled' })
  assert.deepEqual(dropped, ['memory_budget = 2 (SeamlessVAEDecodeTiled)'])
})

test('what cannot be replaced stays, with the reason', () => {
  const loader = create('VAELoader')
  const encode = create('SeamlessVAEEncode')
  const vae = nodeOf('Load', { outputs: ['VAE'] })
  const user = nodeOf('Use', { inputs: { posterior: 'VAE_POSTERIOR' } })
  const other = create('SeamlessVAEEncode')
  const graph = graphOf(loader, encode, vae, user, other)
  link(vae, 0, encode, 'vae')
  link(other, 1, user, 'posterior')
  const table = { VAELoader: 'SeamlessVAELoad', SeamlessVAEEncode: 'VAEEncode', Load: 'Missing' }
  const { replaced, left } = replace([loader, encode, vae, other], table)
  assert.equal(replaced, 0)
  assert.equal(graph.nodes.length, 5)
  assert.deepEqual(left, [
    { key: 'reasonValue', values: { title: 'VAELoader', value: 'pixel_space' } },
    { key: 'reasonInput', values: { title: 'SeamlessVAEEncode', input: 'vae' } },
    { key: 'reasonMissing', values: { title: 'Load', type: 'Missing' } },
    { key: 'reasonOutput', values: { title: 'SeamlessVAEEncode', output: 'vae_posterior' } }
  ])
})

test('a step that fails is ended all the same', () => {
  const old = create('VAELoader')
  graphOf(old)
  const canvas = canvasOf()
  const fail = () => {
    throw new Error('of another pack')
  }
  assert.throws(() => replaceNodes(canvas, [old], { VAELoader: { to: 'SeamlessVAELoad' } }, fail), /another pack/)
  assert.deepEqual(canvas.steps, ['before', 'after'])
})
