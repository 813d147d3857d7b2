// One of several images: a number between two buttons, which is there only if there are several.
import { button, el } from './dom.js'
import { t } from './text.js'

/** @param {(index: number) => void} show */
export function addPager(show) {
  let index = 0
  let total = 0
  const label = el('span', { 'aria-live': 'polite' })
  /** @param {number} to */
  const go = (to) => {
    index = (to + total) % total
    label.textContent = t('imageOf', { number: index + 1, count: total })
    show(index)
  }
  const element = el(
    'span',
    { class: 'seamless-pager', hidden: true },
    button('‹', () => go(index - 1), { 'aria-label': t('previous') }),
    label,
    button('›', () => go(index + 1), { 'aria-label': t('next') })
  )
  return {
    element,
    /** @param {number} count images from now on, of which the first is shown */
    count(count) {
      total = count
      element.hidden = count < 2
      go(0)
    }
  }
}
