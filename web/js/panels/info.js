// Seamless VAE Load: what the chosen file is, before anything runs.
import { valueOf } from '../graph/sources.js'
import { watch } from '../graph/watch.js'
import { el, facts, note, warning } from '../ui/dom.js'
import { bytes } from '../ui/format.js'
import { t } from '../ui/text.js'
import { asker } from './ask.js'
import { addPanel } from './panel.js'

/**
 * @import { FileInfo, UnusableFile } from '../host/answers'
 * @import { GraphNode } from '../host/types'
 * @import { Asker } from './ask.js'
 */

/** @param {GraphNode} node */
export function addInfo(node) {
  const panel = addPanel(node, 'seamless_info', { height: 96, label: t('fileInfo') })
  /** @type {Asker<FileInfo | UnusableFile>} */
  const { ask, cancel } = asker(node, panel.content)
  panel.content.replaceChildren(note(t('reading')))
  watch(
    node,
    () => ({ name: valueOf(node, 'vae_name') ?? null, shown: panel.shown() }),
    ({ name, shown }) => {
      if (!shown) return
      if (typeof name !== 'string') {
        cancel()
        return panel.content.replaceChildren(note(t('notYetKnown')))
      }
      void ask(`/seamless_vae/info?name=${encodeURIComponent(name)}`, undefined, (info) => {
        panel.content.replaceChildren(...(info ? view(info) : [note(t('unavailable'))]))
      })
    }
  )
  return panel
}

/**
 * @param {FileInfo | UnusableFile} info
 * @returns {HTMLElement[]}
 */
function view(info) {
  if (info.problem !== null) {
    return [info.seems_to_be ? warning(t('notLoadable', { what: info.seems_to_be }), info.problem) : warning(info.problem)]
  }
  const family = info.family ?? t('unknownFamily')
  const list = facts([
    [t('family'), info.family_is_guess ? t('guess', { family }) : family],
    [t('latent'), t('latentValue', { channels: info.latent_channels, factor: info.downscale_factor })],
    [t('scale'), scaling(info)],
    [t('size'), bytes(info.file_size)],
    [t('weights'), t('weightsValue', { millions: (info.parameters / 1e6).toFixed(1), dtype: info.dtype })]
  ])
  if (!info.remarks.length) return [list]
  const summary = el('summary', {}, t('remarks', { count: info.remarks.length }))
  return [list, el('details', { class: 'seamless-note' }, summary, ...info.remarks.map((text) => el('p', {}, text)))]
}

/** @param {FileInfo} info */
function scaling({ scaling_factor: scale, shift_factor: shift }) {
  if (scale === null) return t('batchNorm')
  return shift ? t('scaleShift', { scale, shift }) : String(scale)
}
