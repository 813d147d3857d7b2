"""How one convolution pass is computed, strip by strip. Each kernel gives the same numbers within rounding.

`DirectConvolution` runs anywhere and in any precision. `WinogradConvolution` is for float32 on a CPU. Which one a pass
takes is decided by `choose_kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import winograd
from .direct import DirectConvolution
from .maps import FeatureMap, joined
from .program import Convolve
from .stats import ChannelStats, join_items
from .strips import STRIP_BYTES, ConvolutionKernel, Cut, Strip, cut

# Where Winograd is the faster, as `benchmarks/kernels.py` measures it. Below so much arithmetic (of a direct
# convolution) its calls cost more than its multiplications save; below so many positions of the target for a channel,
# making its weights does.
_WINOGRAD_ARITHMETIC = 2**32
_WINOGRAD_POSITIONS_PER_CHANNEL = 7.0  # for the geometric mean of both sides' channels
_FEW_CHANNELS = 16  # on either side: the transforms are most of the work
_FEW_UNCOMPILED = 256  # the same, for transforms in torch operations
_WINOGRAD_UPSAMPLED = 2**12  # positions after a doubling, where the direct kernel has its own overhead


class WinogradConvolution(ConvolutionKernel):
    """Few multiplications, on float32 maps in memory. Strips are independent and run on several threads."""

    parallel = True
    fast = True

    def prepare(self) -> None:
        step, inputs = self.step, self.inputs
        bias = step.conv.bias.detach().float()  # type: ignore[union-attr]
        strip = self.cut().first
        pack = winograd.pack_upsample if step.scale == "up" else winograd.pack_winograd
        self.products = pack(step.conv, strip.tiles)
        self.shortcut = None
        if step.shortcut is not None:
            matrix = step.shortcut.weight.detach().float()[None, :, :, 0, 0]
            self.shortcut = winograd.PackedProducts.pack(matrix, strip.positions)
            bias = bias + step.shortcut.bias.detach().float()  # type: ignore[union-attr]
        # Arrays, since each operation on a tensor would give the interpreter lock away; see `winograd._Operands`.
        self.bias = bias.numpy()
        self.coefficients = inputs.coefficients and (inputs.coefficients[0].numpy(), inputs.coefficients[1].numpy())
        self.sources, self.targets = (
            [winograd.whole_array(band) for band in each.bands] for each in (inputs.source, inputs.target)
        )

    def workspace(self, workers: int) -> int:
        conv, strip = self.step.conv, self.cut().first
        groups = winograd.GROUPS[self.step.scale]
        products = strip.tiles * groups * (conv.in_channels + conv.out_channels)
        edges = 6 * (strip.columns[1] - strip.columns[0] + 2) * conv.in_channels
        extra = 0  # beside the products: what is added, where it does not lie in the target
        if self.step.shortcut is not None:
            extra = strip.positions * (self.step.shortcut.in_channels + conv.out_channels)
        elif conv.out_channels < winograd.VECTOR:  # the output's layout is another
            extra = strip.positions * conv.out_channels
        weights = groups * conv.in_channels * conv.out_channels
        packing = 2 * weights // winograd.pieces_of(weights, self.step.scale)
        return 4 * (weights + max(packing, workers * (products + edges + extra)))

    def cut(self) -> Cut:
        batch, height, width, channels = self.inputs.target.shape
        unit = winograd.TILE
        widest, groups = max(channels, self.inputs.source.shape[3]), winograd.GROUPS[self.step.scale]
        most = winograd.most_tiles(widest, groups, min(1.0, self.inputs.strip_bytes / STRIP_BYTES))
        across, down = -(-width // unit), -(-height // unit)  # tiles
        parts = -(-across // most)
        across = -(-across // parts)
        columns = cut(width, across * unit)
        tall = max(1, most // across)
        if self.inputs.max_rows is not None:
            tall = min(tall, max(1, self.inputs.max_rows // unit))
        # The first strip sets the size of the products, so strips are alike; few of them are shared out evenly.
        count, workers = -(-down // tall), torch.get_num_threads()
        if count * parts * batch < 4 * workers:
            count = -(-count // workers) * workers
        rows = -(-down // count) * unit
        return Cut(cut(batch, 1), cut(height, rows, unit, self.inputs.target.band_rows), columns)

    def compute(self, strip: Strip) -> tuple[int, int, np.ndarray, np.ndarray]:
        inputs = self.inputs
        item, (top, bottom), (left, right) = strip.items[0], strip.rows, strip.columns
        up = self.step.scale == "up"
        first, stop = (top // 2, bottom // 2) if up else (top, bottom)
        window = self._window(item, first - 1, stop + 1)
        written, place = self._place(item, top, bottom)
        target = winograd.Target(written, left, right)
        if up:
            sums = winograd.upsample_strip(window, self.products, self.bias, target, inputs.wrap.x)
        else:
            coefficients = self.coefficients and (self.coefficients[0][item], self.coefficients[1][item])
            residual, in_place = self._residual(item, strip)
            sums = winograd.winograd_strip(
                window, coefficients, self.products, self.bias, residual, in_place, target, inputs.wrap.x
            )
        if place is not None:
            place[:, left:right].copy_(target.values)
        return item, strip.positions, *sums

    def _window(self, item: int, first: int, stop: int) -> winograd.Rows:
        """The rows [first, stop) of the source as far as they exist, or around its edges."""
        source, wrap_y = self.inputs.source, self.inputs.wrap.y
        height = source.shape[1]
        inside = first >= 0 and stop <= height
        if inside or not wrap_y:
            found = _in_one_band(source, self.sources, item, max(first, 0), min(stop, height))
            if found is not None:
                return found
        pieces, begin = source.around(first, stop, wrap_y)
        return winograd.Rows.of(joined([piece[item] for piece in pieces]), begin)

    def _place(self, item: int, top: int, bottom: int) -> tuple[winograd.Rows, Tensor | None]:
        """Where rows of the target are written, and where they are to be copied to from there, if so."""
        target = self.inputs.target
        found = _in_one_band(target, self.targets, item, top, bottom)
        if found is not None:
            return found, None
        place = target.rows(top, bottom)[item]  # the output is laid out by channels
        return winograd.Rows.of(torch.empty(place.shape), top), place

    def _residual(self, item: int, strip: Strip) -> tuple[Tensor | None, bool]:
        """What is added to a strip, or whether it is what lies there."""
        whole = self.inputs.residual
        if whole is None:
            return None, False
        if self.shortcut is None and whole is self.inputs.target:
            return None, True
        x = joined([piece[item, :, slice(*strip.columns)] for piece in whole.pieces(*strip.rows)])
        if self.shortcut is None:
            return x.contiguous(), False
        x = winograd.padded(x, self.shortcut.in_channels - x.shape[2])
        product = self.shortcut(x.reshape(-1, 1, x.shape[2]))
        return product.view(*x.shape[:2], self.shortcut.out_channels), False

    def close(self) -> None:
        self.products, self.shortcut, self.sources, self.targets = [], None, [], []

    def combine(self, parts: Sequence[tuple[int, int, Any, Any]]) -> ChannelStats:
        per_item = []
        for item in range(self.inputs.target.shape[0]):
            mine = [part for part in parts if part[0] == item]
            total, squares = (torch.from_numpy(np.sum([part[i] for part in mine], axis=0)) for i in (2, 3))
            per_item.append(ChannelStats.from_sums(sum(part[1] for part in mine), total[None], squares[None]))
        return join_items(per_item)


def _in_one_band(
    whole: FeatureMap, arrays: Sequence[np.ndarray | None], item: int, first: int, stop: int
) -> winograd.Rows | None:
    """Rows of an item where they lie, by the arrays of the map's bands; None where that is not one array."""
    index = first // whole.band_rows
    array, offset = arrays[index], index * whole.band_rows
    if array is None or stop > offset + whole.band_rows:
        return None
    return winograd.Rows(array[item, first - offset : stop - offset], first, whole.shape[3])


Kernel = DirectConvolution | WinogradConvolution


def choose_kernel(step: Convolve, in_channels: int, target: FeatureMap, device: torch.device) -> type[Kernel]:
    """The fastest kernel for a pass, by its shapes alone."""
    conv = step.conv
    suits = (
        device.type == "cpu"
        and target.dtype == torch.float32
        and conv.kernel_size == (3, 3)
        and step.scale != "down"
        and (step.act is None or isinstance(step.act, nn.SiLU))
        and winograd.products_available()
    )
    return WinogradConvolution if suits and _winograd_wins(step, in_channels, target) else DirectConvolution


def _winograd_wins(step: Convolve, in_channels: int, target: FeatureMap) -> bool:
    positions, out_channels = target.shape[:3].numel(), target.shape[3]
    if min(in_channels, out_channels) < (_FEW_CHANNELS if winograd.compiled() else _FEW_UNCOMPILED):
        return False
    if winograd.compiled() and (in_channels % winograd.VECTOR or out_channels % winograd.VECTOR):
        return False
    if step.scale == "up":
        return positions >= _WINOGRAD_UPSAMPLED
    per_channel = positions / (in_channels * out_channels) ** 0.5
    worth = 2 * step.conv.weight.numel() * positions >= _WINOGRAD_ARITHMETIC
    return worth and per_channel >= _WINOGRAD_POSITIONS_PER_CHANNEL
