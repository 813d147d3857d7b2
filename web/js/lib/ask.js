// Questions to the pack's routes: the latest counts, and a failure is said once.
import { api, forget, toastOnce } from './host.js'
import { t } from './text.js'

const FAILED = 'route'

/**
 * @template T
 * @typedef {(path: string, body: unknown, use: (answer: T | null) => void) => Promise<void>} Ask
 */

/**
 * Something that asks, one question at a time: an answer to any but the latest is dropped.
 * @template T
 * @param {HTMLElement} place where the answer is shown; it is marked as busy, and so dimmed, until it comes
 * @returns {Ask<T>}
 */
export function asker(place) {
  /** @type {AbortController | null} */
  let current = null
  return async (path, body, use) => {
    current?.abort()
    const mine = (current = new AbortController())
    /** @type {T | null} */
    let answer = null
    place.setAttribute('aria-busy', 'true')
    try {
      const response = await api.fetchApi(path, {
        signal: mine.signal,
        ...(body === undefined
          ? {}
          : { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
      })
      if (!response.ok) throw new Error(`${response.status} ${(await response.text()).slice(0, 200)}`)
      answer = await response.json()
      forget(FAILED)
    } catch (error) {
      if (mine !== current || mine.signal.aborted) return
      toastOnce(FAILED, t('routeFailed'), error instanceof Error ? error.message : String(error))
    }
    if (mine !== current) return
    place.removeAttribute('aria-busy')
    use(answer)
  }
}
