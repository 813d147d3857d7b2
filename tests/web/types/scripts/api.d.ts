// What the host serves at /scripts/api.js, for the type checker.
import type { ComfyApi } from '@comfyorg/comfyui-frontend-types'
export const api: ComfyApi
