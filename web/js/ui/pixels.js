// The colour of single pixels.

/** @type {CanvasRenderingContext2D | null} */
let context = null

/**
 * @param {HTMLImageElement} image
 * @param {number} x
 * @param {number} y
 * @returns {string} such as `12 255 0`; empty where there is no pixel
 */
export function pixelOf(image, x, y) {
  if (!image.naturalWidth || x < 0 || y < 0 || x >= image.naturalWidth || y >= image.naturalHeight) return ''
  if (!context) {
    const canvas = document.createElement('canvas')
    canvas.width = canvas.height = 1
    context = canvas.getContext('2d', { willReadFrequently: true })
  }
  if (!context) return ''
  context.clearRect(0, 0, 1, 1)
  context.drawImage(image, Math.floor(x), Math.floor(y), 1, 1, 0, 0, 1, 1)
  return [...context.getImageData(0, 0, 1, 1).data.subarray(0, 3)].join(' ')
}
