// A node's report, as text that can be selected and copied.
import { onOutput } from '../host/outputs.js'
import { el } from '../ui/dom.js'
import { t, reported } from '../ui/text.js'
import { copyTextButton } from './copy.js'
import { addPanel } from './panel.js'

/**
 * @param {import('../host/types').GraphNode} node
 * @param {string} empty key of the text that is shown before the first run
 * @param {number} height what the usual report needs
 */
export function addReport(node, empty, height) {
  const panel = addPanel(node, 'seamless_report', { height, width: 320, label: t('report') })
  const report = el('pre', { class: 'seamless-report', tabindex: 0, 'data-capture-wheel': 'true' }, t(empty))
  const copy = copyTextButton(() => report.textContent ?? '')
  panel.content.replaceChildren(report, el('div', { class: 'seamless-row seamless-end' }, copy))
  onOutput(node, ({ text, facts = text }) => {
    if (!facts?.length) return
    report.textContent = facts.map(reported).join('\n')
    copy.hidden = false
  })
  return panel
}
