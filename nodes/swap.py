"""Seamless VAE Swap."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import inputs, latents, unwrap
from .watch import Watch

DECODE_SHARE = 0.7  # of the FLOPs of a decode and an encode, for the published models


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
        (source, decoding), (target, encoding) = unwrap.opened(from_vae), unwrap.opened(to_vae)
        unwrap.check_encodes(target)
        watch = Watch(unique_id, stages=(DECODE_SHARE, 1 - DECODE_SHARE))
        image = unwrap.decode(source, samples, decoding, watch)
        encoded, _ = unwrap.encode(target, image, "pad", encoding, watch)
        encoded.pop("logvar")
        others = {key: value for key, value in samples.items() if key != latents.FIT_KEY}
        if latents.RATIO_KEY in others:
            others[latents.RATIO_KEY] = unwrap.ratio_of(target)
        return {**others, **encoded}, image
