"""Seamless VAE Inspect."""

from __future__ import annotations

from typing import Any

from . import inputs, latents, report
from .vaes import open_vae


class VAEInspect:
    ID = "SeamlessVAEInspect"
    DISPLAY_NAME = "Seamless VAE Inspect"
    DESCRIPTION = (
        "Show what a VAE is: family, channels, scale, parameters, precision, device, and the cost of a decode. "
        "Connect a latent to get the cost of decoding that one."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae info", "which vae", "vae family", "memory estimate", "debug vae")
    FUNCTION = "inspect"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The report in English, whatever the language of the page.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"vae": inputs.vae()},
            "optional": {"samples": inputs.wire("LATENT", "Estimate the cost of decoding this latent.")},
        }

    def inspect(self, vae: Any, samples: latents.Latent | None = None) -> dict[str, Any]:
        lines = open_vae(vae).describe(samples)
        return {"ui": report.output(lines), "result": (report.text_of(lines),)}
