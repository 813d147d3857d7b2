// Seamless Posterior Preview: mean and standard deviation, image by image.
import { addressOf } from '../host/images.js'
import { keepImagesInPanel, onOutput } from '../host/outputs.js'
import { el, note, whenSettled } from '../ui/dom.js'
import { addPager } from '../ui/pager.js'
import { t } from '../ui/text.js'
import { copyImageButton } from './copy.js'
import { addPanel } from './panel.js'

/** @import { File, GraphNode } from '../host/types' */

/** @param {GraphNode} node */
export function addPosterior(node) {
  const panel = addPanel(node, 'seamless_posterior', { height: 200, width: 320, fill: true, label: t('posterior') })
  const image = el('img', { class: 'seamless-image', alt: t('posterior'), draggable: 'false', hidden: true })
  const empty = note(t('posteriorEmpty'))
  const lost = note(t('lost'))
  const copy = copyImageButton(() => image.src)
  lost.hidden = true
  /** @type {File[]} */
  let files = []
  const pager = addPager((index) => (image.src = addressOf(files[index])))
  whenSettled(image, (there) => {
    image.hidden = copy.hidden = !there
    lost.hidden = there
  })
  panel.content.replaceChildren(empty, lost, image, el('div', { class: 'seamless-row seamless-end' }, pager.element, copy))
  keepImagesInPanel(node, panel)
  onOutput(node, ({ images }) => {
    if (!images?.length) return
    files = images
    pager.count(files.length)
    empty.hidden = true
  })
  return panel
}
