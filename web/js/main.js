// Seamless VAE in the front end. Everything is wired up here; the other modules only define.
import { addStyle } from './lib/dom.js'
import { app, chain } from './lib/host.js'
import { loadTexts } from './lib/text.js'
import { renew } from './lib/watch.js'
import { addToOldMenus, canvasItems, commands, nodeItems } from './menus.js'
import { addCompare } from './panels/compare.js'
import { addInspect } from './panels/inspect.js'
import { addPlan } from './panels/plan.js'
import { addPosterior } from './panels/posterior.js'
import { addRunning, showRuns } from './panels/running.js'
import { addVaeInfo } from './panels/vae_info.js'
import { makeSettings, panelsShown, setDefaults } from './settings.js'

/**
 * @typedef {import('./lib/host.js').LGraphNode} LGraphNode
 * @typedef {import('./lib/panel.js').Panel} Panel
 */

/** @type {Record<string, (node: LGraphNode) => Panel>} */
const PANELS = {
  SeamlessVAELoad: addVaeInfo,
  SeamlessVAEEncodeTiled: (node) => addPlan(node, 'encode'),
  SeamlessVAEDecodeTiled: (node) => addPlan(node, 'decode'),
  SeamlessVAERoundTrip: addCompare,
  SeamlessPosteriorPreview: addPosterior,
  SeamlessVAEInspect: addInspect
}
const LONG = new Set([
  'SeamlessVAEEncode',
  'SeamlessVAEDecode',
  'SeamlessVAEEncodeTiled',
  'SeamlessVAEDecodeTiled',
  'SeamlessVAESwap',
  'SeamlessVAEInpaintEncode',
  'SeamlessVAERoundTrip'
])
const WITH_DEFAULTS = new Set(['SeamlessVAEEncodeTiled', 'SeamlessVAEDecodeTiled'])

/** Of nodes that are in a graph. @type {Set<Panel>} */
const panels = new Set()

/** @param {boolean} shown */
function showPanels(shown) {
  for (const panel of panels) panel.show(shown)
}

app.registerExtension({
  name: 'SeamlessVAE',
  settings: /** @type {any} */ (makeSettings(showPanels)),
  commands,
  getCanvasMenuItems: canvasItems,
  getNodeMenuItems: nodeItems,
  refreshComboInNodes: renew, // files may have come and gone
  async init() {
    addToOldMenus()
    showRuns()
    await Promise.all([addStyle(), loadTexts().catch(() => {})]) // English remains
  },
  nodeCreated(node) {
    const type = String(node.comfyClass ?? node.type)
    if (WITH_DEFAULTS.has(type)) setDefaults(node)
    const panel = PANELS[type]?.(node)
    if (panel) {
      panel.show(panelsShown())
      chain(node, 'onAdded', () => {
        panels.add(panel)
        panel.show(panelsShown())
      })
      chain(node, 'onRemoved', () => panels.delete(panel))
    }
    if (LONG.has(type)) addRunning(node)
  }
})
