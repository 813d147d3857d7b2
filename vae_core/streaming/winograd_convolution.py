"""Convolutions with few multiplications, for float32 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import winograd
from .kernel import STRIP_BYTES, Layout, PassInputs, Span, Strip, cut
from .maps import FeatureMap
from .pages import pages
from .program import INPUT, OUTPUT, Convolve, Pass
from .scratch import Scratch, Scratches
from .stats import ChannelStats, join_items


class _Weights(NamedTuple):
    """A pass's weights as its products take them. Biases are arrays; see `winograd.Operands`."""

    products: list[winograd.PackedProducts]
    bias: np.ndarray
    shortcut: winograd.PackedProducts | None


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
        self.scratches: Scratches | None = None

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
    def _tiles(self) -> tuple[int, int]:
        """Winograd's tiles below and beside one another that cover the largest strip."""
        strip = self.layout.first
        return -(-strip.height // winograd.TILE), -(-strip.width // winograd.TILE)

    def scratch_sizes(self) -> dict[str, int]:
        """Bytes of each part of a worker's memory."""
        strip, inputs, conv = self.layout.first, self.inputs, self.step.conv
        sizes = winograd.scratch_sizes(conv, self.step.scale, self._tiles)
        # Rows from two places; and what comes from the caller or goes there may be of any layout, precision and place.
        if inputs.circular.y or inputs.source.band_count > 1 or _is_elsewhere(inputs.source, self.step.source):
            rows = strip.height // 2 + 2 if self.step.scale == "up" else strip.height + 2
            sizes["window"] = 4 * rows * inputs.source.shape[2] * conv.in_channels
        if _is_elsewhere(inputs.target, self.step.target):
            sizes["output"] = 4 * strip.height * inputs.target.shape[2] * conv.out_channels
        if self.step.shortcut is not None:
            sizes["residual"] = 4 * strip.positions * winograd.whole_vectors(self.step.shortcut.in_channels)
            sizes["shortcut"] = 4 * strip.positions * conv.out_channels
        elif inputs.residual is not None and inputs.residual is not inputs.target:
            sizes["residual"] = 4 * strip.positions * conv.out_channels
        return sizes

    def workspace(self) -> dict[str, int]:
        """Weights, sums of all strips, and what each worker has; or, if that is more, what packing takes."""
        sizes, workers = self.scratch_sizes(), min(self.inputs.workers, len(self.layout))
        weights = {"weights": self.packed_bytes()}
        packing = winograd.packing_bytes(self.step.conv, self.step.scale)
        if self.step.conv.in_channels % winograd.VECTOR:  # filled up
            packing *= 2
        if packing > workers * sum(sizes.values()):
            return {**weights, "packing": packing}
        sums = 16 * len(self.layout) * self.step.conv.out_channels
        return {**weights, "sums": sums, **{name: workers * size for name, size in sizes.items()}}

    @property
    def _transformed_weights(self) -> int:
        conv = self.step.conv
        groups = winograd.GROUPS[self.step.scale]
        return groups * winograd.whole_vectors(conv.in_channels) * conv.out_channels

    def packed_bytes(self) -> int:
        shortcut = 0
        if self.step.shortcut is not None:
            shortcut = winograd.whole_vectors(self.step.shortcut.in_channels) * self.step.conv.out_channels
        return 4 * (self._transformed_weights + shortcut)

    def flops(self, strip: Strip) -> int:
        return self.step.flops(strip.positions)

    def pack(self) -> _Weights:
        conv, shortcut, scale = self.step.conv, self.step.shortcut, self.step.scale
        tiles = self._tiles
        size = winograd.packing_bytes(conv, scale)
        blocks = self.inputs.store.scratch.lend(1, size)
        try:
            products = winograd.pack(conv, scale, tiles[0] * tiles[1], blocks[0].data[:size])
        finally:
            self.inputs.store.scratch.take_back(blocks)
        bias, of_shortcut = _bias(conv), None
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
            [winograd.whole_array(band) for band in each.bands] for each in (inputs.source, inputs.target)
        )
        strips = self.layout.strips()
        self._numbers = {strip: number for number, strip in enumerate(strips)}
        memory = pages(16 * len(strips) * self.step.conv.out_channels, "sums").view(torch.float64)
        self._sums = memory.view(len(strips), 2, self.step.conv.out_channels).numpy()
        self.scratches = Scratches(inputs.store.scratch, min(inputs.workers, len(strips)), self.scratch_sizes())

    def compute(self, strip: Strip) -> int:
        """The number of the strip, whose sums are in the table of all."""
        assert self.scratches is not None
        scratch = self.scratches.take()
        try:
            self._compute(strip, scratch)
        finally:
            self.scratches.put_back(scratch)
        return self._numbers[strip]

    def _compute(self, strip: Strip, scratch: Scratch) -> None:
        item, (top, bottom), (left, right) = strip.items[0], strip.rows, strip.columns
        products, bias, _ = self._weights
        sums = self._sums[self._numbers[strip]]
        up = self.step.scale == "up"
        first, stop = (top // 2, bottom // 2) if up else (top, bottom)
        window = self._window(item, first - 1, stop + 1, scratch)
        written, place = self._place(item, top, bottom, scratch)
        target = winograd.Target(written, left, right)
        operands = winograd.Operands.of(scratch, products, window.channels)
        if up:
            winograd.upsample_strip(operands, window, bias, target, self.inputs.circular.x, sums)
        else:
            coefficients = self._coefficients and (self._coefficients[0][item], self._coefficients[1][item])
            residual, in_place = self._residual(item, strip, scratch)
            circular = self.inputs.circular.x
            winograd.winograd_strip(operands, window, coefficients, bias, residual, in_place, target, circular, sums)
        if place is not None:
            place[:, left:right].copy_(target.values)

    def _window(self, item: int, first: int, stop: int, scratch: Scratch) -> winograd.Rows:
        """The rows [first, stop) of the source as far as they exist, or around its edges."""
        source, around = self.inputs.source, self.inputs.circular.y
        height = source.shape[1]
        inside = first >= 0 and stop <= height
        if inside or not around:
            found = _in_one_band(source, self._sources, item, (max(first, 0), min(stop, height)))
            if found is not None:
                return found
        pieces, begin = source.around(first, stop, around)
        return winograd.Rows.of(_joined([piece[item] for piece in pieces], "window", scratch), begin)

    def _place(self, item: int, top: int, bottom: int, scratch: Scratch) -> tuple[winograd.Rows, Tensor | None]:
        """Where rows of the target are written, and where they are to be copied to from there, if so."""
        target = self.inputs.target
        found = _in_one_band(target, self._targets, item, (top, bottom))
        if found is not None:
            return found, None
        place = target.rows(top, bottom)[item]  # the output is laid out by channels, or elsewhere
        return winograd.Rows.of(scratch.tensor("output", place.shape), top), place

    def _residual(self, item: int, strip: Strip, scratch: Scratch) -> tuple[Tensor | None, bool]:
        """What is added to a strip, or whether it is what is there."""
        whole, shortcut = self.inputs.residual, self._weights.shortcut
        if whole is None:
            return None, False
        if shortcut is None and whole is self.inputs.target:
            return None, True
        pieces = [piece[item, :, slice(*strip.columns)] for piece in whole.pieces(*strip.rows)]
        if shortcut is None:
            return _joined(pieces, "residual", scratch), False
        x = scratch.tensor("residual", (shortcut.rows, 1, shortcut.in_channels))
        rows = x[: strip.positions, 0].view(strip.height, strip.width, -1)
        _join(pieces, rows[..., : whole.shape[3]])
        rows[..., whole.shape[3] :] = 0.0
        product = scratch.tensor("shortcut", (shortcut.rows, 1, shortcut.out_channels)).zero_()
        shortcut.add_to(product, x)
        return product[: strip.positions].view(strip.height, strip.width, shortcut.out_channels), False

    def combine(self, parts: Sequence[int]) -> ChannelStats:
        per_item = []
        for item in range(self.inputs.target.shape[0]):
            mine = [strip for strip in self._numbers if strip.items[0] == item]
            sums = self._sums[[self._numbers[strip] for strip in mine]]
            total, squares = (torch.from_numpy(np.sum(sums[:, index], axis=0)) for index in range(2))
            per_item.append(ChannelStats.from_sums(sum(strip.positions for strip in mine), total[None], squares[None]))
        return join_items(per_item)

    def close(self) -> None:
        self._sources, self._targets = [], []
        for name in ("_weights", "_sums"):
            self.__dict__.pop(name, None)
        if self.scratches is not None:
            self.scratches.close()
            self.scratches = None


def _bias(conv: nn.Conv2d) -> Tensor:
    none = torch.zeros(conv.out_channels, dtype=torch.float32, device="cpu")
    return none if conv.bias is None else conv.bias.detach().float().cpu()


def _is_elsewhere(whole: FeatureMap, name: str) -> bool:
    """Whether a map's rows are, or may be, not as the compiled functions take them."""
    return name in (INPUT, OUTPUT) or not all(map(winograd.is_whole, whole.bands))


def _joined(pieces: Sequence[Tensor], part: str, scratch: Scratch) -> Tensor:
    """Pieces [rows, columns, C] below one another, contiguous, in a part of a worker's memory."""
    rows, (_, columns, channels) = sum(len(piece) for piece in pieces), pieces[0].shape
    out = scratch.tensor(part, (rows, columns, channels))
    _join(pieces, out)
    return out


def _join(pieces: Sequence[Tensor], out: Tensor) -> None:
    start = 0
    for piece in pieces:
        out[start : start + len(piece)].copy_(piece)
        start += len(piece)


def _in_one_band(whole: FeatureMap, arrays: Sequence[np.ndarray | None], item: int, span: Span) -> winograd.Rows | None:
    """Rows of an item where they are, by the arrays of the map's bands; None where that is not one array."""
    first, stop = span
    index = first // whole.band_rows
    array, offset = arrays[index], index * whole.band_rows
    if array is None or stop > offset + whole.band_rows:
        return None
    return winograd.Rows(array[item, first - offset : stop - offset], first, whole.shape[3])
