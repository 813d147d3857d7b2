"""Seamless VAE Inpaint Encode and Seamless VAE Inpaint Composite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..vae_core import masks
from . import checks, inputs, latents, unwrap
from .watch import Watch


class VAEInpaintEncode:
    ID = "SeamlessVAEInpaintEncode"
    DISPLAY_NAME = "Seamless VAE Inpaint Encode"
    DESCRIPTION = (
        "Encode an image and mark the part that a sampler is to paint anew. The image itself is encoded unchanged, "
        "so that every denoise strength works. Put Seamless VAE Inpaint Composite at the end of the workflow."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("inpaint", "vae encode for inpaint", "noise mask", "mask latent", "outpaint")
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The latent with its noise mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pixels": inputs.pixels(),
                "vae": inputs.vae(),
                "mask": inputs.wire("MASK", "1 where the image is to be painted anew. Any size; it is scaled."),
                "grow": (
                    "INT",
                    {
                        "default": 6,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Pixels by which the mask is widened on all sides.",
                    },
                ),
                "feather": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Width in pixels of a soft edge around the widened mask.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def encode(
        self, pixels: Tensor, vae: Any, mask: Tensor, grow: int = 6, feather: int = 0, unique_id: str | None = None
    ) -> tuple[latents.Latent]:
        opened, how = unwrap.opened(vae)
        checks.check_at_least(0, grow=grow, feather=feather)
        checks.checked_image(pixels)
        grown = masks.grow_mask(checks.checked_mask(mask, pixels), grow, feather)
        latent, picture = unwrap.encode(opened, pixels, "pad", how, Watch(unique_id))
        latent.pop("logvar")
        if len(grown) > len(latent["samples"]):  # one image, to be painted anew in several places
            latent = latents.repeat(latent, len(grown))
        noise_mask = masks.extend_mask(grown, *picture.pixels.shape[-2:])
        return ({**latent, "noise_mask": noise_mask[:, None]},)


class VAEInpaintComposite:
    ID = "SeamlessVAEInpaintComposite"
    DISPLAY_NAME = "Seamless VAE Inpaint Composite"
    DESCRIPTION = (
        "Decode an inpainted latent and put it into the original image. Where the mask is 0, the result is the "
        "original, bit for bit: a VAE changes every pixel a little, and this takes that back."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("inpaint", "composite", "paste back", "stitch", "keep unmasked")
    FUNCTION = "composite"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The original with the painted part.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.samples(),
                "vae": inputs.vae(),
                "original": inputs.wire("IMAGE", "The image that was encoded."),
                "mask": inputs.wire(
                    "MASK", "1 where the painted part is wanted, 0 where the original is; soft in between."
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def composite(
        self, samples: latents.Latent, vae: Any, original: Tensor, mask: Tensor, unique_id: str | None = None
    ) -> tuple[Tensor]:
        checks.checked_image(original)
        weights = checks.checked_mask(mask, original)
        opened, how = unwrap.opened(vae)
        checks.check_batches(pictures=len(original), latents=len(latents.samples_of(samples)), masks=len(weights))
        shape = unwrap.decoded_shape(opened, samples)
        if shape is not None:  # sizes that do not go together are told before anything is decoded
            painted = torch.empty(shape, device="meta")
            masks.paste(original.to("meta"), painted, weights.to("meta"), unwrap.ratio_of(opened))
        image = unwrap.decode(opened, samples, how, Watch(unique_id))
        return (masks.paste(original, image, weights, unwrap.ratio_of(opened)),)
