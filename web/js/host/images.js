// Images of the back end: their addresses and sizes.
import { api } from './front_end.js'
import { on } from './runs.js'

/** @import { File } from './types' */

/** @param {File} file */
export function addressOf({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/** @type {Map<string, {size: {width: number, height: number} | null, run: number}>} */
const sizes = new Map()
let run = 0

/** Measure every image again after the start and the end of a run, which may write files again under their old names. */
export function renewWithRuns() {
  for (const name of ['execution_start', 'execution_success']) on(name, () => (run += 1))
}

/**
 * The size of an image in pixels; null until it is loaded, and if it cannot be.
 * @param {File} file
 */
export function sizeOfFile(file) {
  const address = addressOf(file)
  const known = sizes.get(address)
  if (known?.run === run) return known.size
  const entry = { size: known?.size ?? null, run }
  sizes.set(address, entry)
  const image = new Image()
  image.onload = () => (entry.size = { width: image.naturalWidth, height: image.naturalHeight })
  image.onerror = () => (entry.size = null)
  image.src = `${address}&run=${run}`
  return entry.size
}
