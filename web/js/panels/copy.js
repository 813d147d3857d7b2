// Buttons that copy, and say whether it worked.
import { toast } from '../host/front_end.js'
import { copyImage, copyText } from '../ui/clipboard.js'
import { button } from '../ui/dom.js'
import { t } from '../ui/text.js'

/**
 * @param {() => string} text
 */
export function copyTextButton(text) {
  const copy = () =>
    copyText(text()).then(
      () => toast('success', t('copied')),
      () => toast('warn', t('copyFailed'))
    )
  return button(t('copy'), () => void copy(), { hidden: true })
}

/**
 * @param {() => string} address of a PNG
 */
export function copyImageButton(address) {
  const copy = () =>
    copyImage(address()).then(
      () => toast('success', t('copied')),
      () => {
        toast('warn', t('copyImageFailed'))
        window.open(address(), '_blank', 'noopener')
      }
    )
  return button(t('copyImage'), () => void copy(), { hidden: true })
}
