// Settings: what new tiled nodes start with, and whether nodes have panels.
import { widgetOf } from './graph/node.js'
import { setting } from './host/front_end.js'

/** @import { GraphNode, Setting } from './host/types' */

const MODE = 'SeamlessVAE.DefaultMode'
const BUDGET = 'SeamlessVAE.DefaultMemoryBudget'
const PANELS = 'SeamlessVAE.Panels'

/**
 * In English; the host replaces the texts by those of `locales/<language>/settings.json`.
 * @param {(shown: boolean) => void} showPanels
 * @returns {Setting[]}
 */
export function makeSettings(showPanels) {
  return [
    {
      id: MODE,
      category: ['Seamless VAE', 'New nodes', 'Mode'],
      name: 'Mode of new tiled nodes',
      tooltip: 'exact: the same image as the untiled node. blended: conventional overlapping tiles, approximate.',
      type: 'combo',
      options: ['exact', 'blended'],
      defaultValue: 'exact'
    },
    {
      id: BUDGET,
      category: ['Seamless VAE', 'New nodes', 'Memory budget'],
      name: 'Memory budget of new tiled nodes (GiB)',
      tooltip: 'Working memory, not counting the weights, the input and the result. 0 uses what is free.',
      type: 'number',
      attrs: { min: 0, max: 4096, step: 0.05, minFractionDigits: 0, maxFractionDigits: 3 },
      defaultValue: 0
    },
    {
      id: PANELS,
      category: ['Seamless VAE', 'Panels', 'Show'],
      name: 'Show panels in nodes',
      tooltip: 'Details of VAE files, plans of tiled runs, comparisons and reports.',
      type: 'boolean',
      defaultValue: true,
      onChange: (shown) => showPanels(Boolean(shown))
    }
  ]
}

export function panelsShown() {
  return setting(PANELS, true)
}

/**
 * Give a new node the defaults of the settings; the values of a saved workflow come after them and win.
 * @param {GraphNode} node
 */
export function setDefaults(node) {
  for (const [name, id] of [['mode', MODE], ['memory_budget', BUDGET]]) {
    const widget = widgetOf(node, name)
    const value = setting(id, null)
    if (widget && value !== null) widget.value = value
  }
}
