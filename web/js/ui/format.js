// Numbers with their units, in the language of the front end.
import { language, t } from './text.js'

const NBSP = '\u00a0' // a number and its unit stay on one line

/**
 * Such as `1.5 GiB`: three digits at most.
 * @param {number} size
 */
export function bytes(size) {
  return scaled(size, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB'])
}

/**
 * Such as `10.5 TFLOPs`.
 * @param {number} count
 */
export function flops(count) {
  return scaled(count, 1000, ['FLOPs', 'kFLOPs', 'MFLOPs', 'GFLOPs', 'TFLOPs', 'PFLOPs', 'EFLOPs'])
}

/**
 * @param {number} value
 * @param {number} step from one unit to the next
 * @param {string[]} units
 */
function scaled(value, step, units) {
  let unit = 0
  while (value >= 1000 && unit < units.length - 1) {
    value /= step
    unit += 1
  }
  return `${value.toLocaleString(language(), { maximumFractionDigits: value < 10 && unit > 0 ? 1 : 0 })}${NBSP}${units[unit]}`
}

/**
 * Such as `1 min 15 s`; in whole minutes from ten minutes on.
 * @param {number} seconds
 */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds))
  const minutes = whole < 600 ? Math.floor(whole / 60) : Math.round(whole / 60)
  if (whole < 60) return joined([whole, 'second'])
  if (whole < 600) return joined([minutes, 'minute'], [whole % 60, 'second'])
  if (minutes < 60) return joined([minutes, 'minute'])
  return joined([Math.floor(minutes / 60), 'hour'], [minutes % 60, 'minute'])
}

/** @param {[number, string][]} parts numbers with their units */
function joined(...parts) {
  return parts.flatMap(([number, unit]) => [number, t(`unit.${unit}`)]).join(NBSP)
}
