// Copying, also where the page was not loaded over a secure connection.

/**
 * @param {string} text
 * @throws {Error} where the browser does not allow it
 */
export async function copyText(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text)
  else copyBySelection(text)
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

/**
 * @param {string} address of a PNG
 * @throws {Error} where the browser does not allow it
 */
export async function copyImage(address) {
  const image = fetch(address).then((response) => response.blob())
  await navigator.clipboard.write([new ClipboardItem({ 'image/png': image })])
}
