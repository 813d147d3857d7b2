// Seamless VAE in the front end. Everything is wired up here; the other modules only define.
import { chain } from './graph/node.js'
import { onFault, renew } from './graph/watch.js'
import { api, app, setting, toastOnce } from './host/front_end.js'
import { renewWithRuns } from './host/images.js'
import { addToOldMenus } from './host/menus.js'
import { ENDS, on } from './host/runs.js'
import { canvasItems, commands, nodeItems } from './menus.js'
import { NODES } from './nodes.js'
import { addRunning, showRuns } from './panels/running.js'
import { makeSettings, panelsShown, setDefaults } from './settings.js'
import { addStyle } from './ui/dom.js'
import { t, useLanguage, useTexts } from './ui/text.js'

/**
 * @import { Extension } from './host/types'
 * @import { Panel } from './panels/panel.js'
 */

/** Of nodes that are in a graph. @type {Set<Panel>} */
const panels = new Set()

/** @param {boolean} shown */
function showPanels(shown) {
  for (const panel of panels) panel.show(shown)
}

async function loadTexts() {
  useTexts(await api.getCustomNodesI18n().catch(() => ({}))) // English remains
}

app.registerExtension({
  name: 'SeamlessVAE',
  settings: /** @type {Extension['settings']} */ (makeSettings(showPanels)),
  commands,
  getCanvasMenuItems: canvasItems,
  getNodeMenuItems: nodeItems,
  refreshComboInNodes: renew, // files may have come and gone
  async init() {
    useLanguage(() => String(setting('Comfy.Locale', 'en')))
    onFault((error) => toastOnce('watch', t('followFailed'), String(error)))
    for (const name of ENDS) on(name, renew) // a run changes what is free, and may write files
    renewWithRuns()
    addToOldMenus(canvasItems, nodeItems)
    showRuns()
    await Promise.all([addStyle(), loadTexts()])
  },
  nodeCreated(node) {
    const { panel: addPanel, progress, defaults } = NODES[String(node.comfyClass ?? node.type)] ?? {}
    if (defaults) setDefaults(node)
    const panel = addPanel?.(node)
    if (panel) {
      panel.show(panelsShown())
      chain(node, 'onAdded', () => {
        panels.add(panel)
        panel.show(panelsShown())
      })
      chain(node, 'onRemoved', () => panels.delete(panel))
    }
    if (progress) addRunning(node)
  }
})
