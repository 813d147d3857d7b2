"""Seamless VAE Encode, and the same in strips or tiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..vae_core.image import FittedImage
from . import checks, inputs, latents, unwrap
from .watch import Watch


class VAEEncode:
    ID = "SeamlessVAEEncode"
    DISPLAY_NAME = "Seamless VAE Encode"
    DESCRIPTION = (
        "Encode images of any size to latents. Gives the latent, the posterior it comes from, and the transparency "
        "of the images as a mask."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae encode", "image to latent", "posterior", "encode image")
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT", "VAE_POSTERIOR", "MASK")
    RETURN_NAMES = ("latent", "posterior", "alpha")
    OUTPUT_TOOLTIPS = (
        "Raw latents, as the core nodes make them.",
        "Mean and log-variance of each latent value, to draw from or to look at.",
        "1 where the images are transparent, as Load Image gives it; all 0 for images without alpha.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pixels": inputs.pixels(),
                "vae": inputs.vae(),
                "draw": inputs.draw(),
                "seed": inputs.seed(),
                "fit": inputs.fit(),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def encode(
        self,
        pixels: Tensor,
        vae: Any,
        draw: str = "mode",
        seed: int = 0,
        fit: str = "crop",
        unique_id: str | None = None,
        **tiling: Any,
    ) -> tuple[latents.Latent, latents.Latent, Tensor]:
        checks.check_choice("draw", draw, inputs.DRAWS)
        opened, how = unwrap.opened(vae, **tiling)
        if draw == "sample":
            unwrap.model_of(opened, "drawing a sample", "Choose mode, or use Seamless VAE Load with another file")
        posterior, picture = unwrap.encode(opened, pixels, fit, how, Watch(unique_id))
        samples = posterior["samples"]
        if draw == "sample":
            samples = latents.draw(latents.posterior_of(posterior), seed, range(len(samples)))
        latent = {key: value for key, value in posterior.items() if key != "logvar"}
        return {**latent, "samples": samples}, posterior, transparency(picture)


class VAEEncodeTiled(VAEEncode):
    ID = "SeamlessVAEEncodeTiled"
    DISPLAY_NAME = "Seamless VAE Encode (Tiled)"
    DESCRIPTION = (
        "Encode large images in little memory. Exact mode works in strips and gives the latent of the untiled node: "
        "no seams, no shift of colours, whatever the tile size. Blended mode is the usual overlapping tiles."
    )
    SEARCH_ALIASES = ("vae encode tiled", "tiled vae", "large image", "low memory", "seamless texture", "out of memory")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        found = super().INPUT_TYPES()
        found["required"].update(inputs.tiling())
        return found


def transparency(picture: FittedImage) -> Tensor:
    """[B, H, W], 1 where the image is transparent, as the host's loaders give it."""
    if picture.alpha is not None:
        return 1.0 - picture.alpha
    return picture.pixels.new_zeros((picture.pixels.shape[0], *picture.size))
