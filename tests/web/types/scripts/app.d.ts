// What the host serves at /scripts/app.js, for the type checker.
import type { ComfyApp } from '@comfyorg/comfyui-frontend-types'
export const app: ComfyApp
