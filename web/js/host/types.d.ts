// What the pack uses of ComfyUI's front end, old and new. `front_end.js` makes the type checker compare these interfaces
// with the front end's own types; what only one of the releases has is optional.

import type { ComfyExtension } from '@comfyorg/comfyui-frontend-types'

export type Id = string | number

export interface Input {
  name: string
  type: unknown
  link: number | null
}

export interface Output {
  name: string
  type: unknown
  links: number[] | null
}

export interface Link {
  id: number
  origin_id: Id
  origin_slot: number
  target_id: Id
  target_slot: number
  /** The reroute that the link passes through last. */
  parentId?: number
}

export interface WidgetOptions {
  /** The choices of a combo box, or what gives them. */
  values?: unknown
  min?: number
  max?: number
  disabled?: boolean
  hidden?: boolean
}

export interface Widget {
  name: string
  value?: unknown
  options: WidgetOptions
  serialize?: boolean
  disabled?: boolean
  hidden?: boolean
}

export interface SavedNode {
  size: [number, number] | { [index: number]: number }
}

export interface File {
  filename: string
  subfolder: string
  type: string
}

/** What the back end reports, such that it can be translated. */
export type Reported = string | number | ReportFact | Reported[]

/** A text by its key, and what stands in its places. */
export interface ReportFact {
  key: string
  values: Record<string, Reported>
}

/** What a node has put under `ui` in its last run. */
export interface NodeOutput {
  images?: File[]
  text?: string[]
  facts?: Reported[]
}

/** Callbacks of a node that the pack adds to. */
export interface Callbacks {
  onAdded?(graph: unknown): void
  onRemoved?(): void
  onConfigure?(saved: SavedNode): void
  onSerialize?(saved: SavedNode): void
  onExecuted?(output: NodeOutput | null): void
}

export interface GraphNode extends Callbacks {
  id: Id
  type: string
  comfyClass?: string
  title: string
  mode: number
  pos: { [index: number]: number }
  size: { [index: number]: number }
  flags: object
  color?: string
  bgcolor?: string
  shape?: unknown
  inputs: Input[]
  outputs: Output[]
  widgets?: Widget[]
  graph: Graph | null
  /** What a subgraph node shows the inside of. */
  subgraph?: Subgraph
  getInputNode(slot: number): GraphNode | null
  getInputLink(slot: number): Link | null
  connect(slot: number, target: GraphNode, targetSlot: number, reroute?: number): unknown
  computeSize(): { [index: number]: number }
  setSize(size: [number, number]): void
  setDirtyCanvas(front: boolean, back?: boolean): void
}

/** Where links cross the edge of a subgraph. */
export interface Edge {
  id: Id
  slots: EdgeSlot[]
}

export interface EdgeSlot {
  linkIds: number[]
  connect(slot: Input | Output, node: GraphNode, reroute?: number): unknown
}

export interface Graph {
  id: string
  readonly isRootGraph: boolean
  readonly rootGraph: Graph
  readonly nodes: GraphNode[]
  readonly subgraphs: { values(): Iterable<Subgraph> }
  readonly links: { values(): Iterable<Link> }
  readonly inputNode?: Edge
  readonly outputNode?: Edge
  getNodeById(id: Id | null | undefined): GraphNode | null
  getLink(id: number | null | undefined): Link | undefined
  add(node: unknown): unknown
  remove(node: unknown): void
}

export interface Subgraph extends Graph {
  readonly inputNode: Edge
  readonly outputNode: Edge
}

/** A node in Canvas mode or Nodes 2.0, with what `addDOMWidget` and the preview of its images need. */
export interface PanelNode extends GraphNode {
  widgets: PanelWidget[]
  addDOMWidget(name: string, type: string, element: HTMLElement, options: PanelWidgetOptions): PanelWidget
  onDrawBackground?(...drawing: unknown[]): void
  imgs?: unknown
  images?: unknown
}

export interface PanelWidget extends Widget {
  onRemove?(): void
}

export interface PanelWidgetOptions {
  serialize: boolean
  margin: number
  getValue(): string
  setValue(): void
  getMinHeight(): number
  getMaxHeight?(): number
}

export interface Canvas {
  readonly graph: Graph | null
  readonly selectedItems: Set<unknown>
  selected_nodes: Record<Id, GraphNode>
  select(item: unknown): void
  emitBeforeChange(): void
  emitAfterChange(): void
  setDirty(front: boolean, back?: boolean): void
  processMouseWheel(event: WheelEvent): void
}

export interface MenuItem {
  content: string
  callback(): void
}

export interface Command {
  id: string
  icon: string
  label(): string
  function(): void
}

export interface Setting {
  id: string
  category: string[]
  name: string
  tooltip: string
  type: 'boolean' | 'number' | 'combo'
  options?: string[]
  attrs?: Record<string, number>
  defaultValue: unknown
  onChange?(value: unknown): void
}

export interface Extension {
  name: string
  /** Of type `Setting`, cast: the front end's own type allows its own ids alone. */
  settings?: ComfyExtension['settings']
  commands?: Command[]
  init?(): Promise<void> | void
  nodeCreated?(node: GraphNode): void
  /** Called when the user asks for the lists of files to be read again. */
  refreshComboInNodes?(): void
  getCanvasMenuItems?(): (MenuItem | null)[]
  getNodeMenuItems?(node: GraphNode): (MenuItem | null)[]
  [more: string]: unknown
}

export interface Toast {
  severity: 'info' | 'success' | 'warn' | 'error'
  summary: string
  detail?: string
  life: number
}

export interface App {
  /** The old front end has `graph` alone, the new one deprecates it. */
  readonly rootGraph?: Graph
  readonly graph: Graph
  canvas: Canvas
  readonly nodeOutputs: Record<string, unknown>
  extensionManager: { toast: { add(message: Toast): void }; setting: { get(id: string): unknown } }
  registerExtension(extension: Extension): void
}

export interface Api {
  apiURL(path: string): string
  fetchApi(path: string, options?: RequestInit): Promise<Response>
  getCustomNodesI18n(): Promise<unknown>
  addEventListener(name: string, act: (event: Event) => void): void
}

/** The front end's library of graphs, a global of the page. */
export interface LiteGraph {
  createNode(type: string): GraphNode | null
  /** Whether Nodes 2.0 draws the nodes. */
  vueNodesMode?: boolean
}

/** The canvas's class, a global of the page, whose menus older front ends take items from. */
export interface CanvasClass {
  prototype: {
    getCanvasMenuOptions(): (MenuItem | null)[]
    getNodeMenuOptions(node: GraphNode): (MenuItem | null)[]
  }
}
