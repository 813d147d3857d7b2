// Two images in one place, with a boundary between them that can be moved, zoom, and pixel values.
import { capturesWheel, el, whenSettled } from './dom.js'
import { pixelOf } from './pixels.js'
import { t } from './text.js'
import { View } from './view.js'

const ZOOM_STEP = 1.25
const PAN_STEP = 40 // screen pixels
const SHARP_FROM = 2 // screen pixels for one of the image

/** @param {(text: string) => void} showPixel shows what is under the pointer; the text is empty where nothing is */
export function makeStage(showPixel) {
  const before = el('img', { alt: t('before'), draggable: 'false' })
  const after = el('img', { alt: t('after'), draggable: 'false' })
  const beforeTag = el('span', { class: 'seamless-tag seamless-left' }, t('before'))
  const afterTag = el('span', { class: 'seamless-tag seamless-right' }, t('after'))
  const bottom = el('div', { class: 'seamless-layer' }, before)
  const top = el('div', { class: 'seamless-layer' }, after)
  const lost = el('p', { class: 'seamless-lost', hidden: true }, t('lost'))
  const measured = new Image() // what is compared with `before`, pixel by pixel
  const handle = el('div', {
    class: 'seamless-handle',
    role: 'slider',
    tabindex: 0,
    title: t('zoomHint'),
    'aria-label': t('slider'),
    'aria-valuemin': 0,
    'aria-valuemax': 100
  })
  const element = el(
    'div',
    { class: 'seamless-stage', 'data-capture-wheel': 'true', hidden: true },
    bottom,
    top,
    beforeTag,
    afterTag,
    lost,
    handle
  )
  let at = 50 // percent of the stage
  const view = new View(
    () => ({ width: element.clientWidth || 1, height: element.clientHeight || 1 }),
    () => ({ width: before.naturalWidth || 1, height: before.naturalHeight || 1 })
  )

  function draw() {
    const { x, y } = view.corner
    for (const image of [before, after]) {
      image.style.transform = `translate(${x}px, ${y}px) scale(${view.scale})`
      image.style.imageRendering = view.scale * devicePixelRatio >= SHARP_FROM ? 'pixelated' : 'auto'
    }
    top.style.clipPath = `inset(0 0 0 ${at}%)`
    handle.style.left = `${at}%`
    handle.setAttribute('aria-valuenow', String(Math.round(at)))
    handle.setAttribute('aria-valuetext', `${Math.round(at)} %`)
  }

  /** @param {number} percent */
  function moveTo(percent) {
    at = Math.min(100, Math.max(0, percent))
    draw()
  }

  /**
   * The pointer on the stage, in the stage's own pixels: the graph's zoom scales the page.
   * @param {MouseEvent} event
   */
  function pointOf(event) {
    const box = element.getBoundingClientRect()
    const shrunk = element.clientWidth / box.width
    return { x: (event.clientX - box.left) * shrunk, y: (event.clientY - box.top) * shrunk }
  }

  /** @param {{x: number, y: number}} point */
  function readPixel(point) {
    const { x, y } = view.at(point)
    const colours = { before: pixelOf(before, x, y), after: pixelOf(measured, x, y) }
    showPixel(colours.before && t('pixel', { x: Math.floor(x), y: Math.floor(y), ...colours }))
  }

  /** @type {((point: {x: number, y: number}) => void) | null} */
  let drag = null
  element.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return
    event.stopPropagation()
    handle.focus({ preventScroll: true })
    element.setPointerCapture(event.pointerId)
    const slide = (/** @type {{x: number}} */ { x }) => moveTo((100 * x) / element.clientWidth)
    if (view.zoom === 1 || event.target === handle) {
      drag = slide
      drag(pointOf(event))
    } else {
      let last = pointOf(event)
      drag = (point) => {
        view.moveBy(point.x - last.x, point.y - last.y)
        last = point
        draw()
      }
    }
  })
  element.addEventListener('pointermove', (event) => {
    const point = pointOf(event)
    drag?.(point)
    readPixel(point)
  })
  for (const name of ['pointerup', 'pointercancel']) element.addEventListener(name, () => (drag = null))
  element.addEventListener('pointerleave', () => showPixel(''))
  element.addEventListener('dblclick', () => zoom(0))
  element.addEventListener(
    'wheel',
    (event) => {
      if (!capturesWheel(event)) return
      event.preventDefault()
      event.stopPropagation()
      view.zoomBy(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, pointOf(event))
      draw()
      readPixel(pointOf(event))
    },
    { passive: false }
  )

  /** @param {number} steps 0 fits the image */
  function zoom(steps) {
    if (steps === 0) view.fit()
    else view.zoomBy(ZOOM_STEP ** (2 * steps))
    draw()
  }

  /** @type {Record<string, (event: KeyboardEvent) => void>} */
  const keys = {
    ArrowLeft: (event) => (event.altKey ? pan(PAN_STEP, 0) : moveTo(at - (event.shiftKey ? 10 : 1))),
    ArrowRight: (event) => (event.altKey ? pan(-PAN_STEP, 0) : moveTo(at + (event.shiftKey ? 10 : 1))),
    ArrowUp: () => pan(0, PAN_STEP),
    ArrowDown: () => pan(0, -PAN_STEP),
    PageDown: () => moveTo(at - 10),
    PageUp: () => moveTo(at + 10),
    Home: () => moveTo(0),
    End: () => moveTo(100),
    '+': () => zoom(1),
    '=': () => zoom(1),
    '-': () => zoom(-1),
    0: () => zoom(0)
  }
  /** @param {number} dx @param {number} dy */
  function pan(dx, dy) {
    view.moveBy(dx, dy)
    draw()
  }
  handle.addEventListener('keydown', (event) => {
    const act = event.ctrlKey || event.metaKey ? undefined : keys[event.key]
    if (!act) return
    event.preventDefault()
    event.stopPropagation()
    act(event)
  })

  for (const image of [before, after]) {
    whenSettled(image, (there) => {
      image.hidden = !there
      bottom.hidden = top.hidden = before.hidden || after.hidden // one alone would pass for both
      lost.hidden = !bottom.hidden
      draw()
    })
  }
  new ResizeObserver(draw).observe(element)

  return {
    element,
    zoom,
    /**
     * @param {string} left address of an image
     * @param {string} right
     * @param {string} name of the one at the right
     * @param {string} [values] the image whose pixels are shown beside those of the left one, if it is another
     */
    show(left, right, name, values = right) {
      element.hidden = false
      before.src = left
      after.src = right
      measured.src = values
      after.alt = afterTag.textContent = name
      draw()
    }
  }
}
