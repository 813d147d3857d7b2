// What can be known of a node's inputs before anything runs: by following links to where a value is chosen.
import { widgetOf } from './node.js'
import { sourceOf, valueOf } from './sources.js'

/**
 * @import { File, GraphNode } from '../host/types'
 * @typedef {{width: number, height: number, batch: number, source: string | null}} Size `source` is the title of the
 *   node that the size comes from
 * @typedef {(file: File) => {width: number, height: number} | null} Measure the size of an image file, if it is known
 */

// Inputs of nodes whose images come out in a size that is not known before the run.
const RESIZERS = ['upscale_model', 'megapixels', 'resolution', 'longer_edge', 'left', 'direction', 'rotation']
const DEPTH = 50 // nodes to pass through at most
// How names of checkpoints are marked in the list of Seamless VAE Load.
const CHECKPOINT_MARK = ' [checkpoint]'

/**
 * What Seamless VAE Load calls the VAE on a node's `vae` input; null if that is not known.
 * @param {GraphNode} node
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
 * The size of the images on a node's input in pixels; null if it is not known.
 * @param {GraphNode} node
 * @param {string} input
 * @param {Measure} measure
 * @param {number} [depth]
 * @returns {Size | null}
 */
export function sizeOf(node, input, measure, depth = 0) {
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
    const same = source.inputs?.find((each) => each.type === type) ?? source.inputs?.find(isImage)
    return same ? sizeOf(source, same.name, measure, depth + 1) : null
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
    const size = measure(inputFile(file))
    return size && { ...size, batch: 1, source: title }
  }
  return before()
}

/** @param {{type?: unknown}} slot */
function isImage(slot) {
  return slot.type === 'IMAGE' || slot.type === 'LATENT'
}

/** Of the images that a node had in its last run. @type {WeakMap<GraphNode, Size>} */
const lastSizes = new WeakMap()

/**
 * @param {GraphNode} node
 * @param {{width: number, height: number, batch: number}} size of the images that it has in the run at work
 */
export function rememberSize(node, { width, height, batch }) {
  if (width > 0 && height > 0 && batch > 0) lastSizes.set(node, { width, height, batch, source: null })
}

/**
 * @param {GraphNode} node
 * @returns {Size | null} of the images that it had in its last run; null if there was none since the graph was opened
 */
export function lastSizeOf(node) {
  return lastSizes.get(node) ?? null
}

/**
 * @param {string} name such as `folder/image.png [input]`
 * @returns {File}
 */
function inputFile(name) {
  const [, path, type] = /^(.*?)(?: \[(\w+)\])?$/.exec(name) ?? []
  const parts = (path ?? name).split('/')
  const filename = parts.pop() ?? ''
  return { filename, subfolder: parts.join('/'), type: type ?? 'input' }
}
