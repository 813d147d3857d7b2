// Seamless VAE Inspect: its report as text that can be selected and copied.
import { button, el } from '../lib/dom.js'
import { copyText } from '../lib/clipboard.js'
import { onOutput } from '../lib/outputs.js'
import { addPanel } from '../lib/panel.js'
import { t } from '../lib/text.js'

/** @param {import('../lib/host.js').LGraphNode} node */
export function addInspect(node) {
  const panel = addPanel(node, 'seamless_report', { height: 190, width: 320, label: t('report') })
  const report = el('pre', { class: 'seamless-report', tabindex: 0, 'data-capture-wheel': 'true' }, t('inspectEmpty'))
  const copy = button(t('copy'), () => void copyText(report.textContent ?? ''), { hidden: true })
  panel.content.replaceChildren(report, el('div', { class: 'seamless-row seamless-end' }, copy))
  onOutput(node, ({ text }) => {
    if (!text?.length) return
    report.textContent = text.join('\n')
    copy.hidden = false
  })
  return panel
}
