"""Seamless VAE Inspect."""

from __future__ import annotations

from typing import Any

from . import inputs


class VAEInspect:
    ID = "SeamlessVAEInspect"
    DISPLAY_NAME = "Seamless VAE Inspect"
    DESCRIPTION = (
        "Tell what a VAE is: family, channels, scale, parameters, precision, device, and what a decode will cost. "
        "Connect a latent to have the cost of that one."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae info", "which vae", "vae family", "memory estimate", "debug vae")
    FUNCTION = "inspect"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The text that the node shows.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"vae": inputs.vae()},
            "optional": {"samples": inputs.wire("LATENT", "The latent whose decoding is to be estimated.")},
        }

    def inspect(self, vae, samples=None):
        raise NotImplementedError
