"""The reference path: the modules as they are, on whole images or on blended tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import DamagedWeightError, NonFiniteError
from ..tiling.blend import blended_tiles
from ..tiling.grid import TileSpec
from .choose import is_watched
from .executor import damaged_message
from .half import Half, Shape
from .source import count_not_finite


def run_reference(half: Half, x: Tensor) -> Tensor:
    """The reference path's result for x, as gradients, compilers and transformations of functions see it.

    Raises:
        DamagedWeightError: the result is not finite, because a weight is not.
    """
    result = half.reference(x)
    if not is_watched(x):
        check_result(half, result)
    return result


def check_result(half: Half, result: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise DamagedWeightError or, for float16, NonFiniteError if the reference path's result is not finite."""
    if not count_not_finite(result):
        return
    if (damaged := half.find_damage()) is not None:
        raise DamagedWeightError(damaged_message(damaged))
    if dtype == torch.float16:
        raise NonFiniteError("values went out of the range of float16. Run this model in bfloat16 or float32.")


def run_tiles(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    tiling: TileSpec,
    units: tuple[int, int],
    shape: Shape,
    out: Tensor | None = None,
) -> Tensor:
    """A function on blended tiles of x [B, C, H, W].

    Args:
        units: pixels along one side of a latent pixel, in x and in the result.
        shape: of the result.
        out: memory for it; None for fresh memory.
    """
    for piece, top, left in blended_tiles(run, x, tiling, *units):
        if out is None:
            out = piece.new_empty(shape)
        out[:, :, top : top + piece.shape[2], left : left + piece.shape[3]].copy_(piece)
    assert out is not None
    return out
