// Which part of an image a stage shows: how large, and what is in its middle. Numbers only.

const LARGEST = 64 // screen pixels for one of the image

/** @typedef {{width: number, height: number}} Extent */

export class View {
  /** Times the size that fits the stage. */
  zoom = 1
  /** What is in the middle of the stage, as a share of the image. */
  x = 0.5
  y = 0.5

  /**
   * @param {() => Extent} stage
   * @param {() => Extent} image
   */
  constructor(stage, image) {
    this.stage = stage
    this.image = image
  }

  /** Screen pixels for one pixel of the image. */
  get scale() {
    const stage = this.stage()
    const image = this.image()
    return this.zoom * Math.min(stage.width / image.width, stage.height / image.height)
  }

  /** Where the image's corner is on the stage. */
  get corner() {
    const stage = this.stage()
    const image = this.image()
    const scale = this.scale
    return { x: stage.width / 2 - this.x * image.width * scale, y: stage.height / 2 - this.y * image.height * scale }
  }

  fit() {
    this.zoom = 1
    this.x = this.y = 0.5
  }

  /**
   * Zoom about a point of the stage, which stays where it is.
   * @param {number} factor
   * @param {{x: number, y: number}} [about] the middle, if it is left out
   */
  zoomBy(factor, about) {
    const stage = this.stage()
    const image = this.image()
    const point = about ?? { x: stage.width / 2, y: stage.height / 2 }
    const { x, y } = this.at(point)
    const most = Math.max(1, (LARGEST * this.zoom) / this.scale)
    this.zoom = Math.min(most, Math.max(1, this.zoom * factor))
    if (this.zoom === 1) return this.fit()
    const scale = this.scale
    this.x = (x - (point.x - stage.width / 2) / scale) / image.width
    this.y = (y - (point.y - stage.height / 2) / scale) / image.height
    this.keepInside()
  }

  /**
   * @param {number} dx screen pixels
   * @param {number} dy
   */
  moveBy(dx, dy) {
    const image = this.image()
    this.x -= dx / this.scale / image.width
    this.y -= dy / this.scale / image.height
    this.keepInside()
  }

  keepInside() {
    const stage = this.stage()
    const image = this.image()
    /** @param {number} middle @param {number} side @param {number} whole */
    const inside = (middle, side, whole) => {
      const half = Math.min(0.5, side / this.scale / whole / 2)
      return Math.min(1 - half, Math.max(half, middle))
    }
    this.x = inside(this.x, stage.width, image.width)
    this.y = inside(this.y, stage.height, image.height)
  }

  /**
   * The place in the image, in its pixels, at a point of the stage.
   * @param {{x: number, y: number}} point
   */
  at(point) {
    const corner = this.corner
    return { x: (point.x - corner.x) / this.scale, y: (point.y - corner.y) / this.scale }
  }
}
