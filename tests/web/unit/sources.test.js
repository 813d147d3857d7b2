import assert from 'node:assert/strict'
import { test } from 'node:test'

import { lastSizeOf, rememberSize, sizeOf, vaeOf } from '../../../web/js/graph/sizes.js'
import { sourceOf, valueOf } from '../../../web/js/graph/sources.js'
import { graphOf, link, nodeOf, subgraphOf } from './graph.js'

const MUTED = 2
const BYPASSED = 4
const decoder = () =>
  nodeOf('Decode', { values: { tile_size: 0 }, inputs: { samples: 'LATENT', vae: 'VAE', tile_size: 'INT' }, outputs: ['IMAGE'] })
const latent = (/** @type {object} */ values) =>
  nodeOf('EmptyLatentImage', { values, inputs: { width: 'INT' }, outputs: ['LATENT'] })
const sampler = () => nodeOf('KSampler', { inputs: { model: 'MODEL', latent_image: 'LATENT' }, outputs: ['LATENT'] })
const nothing = () => null

test('a source is found through reroutes and bypassed nodes, and not through muted ones', () => {
  for (const [mode, found] of [[0, 'KSampler'], [BYPASSED, 'EmptyLatentImage'], [MUTED, undefined]]) {
    const [start, middle, reroute, end] = [latent({}), sampler(), nodeOf('Reroute', { inputs: { '': '*' }, outputs: ['*'] }), decoder()]
    graphOf(start, middle, reroute, end)
    link(start, 0, middle, 'latent_image')
    link(middle, 0, reroute, '')
    link(reroute, 0, end, 'samples')
    middle.mode = Number(mode)
    assert.equal(sourceOf(end, 'samples')?.node.type, found)
  }
})

test('links in a circle have no source', () => {
  const [one, other] = [1, 2].map(() => nodeOf('Reroute', { inputs: { '': '*' }, outputs: ['*'] }))
  graphOf(one, other)
  link(one, 0, other, '')
  link(other, 0, one, '')
  assert.equal(sourceOf(one, ''), null)
  assert.equal(valueOf(one, ''), undefined)
})

test('a value is that of the widget, of the node that a link brings it from, or not known', () => {
  const end = decoder()
  const number = nodeOf('PrimitiveInt', { values: { value: 640 }, outputs: ['INT'] })
  const sum = nodeOf('Sum', { values: { a: 1 }, outputs: ['INT'] })
  graphOf(end, number, sum)
  end.widgets[0].value = 256
  assert.equal(valueOf(end, 'tile_size'), 256)
  assert.equal(valueOf(end, 'no such widget'), undefined)
  link(number, 0, end, 'tile_size')
  assert.equal(valueOf(end, 'tile_size'), 640)
  link(sum, 0, end, 'tile_size')
  assert.equal(valueOf(end, 'tile_size'), undefined)
})

test('edges of subgraphs are crossed both ways, unless several nodes show the same', () => {
  const [maker, inner] = [latent({ width: 512, height: 256, batch_size: 3 }), decoder()]
  const before = nodeOf('Before', { outputs: ['LATENT'] })
  before.subgraph = subgraphOf([maker], { to: [[maker, 0]] })
  const around = nodeOf('Around', { inputs: { samples: 'LATENT' } })
  around.subgraph = subgraphOf([inner], { from: [[inner, 'samples']] })
  graphOf(before, around)
  link(before, 0, around, 'samples')
  assert.equal(sourceOf(inner, 'samples')?.node, maker)
  const size = { width: 512, height: 256, batch: 3, source: 'EmptyLatentImage' }
  assert.deepEqual(sizeOf(inner, 'samples', nothing), size)

  const twice = nodeOf('Around', { inputs: { samples: 'LATENT' } })
  twice.subgraph = around.subgraph
  around.graph.add(twice)
  assert.equal(sourceOf(inner, 'samples'), null)
})

test('a size goes through nodes that keep it and is scaled by those that say so', () => {
  const [start, middle, end] = [latent({ width: 512, height: 256, batch_size: 2 }), sampler(), decoder()]
  const scale = nodeOf('LatentUpscaleBy', { values: { scale_by: 1.5 }, inputs: { samples: 'LATENT' }, outputs: ['LATENT'] })
  graphOf(start, middle, scale, end)
  link(start, 0, middle, 'latent_image')
  link(middle, 0, scale, 'samples')
  link(scale, 0, end, 'samples')
  const size = { width: 768, height: 384, batch: 2, source: 'LatentUpscaleBy' }
  assert.deepEqual(sizeOf(end, 'samples', nothing), size)
})

test('a size that depends on the run is not known', () => {
  for (const values of [{ width: 0, height: 256 }, { megapixels: 1 }, { upscale_model: 'x4' }, { scale_by: 0 }]) {
    const [start, resize, end] = [latent({ width: 512, height: 256 }), nodeOf('Resize', { values, inputs: { samples: 'LATENT' }, outputs: ['LATENT'] }), decoder()]
    graphOf(start, resize, end)
    link(start, 0, resize, 'samples')
    link(resize, 0, end, 'samples')
    assert.equal(sizeOf(end, 'samples', nothing), null)
  }
  assert.equal(sizeOf(decoder(), 'samples', nothing), null)
})

test('an image file is measured by its folder and its type', () => {
  const load = nodeOf('LoadImage', { values: { image: 'some/folder/photo.png [output]' }, outputs: ['IMAGE', 'MASK'] })
  const encode = nodeOf('Encode', { inputs: { pixels: 'IMAGE' } })
  graphOf(load, encode)
  link(load, 0, encode, 'pixels')
  /** @type {object[]} */
  const asked = []
  const measure = (/** @type {object} */ file) => (asked.push(file), { width: 96, height: 64 })
  assert.deepEqual(sizeOf(encode, 'pixels', measure), { width: 96, height: 64, batch: 1, source: 'LoadImage' })
  load.widgets[0].value = 'photo.png'
  sizeOf(encode, 'pixels', measure)
  assert.deepEqual(asked, [
    { filename: 'photo.png', subfolder: 'some/folder', type: 'output' },
    { filename: 'photo.png', subfolder: '', type: 'input' }
  ])
  assert.equal(sizeOf(encode, 'pixels', nothing), null) // not loaded yet
})

test('the size of the last run is remembered of each node by itself', () => {
  const [first, second] = [decoder(), decoder()]
  for (const side of ['width', 'height', 'batch']) {
    rememberSize(first, { width: 96, height: 64, batch: 2, [side]: 0 }) // of a run that has not begun
    assert.equal(lastSizeOf(first), null)
  }
  rememberSize(first, { width: 96, height: 64, batch: 2 })
  assert.deepEqual(lastSizeOf(first), { width: 96, height: 64, batch: 2, source: null })
  assert.equal(lastSizeOf(second), null)
})

test('the VAE is the one of the loader, in the words of Seamless VAE Load', () => {
  const cases = [
    [{ vae_name: 'sdxl.safetensors', device: 'cpu', dtype: 'bfloat16' }, ['sdxl.safetensors', 'cpu', 'bfloat16']],
    [{ ckpt_name: 'sd15.safetensors' }, ['sd15.safetensors [checkpoint]', 'auto', 'auto']],
    [{ other: 1 }, [null, 'auto', 'auto']]
  ]
  for (const [values, [name, device, dtype]] of cases) {
    const [load, end] = [nodeOf('Load', { values, outputs: ['VAE'] }), decoder()]
    graphOf(load, end)
    link(load, 0, end, 'vae')
    assert.deepEqual(vaeOf(end), { name, device, dtype })
  }
  const alone = decoder()
  graphOf(alone)
  assert.deepEqual(vaeOf(alone), { name: null, device: 'auto', dtype: 'auto' })
})
