"""What comes in over the wires, looked at before anything heavy starts. A host checks what is typed into widgets, but
not what is linked to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..vae_core.errors import ConfigError, ImageError, MemoryBudgetError
from ..vae_core.masks import fit_mask
from ..vae_core.streaming import engine

GIB = 2**30


def checked_image(image: Any, dimensions: Sequence[int] = (4,)) -> Tensor:
    """An IMAGE, if it is one.

    Raises:
        ImageError: a video's frames in one, an empty batch, whole numbers, or no image at all.
    """
    if not isinstance(image, Tensor) or image.ndim not in dimensions or 0 in image.shape:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ImageError(
            f"this is no batch of images: {shape}, where [batch, height, width, channels] is needed, with "
            f"one image at least. Check what is connected to the input."
        )
    if not image.is_floating_point():
        raise ImageError(
            f"this image is of {str(image.dtype).removeprefix('torch.')}, whose white is not known; images on this "
            f"wire are floating-point numbers from 0 to 1. Convert it before."
        )
    return image


def checked_mask(mask: Any, image: Tensor) -> Tensor:
    """A MASK as [B, H, W] of the size of images [B, H, W, C], for as many of them or for all.

    Raises:
        ImageError: no mask, or as many as do not go with the images.
        NonFiniteError: a mask with values that are no numbers.
    """
    if not isinstance(mask, Tensor):
        raise ImageError(f"this is no mask but {type(mask).__name__}. Check what is connected to the input.")
    found = fit_mask(mask, (int(image.shape[1]), int(image.shape[2])))
    check_finite(mask, "mask")
    check_batches(pictures=len(image), masks=len(found))
    return found


def check_batches(**counts: int) -> None:
    """Raise ImageError unless all of these are as many, or one."""
    if len(set(counts.values()) - {1}) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ImageError(f"these do not go together: {listed}. Give as many of each, or one.")


def check_finite(values: Tensor, what: str) -> None:
    """Raise NonFiniteError if a latent, an image, a mask or a posterior holds NaN or infinite values."""
    engine.check_finite(values, what, "this node")


def check_at_least(least: int, **values: float) -> None:
    """Raise ConfigError unless all of these are finite numbers, and no smaller."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= least):
            raise ConfigError(f"{name} is {value}. Give {least} or more.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless a value is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}. Choose one of {', '.join(choices)}.")


def check_room(shape: Sequence[int], dtype: torch.dtype, device: torch.device, total: int | None) -> None:
    """Whether a decoded image [B, H, W, C] can be held at all.

    Args:
        total: bytes that the device has; None where nobody knows.

    Raises:
        MemoryBudgetError: it is larger than the device's whole memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if total is not None and size > total:
        batch, height, width, _ = shape
        raise MemoryBudgetError(
            f"this latent decodes to {batch} image{'s' if batch > 1 else ''} of {width}x{height}, which take "
            f"{size / GIB:.1f} GiB, and {device} has {total / GIB:.1f} GiB in all. Decode a smaller latent, or fewer "
            f"at once."
        )
