"""What a kernel is: it computes one pass, strip by strip. And how a pass is cut into strips."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .maps import FeatureMap
from .options import Axes
from .program import Pass
from .scratch import fresh
from .stats import Stats
from .store import Store

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
class Spans:
    """[0, length) cut into spans, none of which is listed before it is asked for.

    Attributes:
        size: of a span; the last one may be shorter.
        within: no span goes across a multiple of this. The last one before it may be shorter, too.
        before: a span of its own meaning that comes before the others, if there is one.
        workers: how many share the spans. Those that are left when each has had as many are shorter, so that each has
            as much.
        multiple: of what spans begin at.
    """

    length: int
    size: int
    within: int
    before: Span | None = None
    workers: int = 1
    multiple: int = 1

    def __len__(self) -> int:
        return sum(self.sizes.values()) + (self.before is not None)

    def __iter__(self) -> Iterator[Span]:
        if self.before is not None:
            yield self.before
        for first in range(0, self.length, self.within):
            stop = min(first + self.within, self.length)
            shared, short = self._shared(stop - first)
            for start in range(first, first + shared, self.size):
                yield start, start + self.size
            for start in range(first + shared, stop, short):
                yield start, min(start + short, stop)

    @property
    def largest(self) -> Span:
        """The first one that is cut; no other is larger."""
        length = min(self.within, self.length)
        shared, short = self._shared(length)
        return 0, self.size if shared else min(short, length)

    @functools.cached_property
    def sizes(self) -> Counter[int]:
        """How many spans of each size are cut."""
        full, rest = divmod(self.length, self.within)
        found: Counter[int] = Counter()
        for length, times in ((self.within, full), (rest, 1)):
            shared, short = self._shared(length)
            many, last = divmod(length - shared, short)
            for size, count in ((self.size, shared // self.size), (short, many), (last, 1 if last else 0)):
                found[size] += times * count
        return +found

    @property
    def busiest(self) -> Counter[int]:
        """How many spans of each size the first worker has; no other has more. They are within the whole length."""
        shared, short = self._shared(self.length)
        whole = Counter({self.size: shared // self.size // self.workers})
        return whole + Counter([min(short, self.length - shared)] if shared < self.length else [])

    def _shared(self, length: int) -> tuple[int, int]:
        """Of so much: what is cut into whole spans, as many for each worker, and the size of the others."""
        shared = length // (self.size * self.workers) * self.size * self.workers
        if self.workers == 1:
            return shared, self.size
        return shared, max(1, -(-(length - shared) // (self.workers * self.multiple))) * self.multiple


@dataclass(frozen=True)
class Layout:
    """How a target is cut: every combination of a span of items, of rows and of columns is a strip, in this order."""

    items: Spans
    rows: Spans
    columns: Spans

    def __len__(self) -> int:
        return len(self.items) * len(self.rows) * len(self.columns)

    @property
    def first(self) -> Strip:
        """None is larger than this one."""
        return Strip(self.items.largest, self.rows.largest, self.columns.largest)

    def strips(self) -> list[Strip]:
        return [Strip(*spans) for spans in itertools.product(self.items, self.rows, self.columns)]

    def clipped(self, items: int) -> Layout:
        """The layout for the first so many items alone: the last ones of a batch may be fewer than the others."""
        return replace(self, items=replace(self.items, length=min(items, self.items.length)))


@dataclass(frozen=True)
class PassInputs:
    """What a kernel works on: maps [B, H, W, C], where the store has put them, or planned ones for a dry run.

    Attributes:
        dtype: precision of the computation; bfloat16 may be that of what is multiplied alone.
        map_dtype: that of all maps but the output, which may be of another.
        coefficients: a GroupNorm as scale and shift [B, C], in float64 on the CPU, or on the device as `Stats.affine`
            gives it; None for another norm, or none, and in a dry run.
        circular: axes along which the image continues at its other side.
        max_rows: most target rows that a strip may have, or None.
        strip_bytes: bytes that a strip of the direct kernel has on its wider side, about; less makes others smaller.
        device: where it computes.
        workers: threads that compute strips at once; layouts depend on it, not on the thread that asks.
        store: lends maps that a kernel needs for itself.
        layout: as planned; None to lay out now.
    """

    step: Pass
    source: FeatureMap
    target: FeatureMap
    residual: FeatureMap | None
    dtype: torch.dtype
    map_dtype: torch.dtype
    coefficients: tuple[Tensor, Tensor] | None
    circular: Axes
    max_rows: int | None
    strip_bytes: int
    device: torch.device
    workers: int
    store: Store
    layout: Layout | None = None


Each = Callable[[Callable[[int], object], int], None]
"""Runs a piece of work for each number below a count, in any order or side by side."""


def one_by_one(work: Callable[[int], object], count: int) -> None:
    """`Each` in this thread."""
    for number in range(count):
        work(number)


Memory = Callable[[int], Tensor]
"""Gives so many bytes, uninitialised."""

Packed = TypeVar("Packed")
Result = TypeVar("Result")


class Kernel(Protocol[Packed, Result]):
    """Computes one pass. Every kernel gives the same numbers within rounding.

    `Packed` is what weights are made of for its strips, `Result` what a strip leaves for the statistics.

    The order of calls is `pack`, `prepare`, `compute` for each strip of `layout`, `combine`, `close`. A dry run makes a
    kernel on maps without memory and asks for `layout` and `workspace` alone.

    Attributes:
        parallel: strips are independent, and computed by several threads at once.
        fast: it needs fewer multiplications than the pass has FLOPs for.
        whole_batch: a strip has all items, so that another number of items is laid out again.
        layout: the strips, laid out once, or taken from `PassInputs`.
    """

    parallel: ClassVar[bool]
    fast: ClassVar[bool]
    whole_batch: ClassVar[bool]
    layout: Layout

    def __init__(self, inputs: PassInputs) -> None: ...

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it can compute a pass on this source, in a precision, on a device."""
        ...

    def workspace(self) -> dict[str, int]:
        """Bytes that the pass needs beside its maps, by what they are for: their sum is what it needs at once."""
        ...

    def held(self) -> dict[str, int]:
        """Bytes that it has of the engine for its pass, once it is prepared, by the names that `workspace` has."""
        ...

    def packed_bytes(self) -> int:
        """Bytes of what `pack` returns."""
        ...

    def scratch_bytes(self) -> int:
        """Bytes of each block that it borrows of the store's scratch memory for its strips."""
        ...

    def flops(self, strip: Strip) -> int:
        """FLOPs of a strip, as plain convolutions and attention need them."""
        ...

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> Packed:
        """The pass's weights as its strips need them; the same for every part of a batch.

        Args:
            each: shares work among the threads that compute strips.
            memory: where a kernel on a CPU may put them, asked once for all of `packed_bytes`.
        """
        ...

    def prepare(self, packed: Packed, each: Each = one_by_one) -> None:
        """Make ready for strips, with what `pack` has returned, now or for an earlier part of the batch; `each` as
        there."""
        ...

    def compute(self, strip: Strip) -> Result:
        """Compute a strip into the target; what is returned goes to `combine`."""
        ...

    def combine(self, parts: Sequence[Result]) -> Stats:
        """The statistics of the target, from the results of all strips in their order."""
        ...

    def close(self) -> None:
        """Give back what the kernel has; also after an error, and if it was never prepared."""
        ...


def cut(length: int, size: int, multiple: int = 1, within: int | None = None, workers: int = 1) -> Spans:
    """[0, length) in spans of at most `size` rounded down to a multiple, but never under one.

    No span goes across a multiple of `within`. `workers` have about as much each.
    """
    size = max(multiple, size // multiple * multiple)
    return Spans(length, size, within or length, workers=workers, multiple=multiple)


def even_size(length: int, size: int, multiple: int = 1) -> int:
    """The largest size up to `size`, and of at least half of it, that cuts a length into equal spans; else `size`."""
    size = min(size, length)
    # By the number of spans, or by their size, whichever are fewer to try.
    if length < size * size // 2:
        counts = range(-(-length // size), -(-length // (size // 2)))
        sizes = (length // count for count in counts if length % count == 0)
    else:
        sizes = (each for each in range(size, size // 2, -1) if length % each == 0)
    return next((each for each in sizes if each % multiple == 0), size)
