"""How much of an image is kept: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ImageError, brief
from .tensor_kinds import check_given

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03


def psnr(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each of [B, C, H, W]: [B], infinite where the two are equal.

    Args:
        data_range: from black to white: 1 for values in [0, 1], 2 for [-1, 1], 255 for bytes.

    Raises:
        ImageError: images of different shapes, or a range that is none.
    """
    _check(image, reference, data_range)
    error = (image.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(data_range**2 / error)


def ssim(image: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity of each of [B, C, H, W]: [B], 1 where the two are equal.

    Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment, 2004, section III.C: a Gaussian window of 11x11 with
    a deviation of 1.5, over the pixels around which it is inside the image; the mean over channels.

    Args:
        data_range: see `psnr`.

    Raises:
        ImageError: images of different shapes, or smaller than the window, or a range that is none.
    """
    _check(image, reference, data_range)
    if min(image.shape[-2:]) < SSIM_WINDOW:
        raise ImageError(
            f"SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} pixels at least; this image is "
            f"{image.shape[-1]}x{image.shape[-2]}. Use PSNR."
        )
    channels = image.shape[1]
    places = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=image.device) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (places / SSIM_SIGMA).square())
    weights = (weights / weights.sum()).view(1, 1, -1).expand(channels, 1, -1)

    def mean(x: Tensor) -> Tensor:
        """The window's mean around each pixel, one dimension after the other."""
        rows = F.conv2d(x, weights[..., None], groups=channels)
        return F.conv2d(rows, weights[:, :, None], groups=channels)

    x = image.double()
    y = reference.double()
    mean_x = mean(x)
    mean_y = mean(y)
    variance_x = mean(x * x) - mean_x**2
    variance_y = mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1 = (SSIM_K1 * data_range) ** 2
    c2 = (SSIM_K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean(dim=(1, 2, 3))


def _check(image: Tensor, reference: Tensor, data_range: float) -> None:
    if not isinstance(data_range, int | float) or not 0 < data_range < math.inf:
        raise ImageError(f"data_range is {brief(data_range)}; give the distance from black to white, such as 1 or 255.")
    for each in (image, reference):
        check_given(each, "an image to compare", ImageError)
    if image.shape != reference.shape or image.ndim != 4:
        raise ImageError(
            f"images of shape {tuple(image.shape)} and {tuple(reference.shape)} cannot be compared; "
            f"give two of the same [B, C, H, W]."
        )
