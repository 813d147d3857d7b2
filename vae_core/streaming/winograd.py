"""Fast convolutions for float32 on a CPU: far fewer multiplications, all of them in matrix products.

A 3x3 convolution is Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144. A 3x3 convolution of a doubled
map is 25 products for 16 outputs, and never makes the doubled map; one with stride 2 is 81. `transforms.py` has the
mathematics. There are two kernels of them: `compiled_winograd.py`, and without numba, and without strides,
`torch_winograd.py`. This is what they share.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from . import transforms
from .kernel import Each, Layout, PassInputs, Strip, one_by_one
from .numba_functions import jit
from .pages import pages
from .program import Convolve, Pass
from .scratch import Scratch, Scratches, total
from .stats import ChannelStats, join_items
from .transforms import TILE

UNCHANGED = np.ones((1, 1), np.float32)  # for `winograd_jit.pack`: what makes one product of a kernel's one number
GROUPS = {scale: each.products**2 for scale, each in transforms.BY_SCALE.items()}  # products of a tile


@functools.cache
def compiled() -> bool:
    """Whether numba is there, for the faster kernel."""
    return jit() is not None


def is_winograds(step: Pass, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a pass is one of the convolutions that are made with few multiplications."""
    if not isinstance(step, Convolve) or device.type != "cpu" or dtype != torch.float32:
        return False
    if step.conv.kernel_size != (3, 3):
        return False
    if step.scale != "same":
        return step.norm is None and step.act is None and step.residual is None
    if step.norm is None and step.act is None:
        return True
    return isinstance(step.norm, nn.GroupNorm) and isinstance(step.act, nn.SiLU)


def tiles_of(height: int, width: int) -> tuple[int, int]:
    """How many tiles cover a rectangle, below and beside one another."""
    return -(-height // TILE), -(-width // TILE)


def bias_of(step: Convolve) -> Tensor:
    """What a pass adds to each channel [K], its shortcut's bias included, in float32 on the CPU."""
    total = torch.zeros(step.conv.out_channels, dtype=torch.float32, device="cpu")
    for conv in (step.conv, step.shortcut):
        if conv is not None and conv.bias is not None:
            total = total + conv.bias.detach().float().cpu()
    return total


class Winograd(ABC):
    """3x3 convolutions by Winograd, also after a doubling. Strips are independent and run on several threads."""

    parallel: ClassVar[bool] = True
    fast: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False

    def __init__(self, inputs: PassInputs) -> None:
        assert isinstance(inputs.step, Convolve)
        self.inputs = inputs
        self.step = inputs.step
        self.transform = transforms.BY_SCALE[self.step.scale]
        self.groups = GROUPS[self.step.scale]
        self.layout = inputs.layout or self._lay_out()
        self.scratches: Scratches | None = None

    @abstractmethod
    def _lay_out(self) -> Layout:
        """The strips."""

    @abstractmethod
    def scratch_sizes(self) -> dict[str, int]:
        """Bytes of each part of a worker's memory."""

    @abstractmethod
    def packing_bytes(self) -> int:
        """Bytes that `pack` needs beside what it returns."""

    @abstractmethod
    def packed_bytes(self) -> int: ...

    def scratch_bytes(self) -> int:
        return total(self.scratch_sizes())

    @abstractmethod
    def compute_strip(self, strip: Strip, scratch: Scratch, sums: np.ndarray) -> None:
        """Compute a strip, and write the sums of its values and of their squares to `sums`, [2, K] in float64."""

    def workspace(self) -> dict[str, int]:
        """Weights, sums of all strips, and what each worker has; or, if that is more, what packing takes."""
        sizes = self.scratch_sizes()
        workers = min(self.inputs.workers, len(self.layout))
        weights = {"weights": self.packed_bytes()}
        packing = self.packing_bytes()
        if packing > workers * sum(sizes.values()):
            return {**weights, "packing": packing}
        sums = 16 * len(self.layout) * self.step.conv.out_channels
        return {**weights, "sums": sums, **{name: workers * size for name, size in sizes.items()}}

    def flops(self, strip: Strip) -> int:
        return self.step.flops(strip.positions)

    def prepare(self, packed: Any, each: Each = one_by_one) -> None:
        self.weights = packed
        strips = self.layout.strips()
        out_channels = self.step.conv.out_channels
        self._numbers = {strip: number for number, strip in enumerate(strips)}
        memory = pages(16 * len(strips) * out_channels, "sums").view(torch.float64)
        self._sums = memory.view(len(strips), 2, out_channels).numpy()
        workers = min(self.inputs.workers, len(strips))
        self.scratches = Scratches(self.inputs.store.scratch, workers, self.scratch_sizes())

    def compute(self, strip: Strip) -> int:
        """The number of the strip, whose sums are in the table of all."""
        assert self.scratches is not None
        scratch = self.scratches.take()
        number = self._numbers[strip]
        try:
            self.compute_strip(strip, scratch, self._sums[number])
        finally:
            self.scratches.put_back(scratch)
        return number

    def combine(self, parts: Sequence[int]) -> ChannelStats:
        per_item = []
        for item in range(self.inputs.target.shape[0]):
            mine = [strip for strip in self._numbers if strip.items[0] == item]
            sums = self._sums[[self._numbers[strip] for strip in mine]]
            total, squares = (torch.from_numpy(np.sum(sums[:, index], axis=0)) for index in range(2))
            per_item.append(ChannelStats.from_sums(sum(strip.positions for strip in mine), total[None], squares[None]))
        return join_items(per_item)

    def close(self) -> None:
        for name in ("weights", "_sums"):
            vars(self).pop(name, None)
        if self.scratches is not None:
            self.scratches.close()
            self.scratches = None
