"""Checks of what comes in over the wires, made before anything expensive starts.

The host checks what is typed into widgets, but not what is linked to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from ..vae_core.errors import ConfigError, ImageError, MemoryBudgetError, NonFiniteError, brief
from ..vae_core.masks import fit_mask
from ..vae_core.streaming.options import PRECISIONS
from ..vae_core.streaming.source import count_not_finite, not_finite_message
from ..vae_core.tensor_kinds import value_obstacle
from ..vae_core.units import GIB


def checked_image(image: Any, dimensions: Sequence[int] = (4,)) -> Tensor:
    """An IMAGE, if it is one.

    Raises:
        ImageError: a video's frames in one tensor, an empty batch, integers, floats of 8 bits, or no image at all.
    """
    why = value_obstacle(image)
    if why is not None or image.ndim not in dimensions or 0 in image.shape:
        found = f"has the shape {tuple(image.shape)}" if why is None else why.what
        raise ImageError(
            f"this is not a batch of images: it {found}; expected [batch, height, width, channels] with at least "
            f"one image. Check what is connected to the input."
        )
    if image.dtype not in PRECISIONS:
        remedy = f"{_division(image.dtype)} before connecting it."
        raise ImageError(
            f"This image has dtype {str(image.dtype).removeprefix('torch.')}; ComfyUI images are floating point from 0 "
            f"to 1. {remedy}"
        )
    return image


def _division(dtype: torch.dtype) -> str:
    """What turns pixels of this dtype into values from 0 to 1."""
    if dtype in (torch.uint8, torch.uint16):
        return f"Divide by {torch.iinfo(dtype).max}"
    return "Convert it to float32"


def checked_mask(mask: Any, image: Tensor) -> Tensor:
    """A MASK as [B, H, W] of the size of images [B, H, W, C], for as many of them or for all.

    Raises:
        ImageError: not a mask, or a number of masks that does not match the images.
        NonFiniteError: a mask with NaN or infinite values.
    """
    why = value_obstacle(mask)
    if why is not None:
        raise ImageError(f"this is not a mask: it {why.what}. Check what is connected to the input.")
    if mask.numel():
        check_finite(mask, "mask")
    found = fit_mask(mask, (int(image.shape[1]), int(image.shape[2])))
    check_batches(images=len(image), masks=len(found))
    return found


def check_batches(**counts: int) -> None:
    """Raise ImageError unless all of these numbers are equal, or 1."""
    if len(set(counts.values()) - {1}) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ImageError(f"these batches do not match: {listed}. Give the same number of each, or one.")


def check_finite(values: Tensor, what: str) -> None:
    """Raise NonFiniteError if a mask or a posterior has NaN or infinite values; images and latents a job checks."""
    bad = count_not_finite(values)
    if bad:
        raise NonFiniteError(not_finite_message(what, bad, values.numel(), "this node"))


def check_at_least(least: int, **values: float) -> None:
    """Raise ConfigError unless all of these are finite numbers, and no smaller."""
    for name, value in values.items():
        if not least <= value < math.inf:  # NaN is neither
            raise ConfigError(f"{name} is {brief(value)}; it must be {least} or more.")


def stays_inside(name: str) -> bool:
    """Whether a relative path stays below the folder that it is joined to, on any system."""
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            return False
    return "\0" not in name


def check_room(shape: Sequence[int], dtype: torch.dtype, device: torch.device, total: int | None) -> None:
    """Raise unless the memory of a device can hold a decoded image [B, H, W, C].

    Args:
        total: bytes that the device has; None if unknown.

    Raises:
        MemoryBudgetError: it is larger than the device's whole memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if total is not None and size > total:
        batch, height, width, _ = shape
        raise MemoryBudgetError(
            f"this latent decodes to {batch} image{'s' if batch > 1 else ''} of {width}x{height}, which need "
            f"{size / GIB:.1f} GiB, but {device} has {total / GIB:.1f} GiB in total. Decode a smaller latent, or a "
            f"smaller batch."
        )
