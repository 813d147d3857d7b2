// Seamless Posterior Preview: mean and standard deviation, picture by picture.
import { copyPicture } from '../lib/clipboard.js'
import { button, el, whenSettled } from '../lib/dom.js'
import { addressOf, keepPicturesInPanel, onOutput } from '../lib/outputs.js'
import { addPanel } from '../lib/panel.js'
import { addPager } from '../lib/pager.js'
import { t } from '../lib/text.js'

/** @param {import('../lib/host.js').LGraphNode} node */
export function addPosterior(node) {
  const panel = addPanel(node, 'seamless_posterior', { height: 200, width: 320, fill: true, label: t('posterior') })
  const picture = el('img', { class: 'seamless-picture', alt: t('posterior'), draggable: 'false', hidden: true })
  const empty = el('p', { class: 'seamless-note' }, t('posteriorEmpty'))
  const lost = el('p', { class: 'seamless-note', hidden: true }, t('lost'))
  const copy = button(t('copyPicture'), () => void copyPicture(picture.src), { hidden: true })
  /** @type {import('../lib/outputs.js').File[]} */
  let files = []
  const pager = addPager((index) => (picture.src = addressOf(files[index])))
  whenSettled(picture, (there) => {
    picture.hidden = copy.hidden = !there
    lost.hidden = there
  })
  panel.content.replaceChildren(empty, lost, picture, el('div', { class: 'seamless-row seamless-end' }, pager.element, copy))
  keepPicturesInPanel(node, panel)
  onOutput(node, ({ images }) => {
    if (!images?.length) return
    files = images
    pager.count(files.length)
    empty.hidden = true
  })
  return panel
}
