// Questions to the pack's routes: only the latest counts, and a failure is reported once while it lasts.
import { chain } from '../graph/node.js'
import { api, toast } from '../host/front_end.js'
import { t } from '../ui/text.js'

/** @import { GraphNode } from '../host/types' */

/** How long an answer may take. */
export const patience = { milliseconds: 20000 }

/** Those whose last question was not answered. @type {Set<object>} */
const failing = new Set()

/**
 * @template T
 * @typedef {(path: string, body: unknown, use: (answer: T | null) => void) => Promise<void>} Ask
 */

/**
 * @template T
 * @typedef {{ask: Ask<T>, cancel: () => void}} Asker `cancel` is for when there is nothing to ask: no answer comes any more
 */

/**
 * Something that asks, one question at a time: an answer to any but the latest is dropped. A question that the back end
 * refuses is answered with the reason as the `problem`.
 * @template {{problem: string | null}} T
 * @param {GraphNode} node whose removal ends all questions
 * @param {HTMLElement} place where the answer is shown; it is marked as busy, and so dimmed, until it comes, and from the
 *   beginning on: what stands there before the first answer is not one
 * @returns {Asker<T>}
 */
export function asker(node, place) {
  /** @type {AbortController | null} */
  let current = null
  place.setAttribute('aria-busy', 'true')
  const cancel = () => {
    current?.abort()
    current = null
    failing.delete(place)
    place.removeAttribute('aria-busy')
  }
  chain(node, 'onRemoved', cancel)
  /** @type {Ask<T>} */
  const ask = async (path, body, use) => {
    current?.abort()
    const mine = (current = new AbortController())
    const giveUp = setTimeout(() => mine.abort(), patience.milliseconds)
    /** @type {T | null} */
    let answer = null
    place.setAttribute('aria-busy', 'true')
    try {
      answer = await answerTo(path, body, mine.signal)
      if (mine === current) failing.delete(place)
    } catch (error) {
      if (mine !== current) return
      if (!failing.size) toast('warn', t('routeFailed'), mine.signal.aborted ? t('noAnswer') : String(error))
      failing.add(place)
    } finally {
      clearTimeout(giveUp)
    }
    if (mine !== current) return
    place.removeAttribute('aria-busy')
    use(answer)
  }
  return { ask, cancel }
}

/**
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} signal
 */
async function answerTo(path, body, signal) {
  const headers = { 'Content-Type': 'application/json' }
  const post = body === undefined ? {} : { method: 'POST', headers, body: JSON.stringify(body) }
  const response = await api.fetchApi(path, { signal, ...post })
  if (response.status === 400) return { problem: await response.text() }
  if (!response.ok) throw new Error(`${response.status} ${(await response.text()).slice(0, 200)}`)
  return response.json()
}
