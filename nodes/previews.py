"""What the host's progress bar shows of a run, small: what goes in, and images that came of it."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..vae_core.image import to_model_range, to_pil
from ..vae_core.preview import latent_colours

_LATENT_SIDE = 256
IMAGE_SIDE = 512  # pixels at most


def latent_preview(samples: Tensor) -> Image.Image:
    """The first latent of [B, C, h, w] as colours, enlarged."""
    height, width = samples.shape[-2:]
    factor = max(1, _LATENT_SIDE // max(width, height))
    image = to_pil(to_model_range(latent_colours(samples[:1].float())))[0]
    return image.resize((width * factor, height * factor), Image.Resampling.BICUBIC)


def thumbnail(pixels: Tensor) -> Image.Image:
    """The first image of [B, C, H, W] in [-1, 1], with every n-th pixel."""
    step = max(1, max(pixels.shape[-2:]) // IMAGE_SIDE)
    return to_pil(torch.nan_to_num(pixels[:1, :, ::step, ::step].float()))[0].convert("RGB")
