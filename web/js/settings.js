// Settings: what new tiled nodes start with, and whether nodes have panels.
import { setting, widgetOf } from './lib/host.js'

/** @typedef {import('./lib/host.js').LGraphNode} LGraphNode */

const MODE = 'SeamlessVAE.DefaultMode'
const BUDGET = 'SeamlessVAE.DefaultMemoryBudget'
const PANELS = 'SeamlessVAE.Panels'

/** @param {(shown: boolean) => void} showPanels */
export function makeSettings(showPanels) {
  return [
    {
      id: MODE,
      category: ['Seamless VAE', 'New nodes', 'Mode'],
      name: 'Mode of new tiled nodes',
      tooltip: 'exact gives the picture of the untiled node; blended is the usual overlapping tiles.',
      type: 'combo',
      options: ['exact', 'blended'],
      defaultValue: 'exact'
    },
    {
      id: BUDGET,
      category: ['Seamless VAE', 'New nodes', 'Memory budget'],
      name: 'Memory budget of new tiled nodes (GiB)',
      tooltip: 'Working memory beside the weights, the input and the result. 0 takes what is free.',
      type: 'number',
      attrs: { min: 0, max: 4096, step: 0.05, minFractionDigits: 0, maxFractionDigits: 3 },
      defaultValue: 0
    },
    {
      id: PANELS,
      category: ['Seamless VAE', 'Panels', 'Show'],
      name: 'Show previews in the nodes',
      tooltip: 'What a VAE file is, the plan of a tiled run, and comparisons.',
      type: 'boolean',
      defaultValue: true,
      onChange: showPanels
    }
  ]
}

export function panelsShown() {
  return Boolean(setting(PANELS, true))
}

/**
 * Give a new node what the settings say; what a saved workflow holds comes after it and wins.
 * @param {LGraphNode} node
 */
export function setDefaults(node) {
  for (const [name, id] of [['mode', MODE], ['memory_budget', BUDGET]]) {
    const widget = widgetOf(node, name)
    const value = setting(id, null)
    if (widget && value !== null) widget.value = /** @type {any} */ (value)
  }
}
