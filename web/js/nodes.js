// The one table of the pack's nodes: what the web side adds to each, and which core node does the same.
import { addCompare } from './panels/compare.js'
import { addInfo } from './panels/info.js'
import { addPlan } from './panels/plan.js'
import { addPosterior } from './panels/posterior.js'
import { addReport } from './panels/report.js'

/**
 * @import { GraphNode } from './host/types'
 * @import { Panel } from './panels/panel.js'
 * @typedef {object} Entry
 * @property {(node: GraphNode) => Panel} [panel] adds the node's panel
 * @property {boolean} [progress] whether it shows the progress of its run
 * @property {boolean} [defaults] whether a new one starts with the defaults of the settings
 * @property {string} [core] the core node that does the same. `VAEEncodeForInpaint` does not: it paints the masked part
 *   grey
 * @property {Record<string, unknown>} [values] of widgets which that one does not have
 */

/** @type {Record<string, Entry>} */
export const NODES = {
  SeamlessVAELoad: { core: 'VAELoader', panel: addInfo },
  SeamlessVAEEncode: { core: 'VAEEncode', progress: true },
  SeamlessVAEDecode: { core: 'VAEDecode', progress: true },
  SeamlessVAEEncodeTiled: {
    core: 'VAEEncodeTiled',
    panel: (node) => addPlan(node, 'encode'),
    progress: true,
    defaults: true
  },
  SeamlessVAEDecodeTiled: {
    core: 'VAEDecodeTiled',
    panel: (node) => addPlan(node, 'decode'),
    progress: true,
    defaults: true
  },
  SeamlessVAESave: { core: 'VAESave', values: { format: 'single_file' } },
  SeamlessVAESwap: { progress: true },
  SeamlessVAEInpaintEncode: { progress: true },
  SeamlessVAEInpaintComposite: { progress: true },
  SeamlessVAERoundTrip: { panel: addCompare, progress: true },
  SeamlessPosteriorPreview: { panel: addPosterior },
  SeamlessVAEInspect: { panel: (node) => addReport(node, 'inspectEmpty', 190) },
  SeamlessLatentLoad: { panel: (node) => addReport(node, 'loadEmpty', 90) },
  SeamlessLatentSave: { panel: (node) => addReport(node, 'saveEmpty', 70) }
}
