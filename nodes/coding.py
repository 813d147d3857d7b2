"""What the nodes share: a VAE from the wire, images in and a latent out, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..vae_core import DiagonalGaussianDistribution, Options
from ..vae_core.image import FittedImage, from_image
from . import checks, latents
from .status import NodeStatus
from .tiling import options_of
from .vaes import WireVAE, open_vae

DECODE_SHARE = 0.7  # of the FLOPs of a decode and an encode, for the published models


@dataclass(frozen=True)
class Encoded:
    """What encoding gives.

    Attributes:
        distribution: the posterior, as the wire carries latents.
        image: what was encoded, as it was fitted.
    """

    distribution: DiagonalGaussianDistribution
    image: FittedImage

    def latent(self, samples: Tensor | None = None) -> latents.Latent:
        """What the LATENT wire carries: these samples, or the mean."""
        samples = self.distribution.mean if samples is None else samples
        return {"samples": samples, **latents.fit_keys(self.image, samples)}

    def posterior(self) -> latents.Latent:
        """What the VAE_POSTERIOR wire carries."""
        return {**self.latent(), "logvar": self.distribution.logvar}


def opened(vae: Any, **tiling: Any) -> tuple[WireVAE, Options]:
    """What is on the VAE wire, and how to run it by the inputs of a tiled node; see `tiling.options_of`.

    Raises:
        CheckpointError: an empty VAE.
        TilingError, ConfigError: inputs that are not possible.
    """
    found = open_vae(vae)
    return found, options_of(found.tile_unit, **tiling)


def encode(vae: WireVAE, image: Tensor, fit: str, options: Options, status: NodeStatus) -> Encoded:
    """Encode images [B, H, W, C].

    Raises:
        ImageError, ShapeError: what cannot be encoded.
    """
    checks.checked_image(image)
    fitted = from_image(image, channels=vae.image_channels(), multiple=vae.downscale_factor, fit=fit)  # type: ignore
    return Encoded(vae.encode(fitted, options, status), fitted)


def decode(vae: WireVAE, latent: Mapping[str, Any], options: Options, status: NodeStatus, clamp: bool = True) -> Tensor:
    """Decode a latent to images [B, H, W, C], 0 to 1, without what was padded when they were encoded.

    Raises:
        ShapeError: a latent of something else, or of another family.
    """
    return latents.restore_fit(latent, vae.prepare_decode(latent, options).run(status, clamp))
