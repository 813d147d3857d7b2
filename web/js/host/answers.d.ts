// What the pack's routes and events carry, as nodes/answers.py declares it. tests/test_web_answers.py
// compares these interfaces with real answers: one property a line, of the types that it knows.

/** The answer of `GET /seamless_vae/info` on a file that cannot be loaded. */
export interface UnusableFile {
  name: string
  problem: string
  seems_to_be: string | null
  container?: string | null
  file_size?: number | null
}

/** The answer of `GET /seamless_vae/info` on a VAE. */
export interface FileInfo {
  name: string
  problem: null
  seems_to_be: null
  container: string | null
  /** Bytes. */
  file_size: number
  family: string | null
  family_is_guess: boolean
  layout: string | null
  prefix: string | null
  parameters: number
  dtype: string
  latent_channels: number
  /** The downscale factor. */
  downscale_factor: number
  scaling_factor: number | null
  shift_factor: number | null
  remarks: string[]
}

/** The question to `POST /seamless_vae/plan`. A widget's value is undefined where it is not known before the run. */
export interface PlanQuestion {
  /** As Seamless VAE Load lists it. */
  name: string | null
  direction: 'encode' | 'decode'
  /** Pixels of the image. */
  width: number
  height: number
  batch: number
  mode: unknown
  tile_size: unknown
  overlap: unknown
  memory_budget: unknown
  circular: unknown
  device: string
  dtype: string
}

/** The answer of `POST /seamless_vae/plan` where no run is possible. */
export interface NoPlan {
  problem: string
  assumed_vae: boolean
}

/** The answer of `POST /seamless_vae/plan`. */
export interface Plan {
  problem: null
  assumed_vae: boolean
  downscale_factor: number
  /** Pixels that the run takes, whole latent pixels. */
  width: number
  height: number
  device: string
  way: 'whole' | 'strips' | 'tiles'
  /** Why this way: the end of a sentence. */
  reason: string
  /** [x, y, width, height] of each in pixels; empty where each pass is cut as suits it, and where there are too many. */
  tiles: [number, number, number, number][]
  count: number
  columns: number
  rows: number
  passes: number
  strips: number
  places: Places
  peak_bytes: number
  free_bytes: number | null
  /** FLOPs as a multiple of an untiled run's. */
  cost: number
  flops: number
  /** By the last runs on this machine; null as long as there were none of the kind. */
  seconds: Seconds | null
}

/** Bytes of feature maps, by where they are kept. */
export interface Places {
  device: number
  cpu: number
  disk: number
}

/** How long a run will take: likely, and from `low` to `high`. */
export interface Seconds {
  likely: number
  low: number
  high: number
}

/** The event `seamless_vae.status`. */
export interface Status {
  node: string | null
  /** FLOPs, as `total`. */
  done: number
  total: number
  pass: number
  passes: number
  /** Bytes of the device in use. */
  memory: number | null
  seconds_left: number | null
  /** Of the images that come in or out, in pixels. */
  width: number
  height: number
  batch: number
}
