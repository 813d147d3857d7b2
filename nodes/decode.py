"""Seamless VAE Decode, and the same in strips or tiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import coding, inputs, latents
from .status import NodeStatus


class VAEDecode:
    ID = "SeamlessVAEDecode"
    DISPLAY_NAME = "Seamless VAE Decode"
    DESCRIPTION = (
        "Decode latents to images without seams between tiles, however little memory is free. Padding added by "
        "Seamless VAE Encode is removed, so a 1021x1021 image comes back as 1021x1021."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae decode", "latent to image", "decode latent", "decode image")
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The decoded images.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"samples": inputs.samples(), "vae": inputs.vae(), "clamp": inputs.clamp()},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def decode(
        self, samples: latents.Latent, vae: Any, clamp: bool = True, unique_id: str | None = None, **tiling: Any
    ) -> tuple[Tensor]:
        opened, options = coding.opened(vae, **tiling)
        return (coding.decode(opened, samples, options, NodeStatus(unique_id), clamp),)


class VAEDecodeTiled(VAEDecode):
    ID = "SeamlessVAEDecodeTiled"
    DISPLAY_NAME = "Seamless VAE Decode (Tiled)"
    DESCRIPTION = (
        "Decode large latents in little memory. Seamless means no seams between tiles: exact mode works in strips "
        "and gives the same image as the untiled node, with any tile size. For a texture that repeats (tileable), "
        "set circular. Blended mode is the usual overlapping tiles."
    )
    SEARCH_ALIASES = ("vae decode tiled", "seamless tiling vae decode", *inputs.TILED_ALIASES)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        found = super().INPUT_TYPES()
        found["required"].update(inputs.tiling("image"))
        return found
