"""Masks of images: [B, H, W] in [0, 1], 1 where an image is to change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ImageError
from .image import reflect_to
from .tensor_kinds import check_given

# Resizing goes a little beyond 0 and 1, and added masks reach a few times 1. Beyond this, the range is another one.
MOST = 8.0


def fit_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of any size as [B, height, width] in float32, scaled bilinearly.

    Args:
        mask: [H, W], [B, H, W], or with one channel: [H, W, 1], [B, 1, H, W], [B, H, W, 1]; three channels count as one
            if they are equal. Booleans, bytes (0 to 255, or 0 and 1 alone) or floats in [0, 1].
        size: (height, width), which also decides between two readings of a shape.

    Raises:
        ImageError: another shape, other values, or channels that differ.
    """
    check_given(mask, "a mask", ImageError)
    if mask.is_complex() or mask.is_meta:
        raise ImageError(f"a mask is of {mask.dtype} on {mask.device}; give [B, height, width] of floats in [0, 1].")
    if mask.ndim not in (2, 3, 4) or 0 in mask.shape:
        raise ImageError(f"a mask has the shape {tuple(mask.shape)}; give [B, height, width].")
    mask = _unit_values(_one_channel(mask, size))[:, None]  # [B, 1, H, W]
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False)
    return mask[:, 0]


def _one_channel(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] of a mask whose channel may be anywhere."""
    if mask.ndim == 2:
        return mask[None]
    given = tuple(mask.shape)
    if mask.ndim == 3:
        # A width of 1, 3 or 4 is that of channels, unless the image is as narrow.
        if given[2] not in (1, 3, 4) or (given[:2] != tuple(size) and (given[2] == size[1] or given[0] == 1)):
            return mask
        mask = mask[None]
    first = mask.shape[1]
    last = mask.shape[-1]
    channels_last = first not in (1, 3) or (last in (1, 3, 4) and tuple(mask.shape[1:3]) == tuple(size))
    if mask.ndim != len(given) or channels_last:
        mask = mask.movedim(-1, 1)
    if mask.shape[1] not in (1, 3) or not (mask == mask[:, :1]).all():
        what = "channels that differ" if mask.shape[1] == 3 else f"{mask.shape[1]} channels"
        raise ImageError(
            f"a mask of shape {given} has {what}; a mask has one. Make one of the image's channels a mask."
        )
    return mask[:, 0]


def _unit_values(mask: Tensor) -> Tensor:
    """A mask of any type as float32 in [0, 1]."""
    if mask.dtype == torch.bool:
        return mask.float()
    values = mask.float()
    low = values.min().item()
    high = values.max().item()
    if not mask.is_floating_point():
        white = 65535 if mask.dtype == torch.uint16 and high > 255 else 255
        if low >= 0 and high <= white:
            return values if high <= 1 else values / white
        raise ImageError(f"a mask of {mask.dtype} has values from {low:g} to {high:g}; give 0 to 255.")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("a mask has NaN or infinity in it. The fault is before this: look at what made the mask.")
    if not (low >= -MOST and high <= MOST):
        raise ImageError(
            f"a mask has values from {low:g} to {high:g}; 0 to 1 are taken. Divide it by its white, or give bytes."
        )
    return values.clamp(0, 1)


def extend_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [B, H, W] extended at the bottom and the right, as images are padded for the model."""
    return reflect_to(mask[:, None], height, width)[:, 0]


def grow_mask(mask: Tensor, grow: int, feather: int = 0) -> Tensor:
    """A mask [B, H, W] widened by `grow` pixels on all sides, then faded out over about `feather` more.

    What the widened mask covers fully stays fully covered: fading goes outwards.
    """
    reach = (feather + 1) // 2
    mask = _widen(mask[:, None], grow + reach)
    if reach:
        mask = _average(_average(mask, reach // 2), reach - reach // 2)
    return mask[:, 0]


def gaps(original: Sequence[int], painted: Sequence[int], factor: int) -> tuple[int, int]:
    """How many rows and columns a painted image lacks of the original, by their shapes [B, H, W, C].

    Raises:
        ImageError: sizes or channels that do not belong together.
    """
    found = original[1] - painted[1], original[2] - painted[2]
    if any(not 0 <= gap < factor for gap in found):
        raise ImageError(
            f"the latent decodes to {painted[2]}x{painted[1]}, but the original image is "
            f"{original[2]}x{original[1]}. Connect the image that was encoded, at the same size."
        )
    if painted[3] != original[3] and (painted[3], original[3]) != (3, 4):
        raise ImageError(
            f"the decoded image has {painted[3]} channels and the original {original[3]}. Connect one with as many."
        )
    return found


def paste(original: Tensor, painted: Tensor, mask: Tensor, factor: int) -> Tensor:
    """`composite` of a painted image that may lack less than `factor` pixels at the edges, cut off evenly.

    Args:
        original: [B, H, W, C]; C may be larger by an alpha, which is kept. Of batches of 1 there are as many as needed.
        painted: [B, h, w, C].
        mask: [B, H, W].

    Raises:
        ImageError: sizes or channels that do not belong together.
    """
    missing = gaps(original.shape, painted.shape, factor)
    count = max(len(original), len(painted), len(mask))
    original, painted, mask = (
        each.expand(count, *each.shape[1:]) if len(each) == 1 else each for each in (original, painted, mask)
    )
    result = original.clone()
    top, left = (gap // 2 for gap in missing)
    height, width = painted.shape[1:3]
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    place = (*window, slice(0, painted.shape[3]))
    result[place] = composite(original[place], painted.to(original.device), mask[window].to(original.device))
    return result


def composite(original: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """`painted` where the mask is 1, `original` where it is 0, bit for bit, and a mixture in between.

    Args:
        original, painted: [B, H, W, C].
        mask: [B, H, W].
    """
    weight = mask[..., None].to(original)
    mixed = torch.lerp(original, painted.to(original), weight)
    return torch.where(weight > 0, mixed, original)


def _widen(mask: Tensor, reach: int) -> Tensor:
    """The maximum over a square of `reach` pixels to each side, of [B, 1, H, W]."""
    if not reach:
        return mask
    for dim in (2, 3):
        side = mask.shape[dim]
        step = min(reach, side)  # farther than the mask is long, all is covered
        kernel = [1, 1]
        kernel[dim - 2] = 2 * step + 1
        padding = [0, 0]
        padding[dim - 2] = step
        padded = F.pad(mask, (padding[1], padding[1], padding[0], padding[0]))
        mask = F.max_pool2d(padded, kernel, stride=1)
    return mask


def _average(mask: Tensor, reach: int) -> Tensor:
    """The mean over a square of `reach` pixels to each side, of [B, 1, H, W]; edges are continued."""
    if not reach:
        return mask
    for dim in (2, 3):
        pad = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
        total = F.pad(mask.double(), pad, mode="replicate").cumsum(dim)
        before = F.pad(total, (1, 0, 0, 0) if dim == 3 else (0, 0, 1, 0))
        length = mask.shape[dim]
        width = 2 * reach + 1
        mask = (before.narrow(dim, width, length) - before.narrow(dim, 0, length)) / width
    return mask.float().clamp(0, 1)
