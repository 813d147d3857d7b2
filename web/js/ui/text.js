// Texts in the language of the front end. `locales/<language>/main.json` has them under "seamlessVae".
import { ENGLISH } from './english.js'

/** @import { Reported } from '../host/types' */

/** By language, then by key. @type {Record<string, Record<string, string>>} */
let others = {}
let chosen = () => 'en'

/**
 * Say which language is wanted whenever a text is.
 * @param {() => string} language such as `zh` or `pt_BR`
 */
export function useLanguage(language) {
  chosen = language
}

/**
 * Use the texts of all languages.
 * @param {unknown} all what the back end makes of `locales/`
 */
export function useTexts(all) {
  const languages = Object.entries(/** @type {Record<string, {seamlessVae?: Record<string, string>}>} */ (all ?? {}))
  others = Object.fromEntries(languages.map(([language, texts]) => [language, texts?.seamlessVae ?? {}]))
}

/** The language as a BCP 47 tag; English for what is not one. */
export function language() {
  try {
    return Intl.getCanonicalLocales(chosen().replaceAll('_', '-'))[0] ?? 'en'
  } catch {
    return 'en'
  }
}

/**
 * A text in the front end's language, with `{name}` replaced.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const tag = language()
  const text = others[tag]?.[key] ?? others[tag.split('-')[0]]?.[key] ?? ENGLISH[key] ?? key
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole))
}

/**
 * What the back end reports, in the front end's language.
 * @param {Reported} said a text as it is, a fact with what stands in it, or several in a row
 * @returns {string}
 */
export function reported(said) {
  if (Array.isArray(said)) return said.map(reported).join(t('report.separator'))
  if (typeof said !== 'object') return String(said)
  return t(said.key, Object.fromEntries(Object.entries(said.values).map(([name, value]) => [name, reported(value)])))
}

/**
 * What the back end says in English, in the language of the front end; unchanged if it is not among the texts of a group.
 * @param {string} group what the keys of these texts begin with
 * @param {string} said
 */
export function translated(group, said) {
  const key = Object.keys(ENGLISH).find((each) => each.startsWith(`${group}.`) && ENGLISH[each] === said)
  return key === undefined ? said : t(key)
}
