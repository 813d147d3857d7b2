"""A VAE of another kind, or one that has been patched: its own methods are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..vae_core import DiagonalGaussianDistribution, Options
from ..vae_core.autoencoder_kl import channels_text
from ..vae_core.config import LOGVAR_RANGE
from ..vae_core.errors import ShapeError, TilingError
from ..vae_core.image import FittedImage, to_unit_range
from . import host, latents, report
from .status import NodeStatus

_USUAL_FACTOR = 8
_DESCRIBED = ("latent_channels", "latent_dim", "upscale_ratio", "vae_dtype", "device")


@dataclass
class ThirdPartyVAE:
    """A VAE that is not an AutoencoderKL as its class says.

    Attributes:
        reason: why, as the end of a sentence.
    """

    vae: Any
    reason: str

    @property
    def note(self) -> str:
        """What is not available, for the user."""
        return (
            f"Seamless VAE: {self.reason}, so its own methods are used. Exact tiling, the posterior's variance, "
            f"circular padding and the memory budget are not available for it."
        )

    @property
    def downscale_factor(self) -> int:
        ask = getattr(self.vae, "spacial_compression_encode", None)
        factor = ask() if ask is not None else getattr(self.vae, "downscale_ratio", _USUAL_FACTOR)
        return int(factor) if isinstance(factor, int | float) else _USUAL_FACTOR

    @property
    def tile_unit(self) -> int:
        return self.downscale_factor

    def image_channels(self) -> int:
        channels = getattr(self.vae, "output_channels", 3)
        is_audio = getattr(self.vae, "latent_dim", 2) == 1 or getattr(self.vae, "extra_1d_channel", None)
        if is_audio or channels == 2:
            raise ShapeError("this is an audio VAE, which cannot process images. Use the nodes for audio.")
        return channels if channels in (1, 3, 4) else 3

    def encode(self, image: FittedImage, options: Options, status: NodeStatus) -> DiagonalGaussianDistribution:
        self._check(options)
        host.notify(status.node_id, self.note)
        pixels = to_unit_range(image.pixels.movedim(1, -1))
        tile = _tile(options, self.downscale_factor)
        mean = self.vae.encode(pixels) if tile is None else self.vae.encode_tiled(pixels, **tile)
        return DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, LOGVAR_RANGE[0])], dim=1))

    def prepare_decode(self, latent: Mapping[str, Any], options: Options) -> ThirdPartyDecoding:
        is_video = getattr(self.vae, "latent_dim", 2) == 3
        samples = latents.samples_of(latent, (4, 5) if is_video else (4,))
        self._check(options)
        channels = getattr(self.vae, "latent_channels", samples.shape[1])
        if samples.shape[1] != channels:
            raise ShapeError(
                f"this latent has {channels_text(samples.shape[1])}, but this VAE takes "
                f"{channels_text(channels)}. Use the VAE that goes with the model."
            )
        return ThirdPartyDecoding(self, samples, options)

    def _check(self, options: Options) -> None:
        self.image_channels()
        if options.circular != "none":
            raise TilingError(
                f"circular padding is not available for this VAE: {self.reason}. Set circular to none, or load the "
                f"VAE with Seamless VAE Load."
            )

    def require_autoencoder(self, purpose: str, remedy: str = "Load another file with Seamless VAE Load") -> NoReturn:
        raise ShapeError(f"{purpose} is not possible with this VAE: {self.reason}. {remedy}.")

    def describe(self, latent: Mapping[str, Any] | None) -> list[report.Line]:
        lines: list[report.Line] = [report.Fact("report.thirdParty", reason=self.reason), self.note]
        for name in _DESCRIBED:
            value = getattr(self.vae, name, None)
            if value is not None and not isinstance(value, tuple):
                lines.append(f"{name}: {str(value).removeprefix('torch.')}")
        return lines


@dataclass
class ThirdPartyDecoding:
    """A decode by the VAE's own methods."""

    vae: ThirdPartyVAE
    samples: Tensor
    options: Options

    @property
    def shape(self) -> None:
        return None

    def run(self, status: NodeStatus, clamp: bool = True) -> Tensor:
        host.notify(status.node_id, self.vae.note)
        tile = _tile(self.options, 1)
        vae = self.vae.vae
        image = vae.decode(self.samples) if tile is None else vae.decode_tiled(self.samples, **tile)
        return image.flatten(0, 1) if image.ndim == 5 else image  # frames as a batch


def _tile(options: Options, unit: int) -> dict[str, int] | None:
    """Arguments for the VAE's own tiled methods, in units of so many pixels; None for its untiled ones."""
    if options.tiling is None or options.tiling.size is None:
        return None
    size = options.tiling.size
    overlap = min(options.tiling.overlap, options.tiling.size // 2)
    return {"tile_x": size * unit, "tile_y": size * unit, "overlap": overlap * unit}
