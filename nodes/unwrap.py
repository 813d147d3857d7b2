"""What the nodes share: a VAE of any kind, an image or a latent in, the same out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..vae_core import TileSpec
from ..vae_core.autoencoder_kl import channels_text
from ..vae_core.errors import ShapeError, TilingError
from ..vae_core.image import FittedImage, from_image
from ..vae_core.posterior import LOGVAR_RANGE
from . import checks, host, inputs, latents, run
from .adopt import Autoencoder, Foreign, open_vae
from .watch import Watch

GIB = 2**30
AUTOMATIC_TILE = 64  # latent pixels, of blended tiles


def opened(vae: Any, **tiling: Any) -> tuple[Autoencoder | Foreign, run.Options]:
    """What is on the VAE wire, and how to run it by the inputs of a tiled node; see `tiling_options`.

    Raises:
        CheckpointError: nothing is.
        TilingError: as `tiling_options`.
    """
    found = open_vae(vae)
    ratio = found.config.spatial_ratio if isinstance(found, Autoencoder) else foreign_ratio(found)
    return found, tiling_options(ratio, **tiling)


def tiling_options(
    ratio: int,
    mode: str = "exact",
    tile_size: int = 0,
    overlap: int = 128,
    memory_budget: float = 0.0,
    circular: str = "none",
) -> run.Options:
    """How to run a VAE of this downscale factor, from the inputs of a tiled node, in pixels and GiB.

    Raises:
        TilingError: a tile smaller than a latent pixel, an overlap that does not fit, or blended circular tiles.
        ConfigError: a value that is none of the choices, or below 0.
    """
    checks.check_choice("mode", mode, inputs.MODES)
    checks.check_choice("circular", circular, inputs.CIRCULAR)
    checks.check_at_least(0, tile_size=tile_size, overlap=overlap, memory_budget=memory_budget)
    if tile_size and tile_size < ratio:
        raise TilingError(
            f"a tile of {tile_size} pixels is smaller than one latent pixel of this VAE ({ratio}x{ratio} pixels). "
            f"Set tile_size to {ratio} or more, or to 0 for automatic."
        )
    size = tile_size // ratio or None
    budget = int(memory_budget * GIB) or None
    if mode == "exact":
        return run.Options(None if size is None else TileSpec(size=size), budget, circular)  # type: ignore[arg-type]
    if circular != "none":
        raise TilingError("blended tiles cannot be circular. Set mode to exact, or circular to none.")
    size = size or AUTOMATIC_TILE
    if overlap // ratio >= size:
        raise TilingError(
            f"an overlap of {overlap} pixels does not fit tiles of {size * ratio} pixels. Reduce the overlap, or use "
            f"larger tiles."
        )
    return run.Options(TileSpec(size=size, overlap=overlap // ratio, mode="blended"), budget)


def encode(
    vae: Autoencoder | Foreign, image: Tensor, fit: str, how: run.Options, watch: Watch
) -> tuple[latents.Latent, FittedImage]:
    """Images [B, H, W, C] as a posterior, and how they were fitted.

    Raises:
        ImageError, ShapeError: what cannot be encoded.
    """
    picture = from_image(checks.checked_image(image), channels=check_encodes(vae), multiple=ratio_of(vae), fit=fit)  # type: ignore
    if isinstance(vae, Autoencoder):
        mean, logvar = run.encode(vae, picture.pixels, how, watch)
    else:
        mean = _foreign_encode(vae, picture, how, watch)
        logvar = torch.full_like(mean, LOGVAR_RANGE[0])
    return latents.remember_fit({"samples": mean, "logvar": logvar}, picture), picture


def decode(
    vae: Autoencoder | Foreign, latent: Mapping[str, Any], how: run.Options, watch: Watch, clamp: bool = True
) -> Tensor:
    """A latent as images [B, H, W, C], 0 to 1, without what was padded when they were encoded.

    Raises:
        ShapeError: a latent of something else, or of another family.
    """
    if isinstance(vae, Foreign):
        return latents.restore_fit(latent, _foreign_decode(vae, latent, how, watch))
    image = run.decode(vae, latents.samples_of(latent), how, watch)
    image.add_(1.0).div_(2.0)
    return latents.restore_fit(latent, image.clamp_(0.0, 1.0) if clamp else image)


def check_encodes(vae: Autoencoder | Foreign) -> int:
    """The number of channels of the images that a VAE encodes.

    Raises:
        ShapeError: one for sound.
    """
    return vae.config.in_channels if isinstance(vae, Autoencoder) else _foreign_channels(vae)


def decoded_shape(vae: Autoencoder | Foreign, latent: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """[B, H, W, C] of what `decode` will give; None where only decoding tells.

    Raises:
        ShapeError: as `decode`.
    """
    if isinstance(vae, Foreign):
        return None
    samples = latents.samples_of(latent)
    latents.check(vae.model, samples)
    batch, _, rows, columns = run.raw_shape(vae, samples)
    ratio = vae.config.spatial_ratio
    return batch, *latents.fitted_size(latent, rows * ratio, columns * ratio), vae.config.out_channels


def unit_pixels(picture: FittedImage) -> Tensor:
    """What was encoded, [B, C, H, W] in [0, 1], without padding."""
    return picture.restore(picture.pixels).add(1.0).div(2.0)


def ratio_of(vae: Autoencoder | Foreign) -> int:
    """Pixels along one side of a latent position, as the wire carries it."""
    return latents.wire_ratio(vae.model) if isinstance(vae, Autoencoder) else foreign_ratio(vae)


def model_of(
    vae: Autoencoder | Foreign, purpose: str, remedy: str = "Load another file with Seamless VAE Load"
) -> Autoencoder:
    """The VAE, if it is an AutoencoderKL.

    Raises:
        ShapeError: it is not; `purpose` tells what is not possible therefore, `remedy` what to do.
    """
    if isinstance(vae, Foreign):
        raise ShapeError(f"{purpose} is not possible with this VAE: {vae.reason}. {remedy}.")
    return vae


# VAEs of other kinds, by their own methods.


def foreign_ratio(vae: Foreign) -> int:
    ask = getattr(vae.vae, "spacial_compression_encode", None)
    ratio = ask() if ask is not None else getattr(vae.vae, "downscale_ratio", 8)
    return int(ratio) if isinstance(ratio, int | float) else 8


def _foreign_channels(vae: Foreign) -> int:
    channels = getattr(vae.vae, "output_channels", 3)
    if getattr(vae.vae, "latent_dim", 2) == 1 or getattr(vae.vae, "extra_1d_channel", None) or channels == 2:
        raise ShapeError(f"{vae.reason}, but an audio VAE, which cannot process images. Use the nodes for audio.")
    return channels if channels in (1, 3, 4) else 3


def _check_foreign(vae: Foreign, how: run.Options, watch: Watch) -> None:
    _foreign_channels(vae)
    if how.circular != "none":
        raise TilingError(
            f"circular padding is not available for this VAE: {vae.reason}. Set circular to none, or load the VAE with "
            f"Seamless VAE Load."
        )
    host.notify(watch.node_id, vae.note)


def _foreign_encode(vae: Foreign, picture: FittedImage, how: run.Options, watch: Watch) -> Tensor:
    _check_foreign(vae, how, watch)
    pixels = picture.pixels.movedim(1, -1).add(1.0).div(2.0)
    if how.tiling is None or how.tiling.size is None:
        return vae.vae.encode(pixels)
    ratio = foreign_ratio(vae)
    side, overlap = how.tiling.size * ratio, min(how.tiling.overlap, how.tiling.size // 2) * ratio
    return vae.vae.encode_tiled(pixels, tile_x=side, tile_y=side, overlap=overlap)


def _foreign_decode(vae: Foreign, latent: Mapping[str, Any], how: run.Options, watch: Watch) -> Tensor:
    is_video = getattr(vae.vae, "latent_dim", 2) == 3
    samples = latents.samples_of(latent, (4, 5) if is_video else (4,))
    _check_foreign(vae, how, watch)
    channels = getattr(vae.vae, "latent_channels", samples.shape[1])
    if samples.shape[1] != channels:
        raise ShapeError(
            f"this latent has {channels_text(samples.shape[1])}, but this VAE takes "
            f"{channels_text(channels)}. Use the VAE that goes with the model."
        )
    if how.tiling is None or how.tiling.size is None:
        image = vae.vae.decode(samples)
    else:
        side, overlap = how.tiling.size, min(how.tiling.overlap, how.tiling.size // 2)
        image = vae.vae.decode_tiled(samples, tile_x=side, tile_y=side, overlap=overlap)
    return image.flatten(0, 1) if image.ndim == 5 else image  # frames as a batch
