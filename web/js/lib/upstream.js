// What can be known of a node's inputs before anything runs: by following links to where a value is chosen.
import { api, outputsOf, widgetOf } from './host.js'
import { sourceOf, valueOf } from './sources.js'

/**
 * @typedef {import('./host.js').LGraphNode} LGraphNode
 * @typedef {{width: number, height: number, batch: number, source: string | null}} Size
 */

// Inputs of nodes whose pictures come out in a size that only the run tells.
const RESIZERS = ['upscale_model', 'megapixels', 'resolution', 'longer_edge', 'left', 'direction', 'rotation']
const DEPTH = 50 // nodes to pass through at most
// How names of checkpoints are marked in the list of Seamless VAE Load.
const CHECKPOINT_MARK = ' [checkpoint]'

/**
 * What Seamless VAE Load calls the VAE on a node's `vae` input; null if that is not known.
 * @param {LGraphNode} node
 * @returns {{name: string | null, device: string, dtype: string}}
 */
export function vaeOf(node) {
  const source = sourceOf(node, 'vae')?.node
  /** @param {string} widget */
  const value = (widget) => (source ? valueOf(source, widget) : undefined)
  const name = value('vae_name')
  const checkpoint = value('ckpt_name')
  return {
    name: typeof name === 'string' ? name : typeof checkpoint === 'string' ? checkpoint + CHECKPOINT_MARK : null,
    device: String(value('device') ?? 'auto'),
    dtype: String(value('dtype') ?? 'auto')
  }
}

/**
 * The size of the pictures on a node's input in pixels; null if it is not known.
 * @param {LGraphNode} node
 * @param {string} input
 * @param {number} [depth]
 * @returns {Size | null}
 */
export function sizeOf(node, input, depth = 0) {
  const found = sourceOf(node, input, depth)
  if (!found || depth > DEPTH) return null
  const { node: source, slot } = found
  const type = source.outputs?.[slot]?.type
  const title = source.title || String(source.type)
  /** @param {string} name */
  const number = (name) => {
    const value = valueOf(source, name)
    return typeof value === 'number' ? value : null
  }
  /** @param {string} name */
  const has = (name) => widgetOf(source, name) !== undefined || source.inputs?.some((each) => each.name === name)
  const before = () => {
    const same = source.inputs?.find((each) => each.type === type) ?? source.inputs?.find(isPicture)
    return same ? sizeOf(source, same.name, depth + 1) : null
  }
  const width = number('width')
  const height = number('height')
  if (width && height) return { width, height, batch: number('batch_size') ?? before()?.batch ?? 1, source: title }
  if (has('width') && has('height')) return null // 0 keeps the proportions, a link may bring any size
  const factor = number('scale_by')
  if (factor) {
    const size = before()
    return size && { ...size, width: Math.round(size.width * factor), height: Math.round(size.height * factor), source: title }
  }
  if (has('scale_by') || RESIZERS.some(has)) return null
  const file = valueOf(source, 'image')
  if (typeof file === 'string' && source.outputs?.[0]?.type === 'IMAGE') {
    const size = sizeOfFile(inputFile(file))
    return size && { ...size, batch: 1, source: title }
  }
  return before()
}

/** @param {{type?: unknown}} slot */
function isPicture(slot) {
  return slot.type === 'IMAGE' || slot.type === 'LATENT'
}

/**
 * The size of what a node gave out in its last run, where a node that shows pictures comes after it.
 * @param {LGraphNode} node
 * @returns {Size | null}
 */
export function lastSizeOf(node) {
  for (const output of node.outputs ?? []) {
    if (output.type !== 'IMAGE') continue
    for (const id of output.links ?? []) {
      const link = node.graph?.getLink?.(id) ?? node.graph?.links?.get?.(id)
      const target = link ? node.graph?.getNodeById(link.target_id) : null
      const images = target ? outputsOf(target)?.images : null
      if (!images?.length) continue
      const size = sizeOfFile(new URLSearchParams(images[0]).toString())
      if (size) return { ...size, batch: images.length, source: null }
    }
  }
  return null
}

/** @param {string} name such as `folder/picture.png [input]` */
function inputFile(name) {
  const [, path, type] = /^(.*?)(?: \[(\w+)\])?$/.exec(name) ?? []
  const parts = (path ?? name).split('/')
  const filename = parts.pop() ?? ''
  return new URLSearchParams({ filename, subfolder: parts.join('/'), type: type ?? 'input' }).toString()
}

/** @type {Map<string, {size: {width: number, height: number} | null, run: number}>} */
const sizes = new Map()
let run = 0
// A run may write files anew under their old names.
for (const name of ['execution_start', 'execution_success']) api.addEventListener(/** @type {any} */ (name), () => (run += 1))

/**
 * The size of a picture of the back end, looked up again with every run; null until it is loaded, and if it cannot be.
 * @param {string} query of `/view`
 */
function sizeOfFile(query) {
  const known = sizes.get(query)
  if (known?.run === run) return known.size
  const entry = { size: known?.size ?? null, run }
  sizes.set(query, entry)
  const image = new Image()
  image.onload = () => (entry.size = { width: image.naturalWidth, height: image.naturalHeight })
  image.onerror = () => (entry.size = null)
  image.src = api.apiURL(`/view?${query}&run=${run}`)
  return entry.size
}
