// Which part of a picture a stage shows: how large, and what lies in its middle. Numbers only.

const LARGEST = 64 // screen pixels for one of the picture

/** @typedef {{width: number, height: number}} Extent */

export class View {
  /** Times the size that fits the stage. */
  zoom = 1
  /** What lies in the middle of the stage, as a share of the picture. */
  x = 0.5
  y = 0.5

  /**
   * @param {() => Extent} stage
   * @param {() => Extent} picture
   */
  constructor(stage, picture) {
    this.stage = stage
    this.picture = picture
  }

  /** Screen pixels for one pixel of the picture. */
  get scale() {
    const stage = this.stage()
    const picture = this.picture()
    return this.zoom * Math.min(stage.width / picture.width, stage.height / picture.height)
  }

  /** Where the picture's corner lies on the stage. */
  get corner() {
    const stage = this.stage()
    const picture = this.picture()
    const scale = this.scale
    return { x: stage.width / 2 - this.x * picture.width * scale, y: stage.height / 2 - this.y * picture.height * scale }
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
    const picture = this.picture()
    const point = about ?? { x: stage.width / 2, y: stage.height / 2 }
    const { x, y } = this.at(point)
    const most = Math.max(1, (LARGEST * this.zoom) / this.scale)
    this.zoom = Math.min(most, Math.max(1, this.zoom * factor))
    if (this.zoom === 1) return this.fit()
    const scale = this.scale
    this.x = (x - (point.x - stage.width / 2) / scale) / picture.width
    this.y = (y - (point.y - stage.height / 2) / scale) / picture.height
    this.keepInside()
  }

  /**
   * @param {number} dx screen pixels
   * @param {number} dy
   */
  moveBy(dx, dy) {
    const picture = this.picture()
    this.x -= dx / this.scale / picture.width
    this.y -= dy / this.scale / picture.height
    this.keepInside()
  }

  keepInside() {
    const stage = this.stage()
    const picture = this.picture()
    /** @param {number} middle @param {number} side @param {number} whole */
    const inside = (middle, side, whole) => {
      const half = Math.min(0.5, side / this.scale / whole / 2)
      return Math.min(1 - half, Math.max(half, middle))
    }
    this.x = inside(this.x, stage.width, picture.width)
    this.y = inside(this.y, stage.height, picture.height)
  }

  /**
   * The place in the picture, in its pixels, at a point of the stage.
   * @param {{x: number, y: number}} point
   */
  at(point) {
    const corner = this.corner
    return { x: (point.x - corner.x) / this.scale, y: (point.y - corner.y) / this.scale }
  }
}
