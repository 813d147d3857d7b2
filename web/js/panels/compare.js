// Seamless VAE Round Trip: the original beside its reconstruction or the heat map of the error.
import { addressOf } from '../host/images.js'
import { keepImagesInPanel, onOutput } from '../host/outputs.js'
import { button, el, note } from '../ui/dom.js'
import { addPager } from '../ui/pager.js'
import { makeStage } from '../ui/stage.js'
import { t, reported } from '../ui/text.js'
import { addPanel } from './panel.js'

/** @import { File, GraphNode } from '../host/types' */

/** @param {GraphNode} node */
export function addCompare(node) {
  const panel = addPanel(node, 'seamless_compare', { height: 280, width: 320, fill: true, label: t('comparison') })
  const empty = note(t('compareEmpty'))
  const quality = el('p', { class: 'seamless-quality', hidden: true })
  const pixel = el('p', { class: 'seamless-pixel' })
  const stage = makeStage((text) => (pixel.textContent = text))

  /** Originals, then reconstructions, then heat maps. @type {File[]} */
  let files = []
  let shown = 0
  let showError = false
  const draw = () => {
    const [original, reconstruction, error] = [0, 1, 2].map((kind) => files[shown + (kind * files.length) / 3])
    const right = showError ? error : reconstruction
    stage.show(addressOf(original), addressOf(right), t(showError ? 'errorMap' : 'after'), addressOf(reconstruction))
    errorButton.setAttribute('aria-pressed', String(showError))
  }
  const pager = addPager((index) => {
    shown = index
    draw()
  })
  const errorButton = button(t('errorMap'), () => {
    showError = !showError
    draw()
  })
  const controls = el(
    'div',
    { class: 'seamless-row', hidden: true },
    errorButton,
    button('−', () => stage.zoom(-1), { 'aria-label': t('zoomOut') }),
    button('+', () => stage.zoom(1), { 'aria-label': t('zoomIn') }),
    button(t('zoomReset'), () => stage.zoom(0)),
    pager.element
  )
  panel.content.replaceChildren(empty, stage.element, controls, quality, pixel)
  keepImagesInPanel(node, panel)
  onOutput(node, ({ images, text, facts = text }) => {
    if (!images?.length || images.length % 3) return
    files = images
    empty.hidden = true
    controls.hidden = false
    quality.hidden = !facts?.length
    quality.textContent = reported(facts ?? [])
    pager.count(files.length / 3)
  })
  return panel
}
