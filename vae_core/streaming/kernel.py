"""What a kernel is: it computes one pass, strip by strip. And how a pass is cut into strips."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .maps import FeatureMap
from .options import Axes
from .program import Pass
from .stats import ChannelStats
from .store import MapStore

Span = tuple[int, int]
STRIP_BYTES = 2**22  # of a strip on a CPU, where the kernel leaves it open and no budget says otherwise
ACCELERATOR_STRIP_BYTES = 2**28  # an accelerator needs much to do at once


class Strip(NamedTuple):
    """A rectangle of a pass's target: batch items, rows and columns, each [start, stop)."""

    items: Span
    rows: Span
    columns: Span

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def positions(self) -> int:
        return (self.items[1] - self.items[0]) * self.height * self.width


@dataclass(frozen=True)
class Layout:
    """How a target is cut: every combination of a span of items, of rows and of columns is a strip, in this order."""

    items: tuple[Span, ...]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.items) * len(self.rows) * len(self.columns)

    @property
    def first(self) -> Strip:
        """None is larger than this one."""
        return Strip(self.items[0], self.rows[0], self.columns[0])

    def strips(self) -> list[Strip]:
        return [Strip(*spans) for spans in itertools.product(self.items, self.rows, self.columns)]

    def clipped(self, items: int) -> Layout:
        """The layout for the first so many items alone: the last ones of a batch may be fewer than the others."""
        spans = tuple((start, min(stop, items)) for start, stop in self.items if start < items)
        return self if spans == self.items else replace(self, items=spans)


@dataclass(frozen=True)
class PassInputs:
    """What a kernel works on: maps [B, H, W, C], where the store has put them, or on "meta" for a dry run.

    Attributes:
        dtype: precision of the arithmetic and of all maps but the output, which may be of another.
        coefficients: a GroupNorm as scale and shift [B, C]; None for another norm, or none, and in a dry run.
        circular: axes along which the image continues at its other side.
        max_rows: most target rows that a strip may have, or None.
        strip_bytes: bytes that a strip of the direct kernel has on its wider side, about; less makes others smaller.
        device: where the arithmetic happens.
        workers: threads that compute strips at once; layouts depend on it, not on the thread that asks.
        store: lends maps that a kernel needs for itself.
        layout: as planned; None to lay out now.
    """

    step: Pass
    source: FeatureMap
    target: FeatureMap
    residual: FeatureMap | None
    dtype: torch.dtype
    coefficients: tuple[Tensor, Tensor] | None
    circular: Axes
    max_rows: int | None
    strip_bytes: int
    device: torch.device
    workers: int
    store: MapStore
    layout: Layout | None = None


class Kernel(Protocol):
    """Computes one pass. Every kernel gives the same numbers within rounding.

    The order of calls is `pack`, `prepare`, `compute` for each strip of `layout`, `combine`, `close`. A dry run makes a
    kernel on maps without memory and asks for `layout` and `workspace` alone.

    Attributes:
        parallel: strips are independent, and computed by several threads at once.
        fast: it needs fewer multiplications than the pass has FLOPs for.
        whole_batch: a strip has all items, so that another number of items is laid out anew.
        layout: the strips, laid out once, or taken from `PassInputs`.
    """

    parallel: ClassVar[bool]
    fast: ClassVar[bool]
    whole_batch: ClassVar[bool]
    layout: Layout

    def __init__(self, inputs: PassInputs) -> None: ...

    def workspace(self) -> dict[str, int]:
        """Bytes that the pass needs beside its maps, by what they are for: their sum is what it needs at once."""
        ...

    def packed_bytes(self) -> int:
        """Bytes of what `pack` returns."""
        ...

    def flops(self, strip: Strip) -> int:
        """FLOPs of a strip, as plain convolutions and attention need them."""
        ...

    def pack(self) -> Any:
        """The pass's weights as its strips need them; the same for every part of a batch."""
        ...

    def prepare(self, packed: Any) -> None:
        """Make ready for strips, with what `pack` has returned, now or for an earlier part of the batch."""
        ...

    def compute(self, strip: Strip) -> Any:
        """Compute a strip into the target; what is returned goes to `combine`."""
        ...

    def combine(self, parts: Sequence[Any]) -> ChannelStats:
        """The statistics of the target, from the results of all strips in their order."""
        ...

    def close(self) -> None:
        """Give back what the kernel has; also after an error, and if it was never prepared."""
        ...


def cut(length: int, size: int, multiple: int = 1, within: int | None = None) -> tuple[Span, ...]:
    """[0, length) in spans of at most `size` rounded down to a multiple, but never under one.

    No span goes across a multiple of `within`.
    """
    size, within = max(multiple, size // multiple * multiple), within or length
    bands = ((start, min(start + within, length)) for start in range(0, length, within))
    return tuple((start, min(start + size, stop)) for first, stop in bands for start in range(first, stop, size))


def even_size(length: int, size: int, multiple: int = 1) -> int:
    """The largest size up to `size`, and of at least half of it, that cuts a length into equal spans; else `size`."""
    size = min(size, length)
    fitting = (each for each in range(size, size // 2, -1) if length % each == 0 == each % multiple)
    return next(fitting, size)
