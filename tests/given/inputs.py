"""What goes into a model: one latent and one image for all tests."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_core import AutoencoderKL


def latent(
    batch: int = 1,
    height: int = 8,
    width: int | None = None,
    channels: int = 4,
    seed: int = 2,
    *,
    model: AutoencoderKL | None = None,
) -> Tensor:
    """Random latents [batch, channels, height, width], square by default; a model may give the channels."""
    channels = channels if model is None else model.config.latent_channels
    return torch.randn(
        batch, channels, height, height if width is None else width, generator=torch.Generator().manual_seed(seed)
    )


def image(
    batch: int = 1,
    height: int = 64,
    width: int | None = None,
    channels: int = 3,
    seed: int = 1,
    *,
    model: AutoencoderKL | None = None,
) -> Tensor:
    """Random images [batch, channels, height, width] in [-1, 1], square by default; a model may give the channels."""
    channels = channels if model is None else model.config.in_channels
    return (
        torch.rand(
            batch, channels, height, height if width is None else width, generator=torch.Generator().manual_seed(seed)
        )
        * 2
        - 1
    )
