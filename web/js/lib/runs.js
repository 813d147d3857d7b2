// What the back end says of a node at work, and the end of it.
import { api } from './host.js'

/**
 * @typedef {object} Status
 * @property {string | number} node
 * @property {number} done
 * @property {number} total
 * @property {number} [pass]
 * @property {number} [passes]
 * @property {number | null} [memory] bytes
 * @property {number | null} [seconds_left]
 */

/** Events of the host after which nothing that was at work before is so still. */
export const ENDS = ['execution_success', 'execution_error', 'execution_interrupted', 'reconnected']

/** The run at work, if its start was seen. @type {string | null} */
let prompt = null

/**
 * Listen to every run.
 * @param {(status: Status) => void} onStatus
 * @param {(hasEnded: (node: string) => boolean) => void} onEnd told which nodes are no longer at work
 */
export function listen(onStatus, onEnd) {
  const everyNode = () => true
  /** @param {string} name @param {(detail: any) => void} act */
  const on = (name, act) =>
    api.addEventListener(/** @type {any} */ (name), (/** @type {any} */ event) => act(event.detail))
  on('seamless_vae.status', onStatus)
  on('execution_start', (detail) => {
    prompt = detail?.prompt_id ?? null
    onEnd(everyNode)
  })
  on('executed', (detail) => onEnd((node) => node === String(detail?.node)))
  for (const name of ENDS) {
    on(name, () => {
      prompt = null // the start of the next may be missed
      onEnd(everyNode)
    })
  }
  on('executing', (detail) => {
    const now = String(typeof detail === 'object' ? detail?.node : detail)
    onEnd((node) => node !== now)
  })
}

/**
 * Stop the run that is at work.
 * @throws {Error} if the back end cannot be told; the host's own `interrupt` keeps that to itself
 */
export async function cancel() {
  const body = prompt === null ? {} : { prompt_id: prompt }
  const headers = { 'Content-Type': 'application/json' }
  const response = await api.fetchApi('/interrupt', { method: 'POST', headers, body: JSON.stringify(body) })
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`)
}
