// Elements without innerHTML: data only ever becomes text.

const SVG = 'http://www.w3.org/2000/svg'

/**
 * @param {Element} element
 * @param {Record<string, any>} attributes
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
 * @param {Record<string, any>} [attributes]
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
 * @param {Record<string, any>} [attributes]
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
 * @param {Record<string, any>} [attributes]
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
 * Call `act` whenever a picture has come, or is known not to come.
 * @param {HTMLImageElement} image
 * @param {(there: boolean) => void} act
 */
export function whenSettled(image, act) {
  image.addEventListener('load', () => act(true))
  image.addEventListener('error', () => act(false))
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
