// Seamless VAE Load: what the chosen file is, before anything runs.
import { asker } from '../lib/ask.js'
import { el, facts } from '../lib/dom.js'
import { addPanel } from '../lib/panel.js'
import { valueOf } from '../lib/sources.js'
import { bytes, t } from '../lib/text.js'
import { watch } from '../lib/watch.js'

/**
 * @typedef {object} Info the answer of `/seamless_vae/info`
 * @property {string} name
 * @property {string | null} problem
 * @property {string | null} seems_to_be
 * @property {string | null} [family]
 * @property {boolean} [family_is_guess]
 * @property {string} [prefix]
 * @property {number} [file_size]
 * @property {number} [parameters]
 * @property {string} [dtype]
 * @property {number} [latent_channels]
 * @property {number} [ratio]
 * @property {number | null} [scaling_factor]
 * @property {number | null} [shift_factor]
 * @property {string[]} [remarks]
 */

/** @param {import('../lib/host.js').LGraphNode} node */
export function addVaeInfo(node) {
  const panel = addPanel(node, 'seamless_info', { height: 96, label: t('fileInfo') })
  /** @type {import('../lib/ask.js').Ask<Info>} */
  const ask = asker(node, panel.content)
  panel.content.replaceChildren(note(t('reading')))
  watch(
    node,
    () => ({ name: valueOf(node, 'vae_name') ?? null, shown: panel.shown() }),
    ({ name, shown }) => {
      if (!shown) return
      if (typeof name !== 'string') return panel.content.replaceChildren(note(t('notYetKnown')))
      void ask(`/seamless_vae/info?name=${encodeURIComponent(name)}`, undefined, (info) => {
        panel.content.replaceChildren(...(info ? view(info) : [note(t('unavailable'))]))
      })
    }
  )
  return panel
}

/** @param {string} text */
function note(text) {
  return el('p', { class: 'seamless-note' }, text)
}

/**
 * @param {Info} info
 * @returns {HTMLElement[]}
 */
function view(info) {
  if (info.problem !== null) {
    const lines = info.seems_to_be ? [t('notLoadable', { what: info.seems_to_be }), info.problem] : [info.problem]
    return [el('div', { class: 'seamless-warning', role: 'alert' }, ...lines.map((line) => el('p', {}, line)))]
  }
  const family = info.family ?? t('unknownFamily')
  const scale = info.scaling_factor
  const rows = /** @type {[string, string][]} */ ([
    [t('family'), info.family_is_guess ? t('guess', { family }) : family],
    [t('latent'), t('latentValue', { channels: info.latent_channels ?? 0, ratio: info.ratio ?? 0 })],
    [
      t('scale'),
      scale === null || scale === undefined
        ? t('batchNorm')
        : info.shift_factor
          ? t('scaleShift', { scale, shift: info.shift_factor })
          : String(scale)
    ],
    [t('size'), bytes(info.file_size ?? 0)],
    [t('weights'), t('weightsValue', { millions: ((info.parameters ?? 0) / 1e6).toFixed(1), dtype: info.dtype ?? '' })]
  ])
  const remarks = info.remarks ?? []
  if (!remarks.length) return [facts(rows)]
  const summary = el('summary', {}, t('remarks', { count: remarks.length }))
  return [facts(rows), el('details', { class: 'seamless-note' }, summary, ...remarks.map((text) => el('p', {}, text)))]
}
