"""What a convolution pass works on, and how its target is cut into strips."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import winograd
from .maps import FeatureMap
from .program import Convolve


class Wrap(NamedTuple):
    """Along which axes the image continues at its other side, instead of ending in zeros."""

    y: bool = False
    x: bool = False


NO_WRAP = Wrap()
STRIP_BYTES = 2**22  # of a strip on a CPU, where the kernel leaves it open and no budget says otherwise


class Strip(NamedTuple):
    """A rectangle of a pass's target: batch items, rows and columns, each [start, stop)."""

    items: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def tiles(self) -> int:
        """Winograd's tiles that cover it."""
        return -(-(self.rows[1] - self.rows[0]) // winograd.TILE) * -(
            -(self.columns[1] - self.columns[0]) // winograd.TILE
        )

    @property
    def positions(self) -> int:
        return (self.items[1] - self.items[0]) * (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


Span = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """How a target is cut: every combination of a span of items, of rows and of columns is a strip, in this order."""

    items: list[Span]
    rows: list[Span]
    columns: list[Span]

    def __len__(self) -> int:
        return len(self.items) * len(self.rows) * len(self.columns)

    @property
    def first(self) -> Strip:
        """None is larger than this one."""
        return Strip(self.items[0], self.rows[0], self.columns[0])

    def strips(self) -> list[Strip]:
        return [Strip(*spans) for spans in itertools.product(self.items, self.rows, self.columns)]


@dataclass(frozen=True)
class PassInputs:
    """What a pass works on: maps [B, H, W, C], where the store has put them.

    Attributes:
        coefficients: the norm as scale and shift [B, C] in float32, or float64 for maps in that; or None.
        max_rows: most target rows that a strip may have, or None.
        strip_bytes: what a strip of the direct kernel holds of its wider side, about; less makes others smaller too.
        device: where the arithmetic happens.
    """

    step: Convolve
    source: FeatureMap
    target: FeatureMap
    residual: FeatureMap | None
    coefficients: tuple[Tensor, Tensor] | None
    wrap: Wrap
    max_rows: int | None
    strip_bytes: int
    device: torch.device


def cut(length: int, size: int, multiple: int = 1, within: int | None = None) -> list[Span]:
    """[0, length) in spans of at most `size` rounded down to a multiple, but never under one.

    No span goes across a multiple of `within`.
    """
    size, within = max(multiple, size // multiple * multiple), within or length
    bands = ((start, min(start + within, length)) for start in range(0, length, within))
    return [(start, min(start + size, stop)) for first, stop in bands for start in range(first, stop, size)]


def even_size(length: int, size: int, multiple: int = 1) -> int:
    """The largest size up to `size`, and of at least half of it, that cuts a length into equal spans; else `size`."""
    size = min(size, length)
    fitting = (each for each in range(size, size // 2, -1) if length % each == 0 == each % multiple)
    return next(fitting, size)


def convolution_cost(step: Convolve, positions: int) -> int:
    """Multiplications and additions of a convolution as torch computes it, for so many positions of its target."""
    cost = 2 * step.conv.weight.numel()
    if step.shortcut is not None:
        cost += 2 * step.shortcut.weight.numel()
    return cost * positions


class ConvolutionKernel:
    """What the kernels of convolution passes share: strips and their cost follow from how they cut the target."""

    def __init__(self, inputs: PassInputs) -> None:
        self.inputs = inputs
        self.step = inputs.step

    def cut(self) -> Cut:
        raise NotImplementedError

    def strips(self) -> list[Strip]:
        return self.cut().strips()

    def costs(self) -> list[int]:
        return [convolution_cost(self.step, strip.positions) for strip in self.strips()]

    def extent(self) -> tuple[int, int]:
        """How many strips there are, and what they cost together."""
        return len(self.cut()), convolution_cost(self.step, self.inputs.target.shape[:3].numel())
