"""Raw z, which the model emits and takes, to the latents of a diffusion model, and back: `vae_core.latent` in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..config import AutoencoderKLConfig
from ..errors import ConfigError, ShapeError


def to_diffusion(z: Array, config: AutoencoderKLConfig, params: Mapping[str, Any] | None = None) -> Array:
    """Raw z to what the diffusion model sees.

    Args:
        z: [B, latent_channels, h, w].
        params: the model's parameters, whose statistics FLUX.2 needs.

    Returns:
        [B, latent_channels, h, w]; for FLUX.2 [B, 4 * latent_channels, h / 2, w / 2]. Of z's type.

    Raises:
        ShapeError: another number of channels, or a size that FLUX.2's patches do not divide.
        ConfigError: FLUX.2 without its parameters.
    """
    _check_channels(z, config.latent_channels)
    if config.patch_size is not None:
        mean, std = _statistics(z, config, params)
        return (_pack(z, config.patch_size) - mean) / std
    if config.latents_mean is not None and config.latents_std is not None:
        mean = _per_channel(z, config.latents_mean)
        std = _per_channel(z, config.latents_std)
        return (z - mean) * config.scaling_factor / std
    return (z - (config.shift_factor or 0.0)) * config.scaling_factor


def from_diffusion(latent: Array, config: AutoencoderKLConfig, params: Mapping[str, Any] | None = None) -> Array:
    """What the diffusion model gives to raw z; the inverse of `to_diffusion`, with its arguments and errors."""
    if config.patch_size is not None:
        _check_channels(latent, config.latent_channels * config.patch_size[0] * config.patch_size[1])
        mean, std = _statistics(latent, config, params)
        return _unpack(latent * std + mean, config.patch_size)
    _check_channels(latent, config.latent_channels)
    if config.latents_mean is not None and config.latents_std is not None:
        mean = _per_channel(latent, config.latents_mean)
        std = _per_channel(latent, config.latents_std)
        return latent * std / config.scaling_factor + mean
    return latent / config.scaling_factor + (config.shift_factor or 0.0)


def _pack(z: Array, patch_size: tuple[int, int]) -> Array:
    """[B, C, h * ph, w * pw] -> [B, C * ph * pw, h, w], channels ordered (c, row, column)."""
    rows, columns = patch_size
    batch, channels, height, width = z.shape
    if height % rows or width % columns:
        raise ShapeError(
            f"a latent of {height} by {width} pixels cannot be packed by {rows}x{columns}. "
            f"Encode an image whose latent has sides that are multiples of them."
        )
    split = z.reshape(batch, channels, height // rows, rows, width // columns, columns)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // rows, width // columns)


def _unpack(packed: Array, patch_size: tuple[int, int]) -> Array:
    rows, columns = patch_size
    batch, channels, height, width = packed.shape
    split = packed.reshape(batch, channels // (rows * columns), rows, columns, height, width)
    return split.transpose(0, 1, 4, 2, 5, 3).reshape(batch, -1, height * rows, width * columns)


def _statistics(like: Array, config: AutoencoderKLConfig, params: Mapping[str, Any] | None) -> tuple[Array, Array]:
    statistics = (params or {}).get("bn")
    if statistics is None:
        raise ConfigError("this VAE normalises its latents by running statistics. Pass the model's params.")
    std = jnp.sqrt(jnp.asarray(statistics["running_var"]) + config.batch_norm_eps)
    return _per_channel(like, statistics["running_mean"]), _per_channel(like, std)


def _per_channel(like: Array, numbers: Any) -> Array:
    return jnp.asarray(numbers, like.dtype).reshape(-1, 1, 1)


def _check_channels(latent: Array, channels: int) -> None:
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ShapeError(
            f"a latent of shape {tuple(latent.shape)} does not fit this VAE, whose latents are [B, {channels}, h, w]. "
            f"Use the VAE that it was made with or for."
        )
