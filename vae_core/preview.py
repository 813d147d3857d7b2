"""Images of what has no colours: latents, posteriors, errors. All are [B, 3, H, W] in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import without_autocast

# Deviations from the mean that make black and white.
COLOUR_RANGE = 2.5
# Black, through red and yellow, to white: where each of red, green and blue begins and how fast it rises.
HEAT_STARTS = (0.0, 0.375, 0.75)
HEAT_WIDTHS = (0.375, 0.375, 0.25)
_LARGE = 1e12  # beyond any latent; the squares of as many as there are stay below float32's largest number


def latent_colours(z: Tensor) -> Tensor:
    """The three main directions of latents [B, C, h, w] as red, green and blue: [B, 3, h, w] in [0, 1].

    Principal components over all latent pixels of each item; the sign of each is the one of its largest entry. A latent
    of fewer than three channels, or a flat one, becomes grey.
    """
    values = z.detach().float().flatten(2)  # [B, C, N]
    values = torch.nan_to_num(values)
    largest = values.abs().amax(dim=(1, 2), keepdim=True)
    values = values / torch.where(largest > _LARGE, largest, 1)  # so that squares stay in range
    centred = values - values.mean(dim=2, keepdim=True)
    with without_autocast(centred.device):
        covariance = centred @ centred.transpose(1, 2) / max(1, centred.shape[2] - 1)
        _, vectors = torch.linalg.eigh(covariance.cpu())
        axes = vectors.flip(2)[:, :, :3].to(centred.device)  # largest first
        signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
        scores = (axes * signs).transpose(1, 2) @ centred  # [B, 3, N]
    if scores.shape[1] < 3:
        scores = scores[:, :1].expand(-1, 3, -1)
    deviation = scores.square().mean(dim=2, keepdim=True).sqrt().clamp(min=1e-6)
    colours = (scores / (2 * COLOUR_RANGE * deviation) + 0.5).clamp(0, 1)
    return colours.view(z.shape[0], 3, *z.shape[2:])


def heat(values: Tensor, top: float | Tensor) -> Tensor:
    """[B, H, W], 0 to `top`, as colours from black through red and yellow to white: [B, 3, H, W]."""
    part = (values.float() / top).clamp(0, 1)[:, None]
    starts, widths = (part.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (HEAT_STARTS, HEAT_WIDTHS))
    return ((part - starts) / widths).clamp(0, 1)


def error_map(image: Tensor, reference: Tensor, top: float = 0.1) -> Tensor:
    """Absolute differences of images [B, C, H, W], the mean over channels, as heat; white at `top` and above."""
    return heat((image.float() - reference.float()).abs().mean(dim=1), top)


def posterior_image(mean: Tensor, logvar: Tensor, scale: int = 8) -> Tensor:
    """The mean as colours and, at its right, the standard deviation as heat, `scale` pixels for each latent pixel.

    Args:
        mean, logvar: [B, C, h, w].

    Returns:
        [B, 3, h * scale, 2 * w * scale]; white heat is the largest deviation of each item.
    """
    deviation = torch.exp(0.5 * logvar.float()).mean(dim=1)
    top = deviation.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    both = torch.cat([latent_colours(mean), heat(deviation, top)], dim=3)
    return F.interpolate(both, scale_factor=scale, mode="nearest")
