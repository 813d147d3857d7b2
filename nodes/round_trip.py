"""Seamless VAE Round Trip."""

from __future__ import annotations

from typing import Any

from . import inputs


class VAERoundTrip:
    ID = "SeamlessVAERoundTrip"
    DISPLAY_NAME = "Seamless VAE Round Trip"
    DESCRIPTION = (
        "Encode and decode a picture, and show what the VAE keeps of it: the reconstruction, a heat map of the error, "
        "PSNR in dB and SSIM (1 is equal)."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("reconstruction", "compare vae", "psnr", "ssim", "vae quality", "error map")
    FUNCTION = "round_trip"
    RETURN_TYPES = ("IMAGE", "IMAGE", "FLOAT", "FLOAT")
    RETURN_NAMES = ("image", "error", "psnr", "ssim")
    OUTPUT_TOOLTIPS = (
        "The reconstruction.",
        "Heat map of the absolute error: black for none, white for a tenth of the range and more.",
        "Peak signal-to-noise ratio in dB; more is better. Of a batch, the mean.",
        "Structural similarity, 1 for equal pictures. Of a batch, the mean.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"pixels": inputs.pixels(), "vae": inputs.vae()},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def round_trip(self, pixels, vae, unique_id=None):
        raise NotImplementedError
