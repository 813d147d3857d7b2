"""Seamless VAE Encode, and the same in strips or tiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..vae_core.errors import check_choice
from ..vae_core.image import FittedImage
from . import coding, inputs, latents
from .status import NodeStatus


class VAEEncode:
    ID = "SeamlessVAEEncode"
    DISPLAY_NAME = "Seamless VAE Encode"
    DESCRIPTION = (
        "Encode images of any size to latents, without seams between tiles, however little memory is free. Outputs "
        "the latent, the posterior it was taken from, and the transparency of the images as a mask."
    )
    CATEGORY = inputs.CATEGORY
    SEARCH_ALIASES = ("vae encode", "image to latent", "posterior", "encode image")
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT", "VAE_POSTERIOR", "MASK")
    RETURN_NAMES = ("latent", "posterior", "alpha")
    OUTPUT_TOOLTIPS = (
        "Raw latents, the same as the core nodes output.",
        "Mean and log-variance of every latent value, for Sample Posterior and Posterior Preview.",
        "1 where the images are transparent, like the mask from Load Image; all 0 for images without alpha.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pixels": inputs.pixels(),
                "vae": inputs.vae(),
                "sample_mode": inputs.sample_mode(
                    "mean",
                    "mean uses the mean of the posterior, the same every time, like the core nodes. "
                    "sample draws from the posterior with the seed, as in training.",
                ),
                "seed": inputs.seed(),
                "fit": inputs.fit(),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def encode(
        self,
        pixels: Tensor,
        vae: Any,
        sample_mode: str = "mean",
        seed: int = 0,
        fit: str = "crop",
        unique_id: str | None = None,
        **tiling: Any,
    ) -> tuple[latents.Latent, latents.Latent, Tensor]:
        check_choice("sample_mode", sample_mode, inputs.SAMPLE_MODES)
        opened, options = coding.opened(vae, **tiling)
        if sample_mode == "sample":
            opened.require_autoencoder(
                "sampling", "Set sample_mode to mean, or load another file with Seamless VAE Load"
            )
        encoded = coding.encode(opened, pixels, fit, options, NodeStatus(unique_id))
        samples = None
        if sample_mode == "sample":
            samples = latents.sample(encoded.distribution, seed, range(len(encoded.distribution.mean)))
        return encoded.latent(samples), encoded.posterior(), transparency(encoded.image)


class VAEEncodeTiled(VAEEncode):
    ID = "SeamlessVAEEncodeTiled"
    DISPLAY_NAME = "Seamless VAE Encode (Tiled)"
    DESCRIPTION = (
        "Encode large images in little memory. Seamless means no seams between tiles: exact mode works in strips "
        "and gives the same latent as the untiled node, with any tile size. For a texture that repeats (tileable), "
        "set circular. Blended mode is the usual overlapping tiles."
    )
    SEARCH_ALIASES = ("vae encode tiled", *inputs.TILED_ALIASES)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        found = super().INPUT_TYPES()
        found["required"].update(inputs.tiling("latent"))
        return found


def transparency(image: FittedImage) -> Tensor:
    """[B, H, W], 1 where the image is transparent, as the host's loaders give it."""
    if image.alpha is not None:
        return 1.0 - image.alpha
    return image.pixels.new_zeros((image.pixels.shape[0], *image.size))
