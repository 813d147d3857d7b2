// Copying, also where the page was not loaded over a secure connection.
import { toast } from './host.js'
import { t } from './text.js'

/** @param {string} text */
export async function copyText(text) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text)
    else copyBySelection(text)
    toast('success', t('copied'))
  } catch {
    toast('warn', t('copyFailed'))
  }
}

/** @param {string} text */
function copyBySelection(text) {
  const area = document.createElement('textarea')
  area.value = text
  area.style.position = 'fixed'
  document.body.append(area)
  area.select()
  const done = document.execCommand('copy')
  area.remove()
  if (!done) throw new Error('copying is not allowed')
}

/** @param {string} address of a PNG */
export async function copyPicture(address) {
  try {
    const picture = fetch(address).then((response) => response.blob())
    await navigator.clipboard.write([new ClipboardItem({ 'image/png': picture })])
    toast('success', t('copied'))
  } catch {
    toast('warn', t('copyPictureFailed'))
    window.open(address, '_blank', 'noopener')
  }
}
