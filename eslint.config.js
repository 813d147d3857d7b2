import js from '@eslint/js'
import globals from 'globals'

const HOST = '**/scripts/*'

/**
 * Modules of a folder import nothing from these.
 * @param {string} folder
 * @param {string[]} patterns
 */
const apart = (folder, patterns) => ({
  files: [`web/js/${folder}/**/*.js`],
  rules: { 'no-restricted-imports': ['error', { patterns }] }
})

export default [
  js.configs.recommended,
  {
    files: ['web/js/**/*.js'],
    languageOptions: { ecmaVersion: 2023, sourceType: 'module', globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      eqeqeq: 'error',
      'no-var': 'error',
      'prefer-const': 'error',
      'no-console': 'error',
      'no-eval': 'error',
      'no-implied-eval': 'error',
      'max-lines': ['error', 400],
      'no-restricted-imports': ['error', { patterns: [HOST] }],
      // Data becomes text, never markup.
      'no-restricted-properties': [
        'error',
        ...['innerHTML', 'outerHTML', 'insertAdjacentHTML'].map((property) => ({ property })),
        { object: 'document', property: 'write' }
      ]
    }
  },
  // Imports go one way: main -> {menus, nodes, settings} -> panels -> host -> graph, and ui by itself.
  apart('graph', [HOST, '**/host/*', '**/ui/*', '**/panels/*', '../*.js']),
  apart('ui', [HOST, '**/host/*', '**/graph/*', '**/panels/*', '../*.js']),
  apart('host', ['**/ui/*', '**/panels/*', '../*.js']),
  apart('panels', [HOST, '../*.js']),
  {
    files: ['web/js/host/**/*.js'],
    ignores: ['web/js/host/front_end.js'],
    rules: { 'no-restricted-imports': ['error', { patterns: [HOST, '**/ui/*', '**/panels/*', '../*.js'] }] }
  },
  {
    files: ['tests/web/unit/*.js'],
    languageOptions: { ecmaVersion: 2023, sourceType: 'module', globals: globals.node },
    rules: { eqeqeq: 'error', 'no-var': 'error', 'prefer-const': 'error', 'max-lines': ['error', 400] }
  }
]
