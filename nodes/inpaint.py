"""Seamless VAE Inpaint Encode and Seamless VAE Inpaint Composite."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..vae_core import masks
from . import checks, coding, inputs, latents
from .status import NodeStatus


class VAEInpaintEncode:
    ID = "SeamlessVAEInpaintEncode"
    DISPLAY_NAME = "Seamless VAE Inpaint Encode"
    DESCRIPTION = (
        "Encode an image and set the mask of the area to inpaint. The image itself is encoded unchanged, so any "
        "denoise strength works. Put Seamless VAE Inpaint Composite at the end of the workflow."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = (
        "inpaint",
        "vae encode for inpaint",
        "noise mask",
        "mask latent",
        "outpaint",
        "grow mask",
    )
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The latent with the mask as its noise mask.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pixels": inputs.pixels(),
                "vae": inputs.vae(),
                "mask": inputs.wire("MASK", "1 where to inpaint. Any size; it is resized to the image."),
                "grow": (
                    "INT",
                    {
                        "default": 6,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Pixels to expand the mask by, on all sides.",
                    },
                ),
                "feather": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Width in pixels of the soft edge around the expanded mask.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def encode(
        self, pixels: Tensor, vae: Any, mask: Tensor, grow: int = 6, feather: int = 0, unique_id: str | None = None
    ) -> tuple[latents.Latent]:
        opened, options = coding.opened(vae)
        checks.checked_image(pixels)
        grown = masks.grow_mask(checks.checked_mask(mask, pixels), grow, feather)
        encoded = coding.encode(opened, pixels, "pad", options, NodeStatus(unique_id))
        latent = encoded.latent()
        if len(grown) > len(latent["samples"]):  # one image, to be inpainted in several places
            latent = latents.repeat(latent, len(grown))
        noise_mask = masks.extend_mask(grown, *encoded.image.pixels.shape[-2:])
        return ({**latent, "noise_mask": noise_mask[:, None]},)


class VAEInpaintComposite:
    ID = "SeamlessVAEInpaintComposite"
    DISPLAY_NAME = "Seamless VAE Inpaint Composite"
    DESCRIPTION = (
        "Decode an inpainted latent and paste it into the original image. Where the mask is 0, the result is the "
        "original, bit for bit; decoding alone would change every pixel a little."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("inpaint", "composite", "paste back", "stitch", "keep unmasked")
    FUNCTION = "composite"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The original with the inpainted area.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.samples("The inpainted latent."),
                "vae": inputs.vae(),
                "original": inputs.wire("IMAGE", "The image that was encoded, to keep outside of the mask."),
                "mask": inputs.wire(
                    "MASK", "1 to use the inpainted image, 0 to keep the original; values in between blend the two."
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def composite(
        self, samples: latents.Latent, vae: Any, original: Tensor, mask: Tensor, unique_id: str | None = None
    ) -> tuple[Tensor]:
        checks.checked_image(original)
        weights = checks.checked_mask(mask, original)
        opened, options = coding.opened(vae)
        checks.check_batches(images=len(original), latents=len(latents.samples_of(samples)), masks=len(weights))
        decoding = opened.prepare_decode(samples, options)
        if decoding.shape is not None:  # sizes that do not match are refused before anything is decoded
            batch, height, width, channels = decoding.shape
            size = batch, *latents.fitted_size(samples, height, width), channels
            masks.gaps(original.shape, size, opened.downscale_factor)
        image = latents.restore_fit(samples, decoding.run(NodeStatus(unique_id)))
        return (masks.paste(original, image, weights, opened.downscale_factor),)
