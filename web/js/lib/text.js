// Texts in the language of the front end. `locales/<language>/main.json` holds the others under "seamlessVae".
import { api, setting } from './host.js'

/** @type {Record<string, string>} */
export const ENGLISH = {
  routeFailed: 'Seamless VAE: the back end does not answer. Restart ComfyUI if the pack was just installed.',
  noAnswer: 'No answer has come.',
  unavailable: 'Not known: the back end does not answer.',
  notYetKnown: 'Not known before the run.',
  followFailed: 'Seamless VAE cannot tell what comes before a node: another node’s code failed.',
  fileInfo: 'What this VAE file is',
  reading: 'Reading the header…',
  family: 'Family',
  unknownFamily: 'none that is known',
  guess: '{family} (a guess)',
  latent: 'Latent',
  latentValue: '{channels} channels, 1/{ratio}',
  scale: 'Scale',
  scaleShift: '{scale}, shift {shift}',
  batchNorm: 'batch norm',
  size: 'Size',
  weights: 'Weights',
  weightsValue: '{millions} M, {dtype}',
  remarks: 'Remarks ({count})',
  notLoadable: 'This file cannot be loaded: it seems to be {what}.',
  plan: 'Plan of the run',
  planning: 'Planning…',
  strips: 'Strips',
  stripsValue: '{strips} in {passes} passes',
  tiles: 'Tiles',
  tilesValue: '{count} ({columns} x {rows})',
  store: 'Store',
  'store.memory': 'memory',
  'store.device': 'device',
  'store.host': 'host',
  'store.file': 'file',
  fileSize: 'File',
  memory: 'Memory',
  free: 'Free',
  memoryTooMuch: 'This needs more memory than is free. Use exact mode with a memory budget.',
  cost: 'Cost',
  costValue: '{cost} x an untiled run',
  costSame: 'that of an untiled run',
  pictureSize: '{width} x {height} from {source}',
  pictureAssumed: '{width} x {height} assumed: the size is not known before the run',
  vaeAssumed: 'Stable Diffusion’s VAE assumed: connect a loader',
  valuesAssumed: 'The usual {names} assumed: links bring what only the run tells',
  lastRun: 'the last run',
  running: 'Progress of the run',
  pass: 'Pass {pass} of {passes}',
  secondsLeft: '{time} left',
  inUse: '{memory} in use',
  cancel: 'Cancel',
  cancelling: 'Cancelling…',
  comparison: 'Before and after',
  compareEmpty: 'Run the workflow to compare the picture with its reconstruction.',
  slider: 'Boundary between the original, at the left, and the reconstruction',
  errorMap: 'Error',
  before: 'Original',
  after: 'Reconstruction',
  lost: 'The picture is no longer there. Run the workflow again.',
  zoomIn: 'Zoom in',
  zoomOut: 'Zoom out',
  zoomReset: 'Fit',
  zoomHint: 'Click, then zoom with the wheel or + and −. Arrow keys move the boundary, 0 fits the picture.',
  pixel: '({x}, {y})  {before} → {after}',
  pictureOf: '{number} / {count}',
  previous: 'Previous picture',
  next: 'Next picture',
  posterior: 'Posterior',
  posteriorEmpty: 'Run the workflow to see mean and standard deviation.',
  inspectEmpty: 'Run the workflow to see what this VAE is.',
  report: 'Report',
  copy: 'Copy',
  copyPicture: 'Copy picture',
  copied: 'Copied',
  copyFailed: 'The browser does not allow copying here. Select the text and copy it by hand.',
  copyPictureFailed: 'The browser does not allow copying pictures here. Save it from its own tab.',
  toSeamless: 'Replace VAE nodes by Seamless VAE',
  toCore: 'Replace Seamless VAE by core VAE nodes',
  thisToSeamless: 'Replace by Seamless VAE',
  thisToCore: 'Replace by the core node',
  replaced: '{count} nodes replaced',
  nothingToReplace: 'There is nothing to replace here.',
  notReplaced: 'Left as they are: {reasons}',
  reasonMissing: '{title} (there is no {type} here)',
  dropped: 'Without a place in the other node: {settings}',
  reasonValue: '{title} (the other node does not offer {value})',
  reasonOutput: '{title} (its output {output} is in use, which the core node lacks)',
  reasonInput: '{title} (its input {input} is in use, which the other node lacks)'
}

/** @type {Record<string, Record<string, string>>} */
let others = {}

/** Fetch the texts of all languages. */
export async function loadTexts() {
  const all = /** @type {Record<string, any>} */ (await api.getCustomNodesI18n())
  others = Object.fromEntries(Object.entries(all ?? {}).map(([language, texts]) => [language, texts?.seamlessVae ?? {}]))
}

/** The front end's language, such as `zh`; English for what names none. */
export function language() {
  const tag = String(setting('Comfy.Locale', 'en')).replaceAll('_', '-')
  try {
    return Intl.getCanonicalLocales(tag)[0] ?? 'en'
  } catch {
    return 'en'
  }
}

/**
 * A text in the front end's language, with `{name}` replaced.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const tag = language()
  const text = others[tag]?.[key] ?? others[tag.split('-')[0]]?.[key] ?? ENGLISH[key] ?? key
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole))
}

const NBSP = '\u00a0' // a number and its unit stay on one line

/** @param {number} size */
export function bytes(size) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1024
    unit += 1
  }
  return `${size.toLocaleString(language(), { maximumFractionDigits: size < 10 && unit > 0 ? 1 : 0 })}${NBSP}${units[unit]}`
}

/** @param {number} seconds */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds))
  const minutes = Math.floor(whole / 60)
  const hours = Math.floor(minutes / 60)
  const parts = hours ? [hours, 'h', minutes % 60, 'min'] : minutes ? [minutes, 'min', whole % 60, 's'] : [whole, 's']
  return parts.join(NBSP)
}
