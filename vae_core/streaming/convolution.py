"""How one convolution pass is computed, strip by strip. Each kernel gives the same numbers within rounding.

`DirectConvolution` runs anywhere and in any precision. `WinogradConvolution` is for float32 on a CPU. Which one a pass
takes is decided by `choose_kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import winograd
from .program import Convolve
from .stats import ChannelStats, StripStats, join_items, merge_all
from .transfer import Arriving, Transfers

# Where Winograd is the faster, as `benchmarks/kernels.py` measures it. Below so much arithmetic (of a direct
# convolution) its calls cost more than its multiplications save; below so many positions of the target for a channel,
# making its weights does.
_WINOGRAD_ARITHMETIC = 2**32
_WINOGRAD_POSITIONS_PER_CHANNEL = 7.0  # for the geometric mean of both sides' channels
_FEW_CHANNELS = 16  # on either side: the transforms are most of the work
_FEW_UNCOMPILED = 256  # the same, for transforms in torch operations
_WINOGRAD_UPSAMPLED = 2**12  # positions after a doubling, where the direct kernel has its own overhead


class Wrap(NamedTuple):
    """Along which axes the picture continues at its other side, instead of ending in zeros."""

    y: bool = False
    x: bool = False


NO_WRAP = Wrap()


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


@dataclass(frozen=True)
class PassInputs:
    """What a pass works on: maps [B, H, W, C] on the store's device, which need not be contiguous.

    Attributes:
        coefficients: the norm as scale and shift [B, C] in float32, or None.
        max_rows: most target rows that a strip may have, or None.
        strip_bytes: what a strip of the direct kernel holds of its wider side, about.
        device: where the arithmetic happens.
    """

    step: Convolve
    source: Tensor
    target: Tensor
    residual: Tensor | None
    coefficients: tuple[Tensor, Tensor] | None
    wrap: Wrap
    max_rows: int | None
    strip_bytes: int
    device: torch.device


def cut(length: int, size: int, multiple: int = 1) -> list[tuple[int, int]]:
    """[0, length) in spans of at most `size` rounded down to a multiple, but never under one."""
    size = max(multiple, size // multiple * multiple)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def even_size(length: int, size: int, multiple: int = 1) -> int:
    """The largest size up to `size`, and of at least half of it, that cuts a length into equal spans; else `size`."""
    size = min(size, length)
    fitting = (each for each in range(size, size // 2, -1) if length % each == 0 == each % multiple)
    return next(fitting, size)


def rows_around(source: Tensor, first: int, stop: int, wrap_y: bool) -> tuple[Tensor, int]:
    """Rows [first, stop) of a map [B, H, W, C], as far as they exist, and the number of the first one returned.

    With `wrap_y` all of them exist.
    """
    height = source.shape[1]
    inside = source[:, max(first, 0) : min(stop, height)]
    if not wrap_y or (first >= 0 and stop <= height):
        return inside, max(first, 0)
    index = torch.arange(first, stop, device=source.device) % height
    return source.index_select(1, index), first


class DirectConvolution:
    """conv2d of torch on channels-last strips of the whole batch: any device, any precision."""

    parallel = False
    fast = False

    def __init__(self, inputs: PassInputs) -> None:
        self.inputs = inputs
        self.step = inputs.step
        self.transfers: Transfers | None = None
        self._arriving: dict[Strip, Arriving] = {}

    def prepare(self) -> None:
        inputs, conv, shortcut = self.inputs, self.step.conv, self.step.shortcut
        dtype = inputs.target.dtype
        self.transfers = Transfers(inputs.device)
        strips = self.strips()
        self._following = dict(pairwise(strips)) if self.transfers.overlap else {}
        self.coefficients = inputs.coefficients and tuple(each.to(inputs.device) for each in inputs.coefficients)

        def weight_of(tensor: Tensor) -> Tensor:
            return tensor.detach().to(inputs.device, dtype).contiguous(memory_format=torch.channels_last)

        self.bias = conv.bias.detach().to(inputs.device, dtype)  # type: ignore[union-attr]
        if self.step.scale == "up":
            self.phases = [weight_of(weight) for weight in _phase_weights(conv)]
        else:
            self.weight = weight_of(conv.weight)
        self.shortcut = None if shortcut is None else weight_of(shortcut.weight)
        self.shortcut_bias = None if shortcut is None else shortcut.bias.detach().to(inputs.device, dtype)  # type: ignore[union-attr]

    def workspace(self, workers: int) -> int:
        strip, device = self.strips()[0], self.inputs.device
        conv, itemsize = self.step.conv, self.inputs.target.dtype.itemsize
        per_position = {"up": 0.25, "down": 4.0}.get(self.step.scale, 1.0)  # source positions for one of the target
        source = conv.in_channels * (2 * itemsize + 8) * per_position
        target = conv.out_channels * (3 * itemsize + 8)
        if device.type != "cpu":  # strips on their way, to the device and back
            source += 2 * conv.in_channels * itemsize * per_position
            target += 4 * conv.out_channels * itemsize
        halo = 1 + 2 / (strip.rows[1] - strip.rows[0])
        weights = 2 * conv.weight.numel() * itemsize
        return int(strip.positions * (source * halo + target)) + weights

    def costs(self) -> list[int]:
        return _costs(self.step, self.strips())

    def strips(self) -> list[Strip]:
        batch, height, width, channels = self.inputs.target.shape
        itemsize = self.inputs.target.dtype.itemsize
        widest = max(channels, self.inputs.source.shape[3])
        rows = max(1, self.inputs.strip_bytes // (batch * width * widest * itemsize))
        if self.inputs.max_rows is not None:
            rows = min(rows, self.inputs.max_rows)
        multiple = 2 if self.step.scale == "up" else 1
        if self.inputs.device.type != "cpu":  # where a new shape costs a search for its fastest kernel
            rows = even_size(height, rows, multiple)
        return [Strip((0, batch), span, (0, width)) for span in cut(height, rows, multiple)]

    def compute(self, strip: Strip) -> StripStats:
        assert self.transfers is not None
        arriving = self._arriving.pop(strip, None) or self._upload(strip)
        if (following := self._following.get(strip)) is not None:  # before this strip's work is queued
            self._arriving[following] = self._upload(following)
        window, *residuals = arriving.here()
        result = self._convolved(window, strip)  # [B, rows, W, K]
        for residual in residuals:
            if self.shortcut is not None:
                residual = F.conv2d(residual.permute(0, 3, 1, 2), self.shortcut, self.shortcut_bias).permute(0, 2, 3, 1)
            result = residual + result
        self.transfers.download(result, self.inputs.target[:, slice(*strip.rows)])
        return StripStats.of(result)

    def combine(self, parts: Sequence[StripStats]) -> ChannelStats:
        return merge_all([part.finished() for part in parts])

    def close(self) -> None:
        self._arriving.clear()
        if self.transfers is not None:
            self.transfers.finish()

    def _upload(self, strip: Strip) -> Arriving:
        """The source's rows that a strip reads, as far as they exist, and the residual's."""
        assert self.transfers is not None
        tensors = [rows_around(self.inputs.source, *self._reads(strip), self.inputs.wrap.y)[0]]
        if self.inputs.residual is not None:
            tensors.append(self.inputs.residual[:, slice(*strip.rows)])
        return self.transfers.upload(*tensors)

    def _reads(self, strip: Strip) -> tuple[int, int]:
        """The rows of the source that a strip needs, [first, stop); some may lie outside of the picture."""
        start, stop = strip.rows
        if self.step.scale == "down":
            return 2 * start, 2 * stop + 1
        if self.step.scale == "up":
            return start // 2 - 1, stop // 2 + 1
        halo = self.step.conv.kernel_size[0] // 2
        return start - halo, stop + halo

    def _convolved(self, window: Tensor, strip: Strip) -> Tensor:
        if self.step.scale == "down":
            x = self._padded(window, strip, left=0, right=1)
            return F.conv2d(x, self.weight, self.bias, stride=2).permute(0, 2, 3, 1)
        if self.step.scale == "same":
            halo = self.step.conv.kernel_size[0] // 2
            x = self._padded(window, strip, left=halo, right=halo)
            return F.conv2d(x, self.weight, self.bias).permute(0, 2, 3, 1)

        x = self._padded(window, strip, left=1, right=1)
        rows, columns = x.shape[2] - 2, x.shape[3] - 2
        result = x.new_empty(x.shape[0], 2 * rows, 2 * columns, self.step.conv.out_channels)
        for phase, weight in enumerate(self.phases):
            a, b = divmod(phase, 2)
            part = F.conv2d(x[:, :, a : a + rows + 1, b : b + columns + 1], weight, self.bias)
            result[:, a::2, b::2] = part.permute(0, 2, 3, 1)
        return result

    def _padded(self, x: Tensor, strip: Strip, left: int, right: int) -> Tensor:
        """The rows that a strip reads, normalised, activated and padded: [B, C, rows, left + W + right]."""
        if self.coefficients is not None:
            x = _activated(x, *self.coefficients, self.step.act)  # type: ignore[arg-type]
        first, stop = self._reads(strip)
        wrap, height = self.inputs.wrap, self.inputs.source.shape[1]
        above, below = (0, 0) if wrap.y else (max(0, -first), max(0, stop - height))
        missing = (0, 0, left, right, above, below)
        if wrap.x and left + right:
            x = torch.cat([x[:, :, x.shape[2] - left :], x, x[:, :, :right]], dim=2)
            missing = (0, 0, 0, 0, above, below)
        return F.pad(x, missing).permute(0, 3, 1, 2) if any(missing) else x.permute(0, 3, 1, 2)


def _activated(x: Tensor, scale: Tensor, shift: Tensor, act: nn.Module) -> Tensor:
    """act(x * scale + shift) for [B, H, W, C] in any precision, with scale and shift [B, C] in float32."""
    if x.device.type == "cuda" and len(x) == 1:
        return act_of_batch_norm(x, scale[0], shift[0], act)
    return act(torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None])).to(x.dtype)


def act_of_batch_norm(x: Tensor, scale: Tensor, shift: Tensor, act: nn.Module) -> Tensor:
    """The same for one item, with scale and shift [C], in two kernels that write no more than the result.

    Batch norm with fixed statistics reads half precision, computes in float32 and writes half precision.
    """
    mean, variance = torch.zeros_like(shift), torch.ones_like(scale)
    y = F.batch_norm(x.permute(0, 3, 1, 2), mean, variance, scale, shift, training=False, eps=0.0)
    y = F.silu(y, inplace=True) if isinstance(act, nn.SiLU) else act(y)
    return y.permute(0, 2, 3, 1)


def _phase_weights(conv: nn.Conv2d) -> list[Tensor]:
    """A 3x3 kernel on a doubled map as four 2x2 kernels on the map itself, one for each parity of the output."""
    even = conv.weight.new_tensor([[1, 0, 0], [0, 1, 1]])
    odd = conv.weight.new_tensor([[1, 1, 0], [0, 0, 1]])
    weight = conv.weight.detach().float()
    return [a.float() @ weight @ b.float().t() for a in (even, odd) for b in (even, odd)]


class WinogradConvolution:
    """Few multiplications, on float32 maps in memory. Strips are independent and run on several threads."""

    parallel = True
    fast = True

    def __init__(self, inputs: PassInputs) -> None:
        self.inputs = inputs
        self.step = inputs.step

    def prepare(self) -> None:
        step = self.step
        self.bias = step.conv.bias.detach().float()  # type: ignore[union-attr]
        strip = self.strips()[0]
        pack = winograd.pack_upsample if step.scale == "up" else winograd.pack_winograd
        self.products = pack(step.conv, strip.tiles)
        self.shortcut = None
        if step.shortcut is not None:
            matrix = step.shortcut.weight.detach().float()[None, :, :, 0, 0]
            self.shortcut = winograd.PackedProducts.pack(matrix, strip.positions)
            self.bias = self.bias + step.shortcut.bias.detach().float()  # type: ignore[union-attr]

    def workspace(self, workers: int) -> int:
        conv, strip = self.step.conv, self.strips()[0]
        groups = winograd.GROUPS[self.step.scale]
        products = strip.tiles * groups * (conv.in_channels + conv.out_channels)
        edges = 6 * (strip.columns[1] - strip.columns[0] + 2) * conv.in_channels
        extra = strip.positions * conv.out_channels * (2 if self.step.shortcut else 1)
        weights = groups * conv.in_channels * conv.out_channels
        return 4 * (weights + max(weights, workers * (products + edges + extra)))

    def costs(self) -> list[int]:
        return _costs(self.step, self.strips())

    def strips(self) -> list[Strip]:
        batch, height, width, channels = self.inputs.target.shape
        unit = winograd.TILE
        most = winograd.most_tiles(max(channels, self.inputs.source.shape[3]), winograd.GROUPS[self.step.scale])
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
        return [
            Strip((item, item + 1), row_span, column_span)
            for item in range(batch)
            for row_span in cut(height, rows, unit)
            for column_span in columns
        ]

    def compute(self, strip: Strip) -> tuple[int, int, np.ndarray, np.ndarray]:
        inputs = self.inputs
        item, (top, bottom), (left, right) = strip.items[0], strip.rows, strip.columns
        up = self.step.scale == "up"
        first, stop = (top // 2, bottom // 2) if up else (top, bottom)
        rows, begin = rows_around(inputs.source[item : item + 1], first - 1, stop + 1, inputs.wrap.y)
        window = winograd.Rows.of(rows[0], begin)
        place = inputs.target[item, top:bottom]
        direct = place.stride(2) == 1
        written = place if direct else torch.empty(place.shape)  # the output is laid out by channels
        target = winograd.Target(winograd.Rows.of(written, top), left, right)
        if up:
            sums = winograd.upsample_strip(window, self.products, self.bias, target, inputs.wrap.x)
        else:
            coefficients = inputs.coefficients and (inputs.coefficients[0][item], inputs.coefficients[1][item])
            residual, in_place = self._residual(item, strip)
            sums = winograd.winograd_strip(
                window, coefficients, self.products, self.bias, residual, in_place, target, inputs.wrap.x
            )
        if not direct:
            place[:, left:right].copy_(written[:, left:right])
        return item, strip.positions, *sums

    def _residual(self, item: int, strip: Strip) -> tuple[Tensor | None, bool]:
        """What is added to a strip, or whether it is what lies there."""
        whole = self.inputs.residual
        if whole is None:
            return None, False
        if self.shortcut is None and whole is self.inputs.target:
            return None, True
        x = whole[item, slice(*strip.rows), slice(*strip.columns)]
        if self.shortcut is None:
            return x.contiguous(), False
        padded = F.pad(x, (0, self.shortcut.in_channels - x.shape[2]))
        product = self.shortcut(padded.reshape(-1, 1, padded.shape[2]))
        return product.view(*x.shape[:2], self.shortcut.out_channels), False

    def close(self) -> None:
        pass

    def combine(self, parts: Sequence[tuple[int, int, Any, Any]]) -> ChannelStats:
        per_item = []
        for item in range(self.inputs.target.shape[0]):
            mine = [part for part in parts if part[0] == item]
            total, squares = (torch.from_numpy(np.sum([part[i] for part in mine], axis=0)) for i in (2, 3))
            per_item.append(ChannelStats.from_sums(sum(part[1] for part in mine), total[None], squares[None]))
        return join_items(per_item)


def convolution_cost(step: Convolve, positions: int) -> int:
    """Multiplications and additions of a convolution as torch computes it, for so many positions of its target."""
    cost = 2 * step.conv.weight.numel()
    if step.shortcut is not None:
        cost += 2 * step.shortcut.weight.numel()
    return cost * positions


def _costs(step: Convolve, strips: list[Strip]) -> list[int]:
    return [convolution_cost(step, strip.positions) for strip in strips]


Kernel = DirectConvolution | WinogradConvolution


def choose_kernel(step: Convolve, source: Tensor, target: Tensor, device: torch.device) -> type[Kernel]:
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
    return WinogradConvolution if suits and _winograd_wins(step, source.shape[3], target) else DirectConvolution


def _winograd_wins(step: Convolve, in_channels: int, target: Tensor) -> bool:
    positions, out_channels = target.shape[:3].numel(), target.shape[3]
    if min(in_channels, out_channels) < (_FEW_CHANNELS if winograd.compiled() else _FEW_UNCOMPILED):
        return False
    if step.scale == "up":
        return positions >= _WINOGRAD_UPSAMPLED
    per_channel = positions / (in_channels * out_channels) ** 0.5
    worth = 2 * step.conv.weight.numel() * positions >= _WINOGRAD_ARITHMETIC
    return worth and per_channel >= _WINOGRAD_POSITIONS_PER_CHANNEL
