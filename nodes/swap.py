"""Seamless VAE Swap."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import coding, inputs, latents
from .status import NodeStatus


class VAESwap:
    ID = "SeamlessVAESwap"
    DISPLAY_NAME = "Seamless VAE Swap"
    DESCRIPTION = (
        "Convert the latent of one VAE to the latent of another in the middle of a workflow, e.g. from SDXL to FLUX.1: "
        "decode with the first VAE, then encode with the second."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae swap", "convert latent", "re-encode", "transcode latent", "change vae")
    FUNCTION = "swap"
    RETURN_TYPES = ("LATENT", "IMAGE")
    RETURN_NAMES = ("latent", "image")
    OUTPUT_TOOLTIPS = ("The latent for the second VAE.", "The decoded images, as they were encoded again.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.samples("Latents to convert."),
                "from_vae": inputs.wire("VAE", "The VAE that the latent belongs to."),
                "to_vae": inputs.wire("VAE", "The VAE to convert the latent for."),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def swap(
        self, samples: latents.Latent, from_vae: Any, to_vae: Any, unique_id: str | None = None
    ) -> tuple[latents.Latent, Tensor]:
        source, decoding = coding.opened(from_vae)
        target, encoding = coding.opened(to_vae)
        target.image_channels()  # an audio VAE is refused before anything is decoded
        status = NodeStatus(unique_id, stages=(coding.DECODE_SHARE, 1 - coding.DECODE_SHARE))
        image = coding.decode(source, samples, decoding, status)
        encoded = coding.encode(target, image, "pad", encoding, status)
        others = {key: value for key, value in samples.items() if key != latents.FIT_KEY}
        if latents.HOST_FACTOR_KEY in others:
            others[latents.HOST_FACTOR_KEY] = target.downscale_factor
        return {**others, **encoded.latent()}, image
