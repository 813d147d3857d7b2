// What the back end says of a node at work, and the end of it.
import { api } from './front_end.js'

/** @import { Status } from './answers' */

/** Events of the host after which nothing that was at work before is so still. */
export const ENDS = ['execution_success', 'execution_error', 'execution_interrupted', 'reconnected']

/** The run at work, if its start was seen. @type {string | null} */
let prompt = null

/**
 * @template T
 * @param {string} name of an event of the back end
 * @param {(detail: T) => void} act
 */
export function on(name, act) {
  api.addEventListener(name, (event) => act(/** @type {CustomEvent<T>} */ (event).detail))
}

/**
 * Listen to every run.
 * @param {(status: Status) => void} onStatus
 * @param {(hasEnded: (node: string) => boolean) => void} onEnd gets a test of which nodes are no longer at work
 */
export function listen(onStatus, onEnd) {
  const everyNode = () => true
  on('seamless_vae.status', onStatus)
  on('execution_start', (/** @type {{prompt_id?: string} | null} */ detail) => {
    prompt = detail?.prompt_id ?? null
    onEnd(everyNode)
  })
  on('executed', (/** @type {{node?: string} | null} */ detail) => onEnd((node) => node === String(detail?.node)))
  for (const name of ENDS) {
    on(name, () => {
      prompt = null // the start of the next may be missed
      onEnd(everyNode)
    })
  }
  on('executing', (/** @type {{node?: string} | string | null} */ detail) => {
    const now = String(typeof detail === 'object' ? detail?.node : detail)
    onEnd((node) => node !== now)
  })
}

/**
 * Stop the run that is at work.
 * @throws {Error} if the back end cannot be reached; the host's own `interrupt` keeps that to itself
 */
export async function cancel() {
  const body = prompt === null ? {} : { prompt_id: prompt }
  const headers = { 'Content-Type': 'application/json' }
  const response = await api.fetchApi('/interrupt', { method: 'POST', headers, body: JSON.stringify(body) })
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`)
}
