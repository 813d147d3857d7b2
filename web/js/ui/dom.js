// Elements without innerHTML: data only ever becomes text.

/** @typedef {Record<string, string | number | boolean | null | undefined>} Attributes null and false leave one out */

const SVG = 'http://www.w3.org/2000/svg'

/**
 * @param {Element} element
 * @param {Attributes} attributes
 */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name)
    else element.setAttribute(name, value === true ? '' : String(value))
  }
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes]
 * @param {...(Node | string | null | undefined)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  set(element, attributes)
  element.append(...children.filter((child) => child !== null && child !== undefined))
  return element
}

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes]
 * @param {...Node} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag)
  set(element, attributes)
  element.append(...children)
  return element
}

/**
 * A button that does not take the pointer away from the graph for longer than a click.
 * @param {string} text
 * @param {() => void} act
 * @param {Attributes} [attributes]
 */
export function button(text, act, attributes = {}) {
  const element = el('button', { type: 'button', class: 'seamless-button', ...attributes }, text)
  element.addEventListener('click', (event) => {
    event.stopPropagation()
    act()
  })
  return element
}

/**
 * A list of names and values.
 * @param {[string, string][]} rows
 */
export function facts(rows) {
  return el(
    'dl',
    { class: 'seamless-facts' },
    ...rows.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', { title: value }, value)))
  )
}

/**
 * Call `act` whenever an image has come, or is known not to come.
 * @param {HTMLImageElement} image
 * @param {(there: boolean) => void} act
 */
export function whenSettled(image, act) {
  image.addEventListener('load', () => act(true))
  image.addEventListener('error', () => act(false))
}

/** @param {string} text */
export function note(text) {
  return el('p', { class: 'seamless-note' }, text)
}

/** @param {string[]} lines */
export function warning(...lines) {
  return el('div', { class: 'seamless-warning', role: 'alert' }, ...lines.map((line) => el('p', {}, line)))
}

/**
 * Whether the wheel belongs to the element under the pointer and not to the graph: where that asks for it, and has been
 * clicked. Nodes 2.0 does the same by this attribute.
 * @param {Event} event
 */
export function capturesWheel(event) {
  const asks = event.target instanceof Element ? event.target.closest('[data-capture-wheel="true"]') : null
  return Boolean(asks?.contains(document.activeElement))
}

/**
 * Put the style sheet into the page.
 * @returns {Promise<unknown>} when it is there, or cannot be had
 */
export function addStyle() {
  const href = new URL('../../css/seamless.css', import.meta.url).href
  const link = el('link', { rel: 'stylesheet', href })
  document.head.append(link)
  return new Promise((resolve) => (link.onload = link.onerror = resolve))
}
