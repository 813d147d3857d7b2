"""Seamless VAE Swap."""

from __future__ import annotations

from typing import Any

from . import inputs


class VAESwap:
    ID = "SeamlessVAESwap"
    DISPLAY_NAME = "Seamless VAE Swap"
    DESCRIPTION = (
        "Turn the latent of one VAE into the latent of another in the middle of a workflow, such as from SDXL to "
        "FLUX.1: decode with the first, encode with the second."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae swap", "convert latent", "re-encode", "transcode latent", "change vae")
    FUNCTION = "swap"
    RETURN_TYPES = ("LATENT", "IMAGE")
    RETURN_NAMES = ("latent", "image")
    OUTPUT_TOOLTIPS = ("The latent for the second VAE.", "The pictures in between.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "samples": inputs.samples(),
                "from_vae": inputs.wire("VAE", "The VAE that the latent was made with or for."),
                "to_vae": inputs.wire("VAE", "The VAE that the latent is wanted for."),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def swap(self, samples, from_vae, to_vae, unique_id=None):
        raise NotImplementedError
