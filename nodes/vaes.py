"""What is on the VAE wire: one interface for an AutoencoderKL of any loader, and for a third-party VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from ..vae_core import DiagonalGaussianDistribution, Options
from ..vae_core.adopt import find_patch
from ..vae_core.errors import CheckpointError
from ..vae_core.image import FittedImage
from . import host, report
from .adopt import borrowed
from .autoencoder import Autoencoder
from .first_stage import FirstStage
from .status import NodeStatus
from .third_party import ThirdPartyVAE


class Decoding(Protocol):
    """A decode that is checked and planned.

    Attributes:
        shape: of the images, [B, H, W, C], padding included; None if only decoding tells.
    """

    @property
    def shape(self) -> tuple[int, int, int, int] | None: ...

    def run(self, status: NodeStatus, clamp: bool = True) -> Tensor:
        """Images [B, H, W, C], 0 to 1."""
        ...


class WireVAE(Protocol):
    """A VAE that a node got over the wire."""

    @property
    def downscale_factor(self) -> int:
        """Pixels along one side of a latent pixel, as the wire carries latents."""
        ...

    @property
    def tile_unit(self) -> int:
        """Pixels along one side of a latent pixel, as tiles count them."""
        ...

    def image_channels(self) -> int:
        """The number of channels of the images that it encodes. Raises ShapeError for an audio VAE."""
        ...

    def encode(self, image: FittedImage, options: Options, status: NodeStatus) -> DiagonalGaussianDistribution:
        """The posterior of images, as the wire carries latents. Raises ShapeError for images that do not fit."""
        ...

    def prepare_decode(self, latent: Mapping[str, Any], options: Options) -> Decoding:
        """Check and plan the decode of a latent. Raises ShapeError for a latent of something else."""
        ...

    def require_autoencoder(self, purpose: str, remedy: str = ...) -> Autoencoder:
        """Itself, if it is an AutoencoderKL. Raises ShapeError if not: `purpose` is impossible then."""
        ...

    def describe(self, latent: Mapping[str, Any] | None) -> list[report.Line]:
        """Lines on what it is, and on the cost of decoding a latent, or one image of a common size."""
        ...


def open_vae(vae: Any) -> WireVAE:
    """What is on the VAE wire.

    Raises:
        CheckpointError: an empty VAE, as from a checkpoint without one.
    """
    first = getattr(vae, "first_stage_model", None)
    if first is None:
        raise CheckpointError(
            "this VAE is empty: its checkpoint does not include a VAE. Load one with Seamless VAE Load."
        )
    host.settle_patches(getattr(vae, "patcher", None))
    if isinstance(first, FirstStage):
        method = first.replaced_method()
        if method is None:
            return Autoencoder(vae, first.autoencoder)
        return ThirdPartyVAE(vae, f"this VAE has been patched (its method {method} has been replaced)")
    patch = find_patch(first) if isinstance(first, nn.Module) else "it is not a torch module"
    if patch is not None:
        return ThirdPartyVAE(vae, f"this VAE has been patched ({patch})")
    model, reason = borrowed(first)
    return ThirdPartyVAE(vae, reason) if model is None else Autoencoder(vae, model.model, model)
