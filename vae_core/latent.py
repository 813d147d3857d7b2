"""Raw z, which the model emits and takes, to the latents of a diffusion model, and back.

Most families scale and shift: (z - shift) * scale. Playground 2.5 normalises by a mean and a deviation per channel
and then scales: (z - mean) * scale / std, in the order of diffusers' pipeline_stable_diffusion_xl.py. FLUX.2 packs 2x2
latent pixels into channels and normalises by running statistics: (packed - mean) / sqrt(var + eps).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from .config import AutoencoderKLConfig
from .errors import ConfigError, ShapeError
from .tensor_kinds import check_given

METADATA_KEY = "seamless_vae"  # of a safetensors file of latents: where it says what they are


def to_diffusion(
    z: Tensor,
    config: AutoencoderKLConfig,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> Tensor:
    """Raw z to what the diffusion model sees.

    Args:
        z: [B, latent_channels, h, w].
        running_mean, running_var: of the model's batch norm (`vae.bn.running_mean`, ...); FLUX.2 alone needs them.

    Returns:
        [B, latent_channels, h, w]; for FLUX.2 [B, 4 * latent_channels, h / 2, w / 2].

    Raises:
        ShapeError: another number of channels, or a size that FLUX.2's patches do not divide.
        ConfigError: FLUX.2 without its statistics.
    """
    _check_channels(z, config.latent_channels)
    if config.patch_size is not None:
        mean, std = _batch_norm(z, config, running_mean, running_var)
        return (pack(z, config.patch_size) - mean) / std
    if config.latents_mean is not None and config.latents_std is not None:
        mean = _per_channel(z, config.latents_mean)
        std = _per_channel(z, config.latents_std)
        return (z - mean) * config.scaling_factor / std
    return (z - (config.shift_factor or 0.0)) * config.scaling_factor


def from_diffusion(
    latent: Tensor,
    config: AutoencoderKLConfig,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
) -> Tensor:
    """What the diffusion model gives to raw z; the inverse of `to_diffusion`, with its arguments and errors."""
    if config.patch_size is not None:
        _check_channels(latent, config.latent_channels * config.patch_size[0] * config.patch_size[1])
        mean, std = _batch_norm(latent, config, running_mean, running_var)
        return unpack(latent * std + mean, config.patch_size)
    _check_channels(latent, config.latent_channels)
    if config.latents_mean is not None and config.latents_std is not None:
        mean = _per_channel(latent, config.latents_mean)
        std = _per_channel(latent, config.latents_std)
        return latent * std / config.scaling_factor + mean
    return latent / config.scaling_factor + (config.shift_factor or 0.0)


def logvar_to_diffusion(logvar: Tensor, config: AutoencoderKLConfig, running_var: Tensor | None = None) -> Tensor:
    """The log-variance of raw z as that of what the diffusion model sees; shapes and errors of `to_diffusion`.

    A factor f of the values is 2 log f in the log-variance; a shift changes nothing.
    """
    _check_channels(logvar, config.latent_channels)
    if config.patch_size is not None:
        _, std = _batch_norm(logvar, config, running_var, running_var)
        return pack(logvar, config.patch_size) - 2 * torch.log(std)
    if config.latents_std is not None:
        logvar = logvar - 2 * torch.log(_per_channel(logvar, config.latents_std))
    return logvar + 2 * math.log(config.scaling_factor)


def pack(z: Tensor, patch_size: tuple[int, int] = (2, 2)) -> Tensor:
    """FLUX.2's packing: [B, C, h * ph, w * pw] -> [B, C * ph * pw, h, w], channels ordered (c, row, column).

    Raises:
        ShapeError: h or w is not a multiple of the patch.
    """
    rows, columns = patch_size
    if z.shape[-2] % rows or z.shape[-1] % columns:
        raise ShapeError(
            f"a latent of {z.shape[-2]} by {z.shape[-1]} pixels cannot be packed by {rows}x{columns}. "
            f"Encode an image whose latent has sides that are multiples of them."
        )
    return rearrange(z, "b c (h ph) (w pw) -> b (c ph pw) h w", ph=rows, pw=columns)


def unpack(packed: Tensor, patch_size: tuple[int, int] = (2, 2)) -> Tensor:
    """The inverse of `pack`: [B, C * ph * pw, h, w] -> [B, C, h * ph, w * pw]."""
    rows, columns = patch_size
    if packed.shape[1] % (rows * columns):
        raise ShapeError(
            f"a packed latent has {packed.shape[1]} channels, which is not a multiple of {rows * columns}. "
            f"Give a packed one."
        )
    return rearrange(packed, "b (c ph pw) h w -> b c (h ph) (w pw)", ph=rows, pw=columns)


def _batch_norm(
    like: Tensor, config: AutoencoderKLConfig, running_mean: Tensor | None, running_var: Tensor | None
) -> tuple[Tensor, Tensor]:
    if running_mean is None or running_var is None:
        raise ConfigError(
            "this VAE normalises its latents by running statistics. Pass vae.bn.running_mean and vae.bn.running_var."
        )
    std = torch.sqrt(running_var + config.batch_norm_eps)
    return running_mean.to(like).view(1, -1, 1, 1), std.to(like).view(1, -1, 1, 1)


def _per_channel(like: Tensor, numbers: tuple[float, ...]) -> Tensor:
    return like.new_tensor(numbers).view(1, -1, 1, 1)


def _check_channels(latent: Tensor, channels: int) -> None:
    check_given(latent, "this latent", ShapeError)
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ShapeError(
            f"a latent of shape {tuple(latent.shape)} does not fit this VAE, whose latents are [B, {channels}, h, w]. "
            f"Use the VAE that it was made with or for."
        )
