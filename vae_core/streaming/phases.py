"""A convolution after a doubling as four smaller ones of the map before it, one for each parity of rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor, nn

PARITIES = tuple(product((0, 1), repeat=2))
"""Of rows and columns of the doubled map, in the order of `phase_kernels`."""


def phase_kernels(conv: nn.Conv2d, place: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """A 3x3 kernel on a doubled map as four 2x2 kernels on the map itself, one for each parity of the output.

    Args:
        place: puts each where it is needed, so that no more than one is here.
    """
    weight = conv.weight.detach().to(torch.promote_types(conv.weight.dtype, torch.float32))
    for a, b in PARITIES:
        yield place(_merged(_merged(weight, dim=2, odd=a), dim=3, odd=b))


def _merged(weight: Tensor, dim: int, odd: int) -> Tensor:
    """Three taps along a dimension as two, for the outputs of one parity: those that meet the same position added."""
    first, middle, last = weight.split(1, dim)
    return torch.cat([first + middle, last] if odd else [first, middle + last], dim)
