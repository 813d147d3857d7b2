"""Convolutions with few multiplications, for float32 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import winograd
from .kernel import STRIP_BYTES, Layout, PassInputs, Span, Strip, cut
from .maps import FeatureMap, joined
from .program import Convolve, Pass
from .stats import ChannelStats, join_items


class _Weights(NamedTuple):
    """A pass's weights as its products take them. Biases are arrays; see `winograd._Operands`."""

    products: list[winograd.PackedProducts]
    bias: np.ndarray
    shortcut: winograd.PackedProducts | None


class _Part(NamedTuple):
    """What a strip tells of its values: their sums and those of their squares, [K] in float64."""

    item: int
    count: int
    total: np.ndarray
    squares: np.ndarray


class WinogradConvolution:
    """3x3 convolutions by Winograd, also after a doubling. Strips are independent and run on several threads."""

    parallel: ClassVar[bool] = True
    fast: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False

    def __init__(self, inputs: PassInputs) -> None:
        assert isinstance(inputs.step, Convolve)
        self.inputs = inputs
        self.step = inputs.step
        self.layout = inputs.layout or self._lay_out()
        self._sources: list[np.ndarray | None] = []
        self._targets: list[np.ndarray | None] = []

    @staticmethod
    def suits(step: Pass, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this kernel can compute a pass."""
        if not isinstance(step, Convolve) or device.type != "cpu" or dtype != torch.float32:
            return False
        if step.conv.kernel_size != (3, 3) or step.scale == "down" or not winograd.products_available():
            return False
        if step.scale == "up":
            return step.norm is None and step.act is None and step.residual is None
        if step.norm is None and step.act is None:
            return True
        return isinstance(step.norm, nn.GroupNorm) and isinstance(step.act, nn.SiLU)

    def _lay_out(self) -> Layout:
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
        count, workers = -(-down // tall), self.inputs.workers
        if count * parts * batch < 4 * workers:
            count = -(-count // workers) * workers
        rows = -(-down // count) * unit
        return Layout(cut(batch, 1), cut(height, rows, unit, self.inputs.target.band_rows), columns)

    @property
    def _tiles(self) -> int:
        """Winograd's tiles that cover the largest strip."""
        strip = self.layout.first
        return -(-strip.height // winograd.TILE) * -(-strip.width // winograd.TILE)

    def workspace(self) -> dict[str, int]:
        """Weights, and what each thread has: both sides of the products, transformed columns, what is added."""
        conv, strip = self.step.conv, self.layout.first
        groups = winograd.GROUPS[self.step.scale]
        products = self._tiles * groups * (conv.in_channels + conv.out_channels)
        ring = 6 * (strip.width + 2) * conv.in_channels
        added = 0  # beside the products: what is added, where it is not in the target
        if self.step.shortcut is not None:
            added = strip.positions * (self.step.shortcut.in_channels + conv.out_channels)
        elif conv.out_channels < winograd.VECTOR:  # the output's layout is another
            added = strip.positions * conv.out_channels
        weights = self._transformed_weights
        packing = 2 * weights // winograd.pieces_of(weights, self.step.scale)
        workers = self.inputs.workers
        if packing > workers * (products + ring + added):
            return {"weights": 4 * weights, "packing": 4 * packing}
        each = {"products": products, "ring": ring, "residual": added}
        return {"weights": 4 * weights, **{term: 4 * workers * size for term, size in each.items()}}

    @property
    def _transformed_weights(self) -> int:
        return winograd.GROUPS[self.step.scale] * self.step.conv.in_channels * self.step.conv.out_channels

    def packed_bytes(self) -> int:
        shortcut = 0 if self.step.shortcut is None else self.step.shortcut.weight.numel()
        return 4 * (self._transformed_weights + shortcut)

    def flops(self, strip: Strip) -> int:
        return self.step.flops(strip.positions)

    def pack(self) -> _Weights:
        conv, shortcut = self.step.conv, self.step.shortcut
        pack = winograd.pack_upsample if self.step.scale == "up" else winograd.pack_winograd
        products, bias, of_shortcut = pack(conv, self._tiles), _bias(conv), None
        if shortcut is not None:
            matrix = shortcut.weight.detach().float().cpu()[None, :, :, 0, 0]
            of_shortcut = winograd.PackedProducts.pack(matrix, self.layout.first.positions)
            bias = bias + _bias(shortcut)
        return _Weights(products, bias.numpy(), of_shortcut)

    def prepare(self, packed: _Weights) -> None:
        inputs = self.inputs
        self._weights = packed
        # Arrays, because each operation on a tensor would release and take the interpreter lock.
        self._coefficients: tuple[np.ndarray, np.ndarray] | None = None
        if inputs.coefficients is not None:
            scale, shift = inputs.coefficients
            self._coefficients = scale.float().numpy(), shift.float().numpy()
        self._sources, self._targets = (
            [_array(band) for band in each.bands] for each in (inputs.source, inputs.target)
        )

    def compute(self, strip: Strip) -> _Part:
        item, (top, bottom), (left, right) = strip.items[0], strip.rows, strip.columns
        products, bias, _ = self._weights
        up = self.step.scale == "up"
        first, stop = (top // 2, bottom // 2) if up else (top, bottom)
        window = self._window(item, first - 1, stop + 1)
        written, place = self._place(item, top, bottom)
        target = winograd.Target(written, left, right)
        if up:
            total, squares = winograd.upsample_strip(window, products, bias, target, self.inputs.circular.x)
        else:
            coefficients = self._coefficients and (self._coefficients[0][item], self._coefficients[1][item])
            residual, in_place = self._residual(item, strip)
            total, squares = winograd.winograd_strip(
                window, coefficients, products, bias, residual, in_place, target, self.inputs.circular.x
            )
        if place is not None:
            place[:, left:right].copy_(target.values)
        return _Part(item, strip.positions, total, squares)

    def _window(self, item: int, first: int, stop: int) -> winograd.Rows:
        """The rows [first, stop) of the source as far as they exist, or around its edges."""
        source, around = self.inputs.source, self.inputs.circular.y
        height = source.shape[1]
        inside = first >= 0 and stop <= height
        if inside or not around:
            found = _in_one_band(source, self._sources, item, (max(first, 0), min(stop, height)))
            if found is not None:
                return found
        pieces, begin = source.around(first, stop, around)
        return winograd.Rows.of(joined([piece[item] for piece in pieces]), begin)

    def _place(self, item: int, top: int, bottom: int) -> tuple[winograd.Rows, Tensor | None]:
        """Where rows of the target are written, and where they are to be copied to from there, if so."""
        target = self.inputs.target
        found = _in_one_band(target, self._targets, item, (top, bottom))
        if found is not None:
            return found, None
        place = target.rows(top, bottom)[item]  # the output is laid out by channels, or elsewhere
        return winograd.Rows.of(torch.empty(place.shape, dtype=torch.float32, device="cpu"), top), place

    def _residual(self, item: int, strip: Strip) -> tuple[Tensor | None, bool]:
        """What is added to a strip, or whether it is what is there."""
        whole, shortcut = self.inputs.residual, self._weights.shortcut
        if whole is None:
            return None, False
        if shortcut is None and whole is self.inputs.target:
            return None, True
        x = joined([piece[item, :, slice(*strip.columns)] for piece in whole.pieces(*strip.rows)])
        if shortcut is None:
            return x.contiguous(), False
        x = winograd.padded(x, shortcut.in_channels - x.shape[2])
        product = shortcut(x.reshape(-1, 1, x.shape[2]))
        return product.view(*x.shape[:2], shortcut.out_channels), False

    def combine(self, parts: Sequence[_Part]) -> ChannelStats:
        per_item = []
        for item in range(self.inputs.target.shape[0]):
            mine = [part for part in parts if part.item == item]
            total = torch.from_numpy(np.sum([part.total for part in mine], axis=0))
            squares = torch.from_numpy(np.sum([part.squares for part in mine], axis=0))
            per_item.append(ChannelStats.from_sums(sum(part.count for part in mine), total[None], squares[None]))
        return join_items(per_item)

    def close(self) -> None:
        self._sources, self._targets = [], []
        self.__dict__.pop("_weights", None)


def _bias(conv: nn.Conv2d) -> Tensor:
    none = torch.zeros(conv.out_channels, dtype=torch.float32, device="cpu")
    return none if conv.bias is None else conv.bias.detach().float().cpu()


def _array(band: Tensor) -> np.ndarray | None:
    """A band as the compiled functions take it; None for an output of another precision, place or layout."""
    return winograd.whole_array(band) if band.dtype == torch.float32 and band.device.type == "cpu" else None


def _in_one_band(whole: FeatureMap, arrays: Sequence[np.ndarray | None], item: int, span: Span) -> winograd.Rows | None:
    """Rows of an item where they are, by the arrays of the map's bands; None where that is not one array."""
    first, stop = span
    index = first // whole.band_rows
    array, offset = arrays[index], index * whole.band_rows
    if array is None or stop > offset + whole.band_rows:
        return None
    return winograd.Rows(array[item, first - offset : stop - offset], first, whole.shape[3])
