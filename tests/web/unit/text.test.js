import assert from 'node:assert/strict'
import { afterEach, test } from 'node:test'

import { bytes, duration, flops } from '../../../web/js/ui/format.js'
import { language, reported, t, translated, useLanguage, useTexts } from '../../../web/js/ui/text.js'

afterEach(() => {
  useLanguage(() => 'en')
  useTexts({})
})

const plain = (/** @type {string} */ text) => text.replaceAll('\u00a0', ' ')

test('bytes have three digits at most', () => {
  const cases = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1 KiB'],
    [1536, '1.5 KiB'],
    [10 * 1024, '10 KiB'],
    [1023 * 1024, '1 MiB'],
    [1.5 * 2 ** 30, '1.5 GiB'],
    [12.25 * 2 ** 30, '12 GiB'],
    [5000 * 2 ** 40, '5,000 TiB']
  ]
  for (const [size, text] of cases) assert.equal(plain(bytes(Number(size))), text)
})

test('FLOPs count in thousands', () => {
  const cases = [
    [0, '0 FLOPs'],
    [999, '999 FLOPs'],
    [1500, '1.5 kFLOPs'],
    [2.48e12, '2.5 TFLOPs'],
    [10.47e12, '10 TFLOPs'],
    [999e12, '999 TFLOPs'],
    [1e21, '1,000 EFLOPs']
  ]
  for (const [count, text] of cases) assert.equal(plain(flops(Number(count))), text)
})

test('durations have two units at most', () => {
  const cases = [
    [-3, '0 s'],
    [0.4, '0 s'],
    [59.4, '59 s'],
    [59.5, '1 min 0 s'],
    [75.2, '1 min 15 s'],
    [599.4, '9 min 59 s'],
    [599.5, '10 min'],
    [2510, '42 min'],
    [3599.6, '1 h 0 min'],
    [7384, '2 h 3 min']
  ]
  for (const [seconds, text] of cases) assert.equal(plain(duration(Number(seconds))), text)
})

test('numbers are written as the language does', () => {
  useLanguage(() => 'de')
  assert.equal(plain(bytes(1.5 * 2 ** 30)), '1,5 GiB')
})

test('a text is that of the language, then of its first part, then English, then the key', () => {
  useTexts({ zh: { seamlessVae: { copied: '已复制' } }, 'pt-BR': { seamlessVae: { copied: 'Copiado' } }, fr: {} })
  const said = (/** @type {string} */ tag) => {
    useLanguage(() => tag)
    return t('copied')
  }
  assert.equal(said('zh'), '已复制')
  assert.equal(said('zh-TW'), '已复制')
  assert.equal(said('pt_BR'), 'Copiado')
  assert.equal(said('fr'), 'Copied')
  assert.equal(t('no such key'), 'no such key')
})

test('what is not a language is English', () => {
  for (const tag of ['', 'xx_', '***']) {
    useLanguage(() => tag)
    assert.equal(language(), 'en')
  }
})

test('values are put into a text, and what has none is left', () => {
  assert.equal(t('pass', { pass: 3, passes: 35 }), 'Pass 3 of 35')
  assert.equal(t('pass', { pass: 3 }), 'Pass 3 of {passes}')
  assert.equal(t('way.strips', { reason: '{pass}' }), 'In strips, because {pass}.')
})

test('texts that are not there are passed over', () => {
  for (const all of [null, undefined, {}, { zh: null }]) {
    useTexts(all)
    assert.equal(t('copied'), 'Copied')
  }
})

test('what the back end says is translated where it is known', () => {
  const said = 'on a CPU they take the least memory, and mostly the least time'
  assert.equal(translated('because', said), said)
  useTexts({ zh: { seamlessVae: { 'because.cpu': '在 CPU 上这样占用内存最少，多数时候也最快' } } })
  useLanguage(() => 'zh')
  assert.equal(translated('because', said), '在 CPU 上这样占用内存最少，多数时候也最快')
  assert.equal(translated('because', 'the model is patched'), 'the model is patched')
  assert.equal(translated('way', said), said)
})

test('durations are in the language of the page', () => {
  const units = { 'unit.second': '秒', 'unit.minute': '分', 'unit.hour': '小时' }
  useTexts({ zh: { seamlessVae: units } })
  useLanguage(() => 'zh')
  const cases = [
    [8, '8 秒'],
    [65, '1 分 5 秒'],
    [700, '12 分'],
    [3900, '1 小时 5 分']
  ]
  for (const [seconds, text] of cases) assert.equal(plain(duration(Number(seconds))), text)
})

test('what the back end reports is translated with what stands in it', () => {
  const texts = {
    'report.separator': '；',
    'report.size': '{count} 个，{width}x{height}',
    'report.sizes': 'latent：{sizes}',
    'report.folder': '{folder}：{kind}'
  }
  const size = { key: 'report.size', values: { count: 2, width: '{height}', height: 8 } }
  const sizes = { key: 'report.sizes', values: { sizes: [size, size] } }
  useTexts({ zh: { seamlessVae: texts } })
  useLanguage(() => 'zh')
  assert.equal(reported(sizes), 'latent：2 个，{height}x8；2 个，{height}x8')
  assert.equal(reported('third-party'), 'third-party')
  assert.equal(reported([size, 'b']), '2 个，{height}x8；b')
  assert.equal(reported({ key: 'report.folder', values: { folder: 'a', kind: 'b' } }), 'a：b')
  useLanguage(() => 'en')
  assert.equal(reported({ key: 'report.device', values: { device: 'cpu' } }), 'device: cpu')
})
