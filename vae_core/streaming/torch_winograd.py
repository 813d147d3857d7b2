"""Convolutions with few multiplications, in float32 on a CPU, in torch operations: where there is no numba.

The products of a strip are one grouped convolution of oneDNN (`products.py`), the transforms around them products with
small matrices (`torch_transforms.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..units import round_up
from . import internals, torch_transforms, winograd
from .kernel import STRIP_BYTES, Each, Layout, Memory, Strip, cut, one_by_one
from .maps import FeatureMap
from .products import VECTOR, PackedProducts, whole_vectors
from .program import INPUT, Convolve, Pass
from .scratch import Scratch, fresh
from .transforms import TILE

# Rows of the products: enough to keep the weights' traffic and the calls' cost small, few enough to stay in cache.
_LEAST_ROWS = {"narrow": 128, "wide": 256}
_FEWEST_ROWS = 64  # within a small budget; with fewer yet, weights would be read more than anything else
_OPERAND_BYTES = 5 * 2**19
_WIDE_CHANNELS = 384
# The C library gives larger blocks fresh pages each time, which the system must clear first.
_LARGEST_PIECE = 2**24


class _Weights(NamedTuple):
    """A pass's weights as its products take them; the bias [K] is that of convolution and shortcut together."""

    products: list[PackedProducts]
    bias: Tensor
    shortcut: PackedProducts | None


@dataclass(frozen=True)
class _Operands:
    """Both sides of a pass's products in a worker's memory, and the operators' views of it.

    Attributes:
        left: [products, rows, groups, padded channels], zeros beyond the channels.
        results: [products, rows, groups, K], zeros between strips: oneDNN's operator that writes to memory of the
            caller's adds to what is there.
    """

    products: list[PackedProducts]
    left: Tensor
    results: Tensor
    views: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, scratch: Scratch, products: list[PackedProducts], channels: int) -> _Operands:
        """Those in a worker's memory, whichever thread that is."""
        if scratch.made is not None:
            return scratch.made
        first = products[0]
        left = scratch.tensor("left", (len(products), first.rows, first.groups, first.in_channels))
        results = scratch.tensor("results", (len(products), first.rows, first.groups, first.out_channels))
        left[..., channels:] = 0.0
        results.zero_()
        views = [
            (each.as_image(x), each.as_image(y), each.weight)
            for each, x, y in zip(products, left, results, strict=True)
        ]
        scratch.made = cls(products, left, results, views)
        return scratch.made

    def multiply(self) -> Tensor:
        """The products. Their reader must leave zeros."""
        for x, y, weight in self.views:
            internals.add_products(y, x, weight, self.products[0].groups)
        return self.results


class TorchWinograd(winograd.Winograd):
    """Winograd in torch operations."""

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this kernel can compute a pass."""
        if not internals.products_available() or not winograd.is_winograds(step, dtype, device):
            return False
        return isinstance(step, Convolve) and step.scale != "down"

    def _lay_out(self) -> Layout:
        batch, height, width, channels = self.inputs.target.shape
        widest = max(channels, self.inputs.source.shape[3])
        most = _most_tiles(widest, self.groups, min(1.0, self.inputs.strip_bytes / STRIP_BYTES))
        down, across = winograd.tiles_of(height, width)
        parts = -(-across // most)
        across = -(-across // parts)
        columns = cut(width, across * TILE)
        tall = max(1, most // across)
        if self.inputs.max_rows is not None:
            tall = min(tall, max(1, self.inputs.max_rows // TILE))
        # The first strip sets the size of the products, so strips are alike.
        count = _even_count(-(-down // tall), parts * batch, self.inputs.workers)
        rows = -(-down // count) * TILE
        return Layout(cut(batch, 1), cut(height, rows, TILE, self.inputs.target.band_rows), columns)

    @property
    def _tiles(self) -> tuple[int, int]:
        """Winograd's tiles below and beside one another that cover the largest strip."""
        return winograd.tiles_of(self.layout.first.height, self.layout.first.width)

    def scratch_sizes(self) -> dict[str, int]:
        strip = self.layout.first
        inputs = self.inputs
        conv = self.step.conv
        down, across = self._tiles
        numbers = down * across * self.groups
        sizes = {"left": numbers * whole_vectors(conv.in_channels), "results": numbers * conv.out_channels}
        sizes |= torch_transforms.scratch_sizes(self.transform, conv.in_channels, conv.out_channels, self._tiles)
        stored = inputs.map_dtype != torch.float32  # then what is read is made wider
        given = self.step.source == INPUT  # which may be of any type, anywhere
        if stored or given or inputs.circular.y or inputs.source.band_count > 1:  # rows from two places
            rows = strip.height // 2 + 2 if self.step.scale == "up" else strip.height + 2
            sizes["window"] = rows * inputs.source.shape[2] * conv.in_channels
        if self.step.shortcut is not None:
            sizes["residual"] = strip.positions * whole_vectors(self.step.shortcut.in_channels)
            sizes["shortcut"] = strip.positions * conv.out_channels
        elif inputs.residual is not None and (stored or inputs.residual.band_count > 1):
            sizes["residual"] = strip.positions * conv.out_channels
        return {name: 4 * size for name, size in sizes.items()}

    @property
    def _transformed_weights(self) -> int:
        return self.groups * whole_vectors(self.step.conv.in_channels) * self.step.conv.out_channels

    @property
    def _pieces(self) -> int:
        """In how many pieces the transformed weights are packed."""
        weights = self.groups * self.step.conv.in_channels * self.step.conv.out_channels
        return self.transform.products if 4 * weights > _LARGEST_PIECE else 1

    def _piece_bytes(self) -> int:
        return 4 * self.groups * self.step.conv.in_channels * self.step.conv.out_channels // self._pieces

    def held(self) -> dict[str, int]:
        assert self.scratches is not None
        packed = [*self.weights.products, *filter(None, [self.weights.shortcut])]
        weights = sum(4 * each.weight.numel() for each in packed)
        return {"weights": weights, "sums": self._sums.nbytes, **self.scratches.allocated}

    def packing_bytes(self) -> int:
        filled_up = self.step.conv.in_channels % VECTOR != 0
        return self._piece_bytes() * (2 if filled_up else 1)

    def packed_bytes(self) -> int:
        shortcut = 0
        if self.step.shortcut is not None:
            shortcut = whole_vectors(self.step.shortcut.in_channels) * self.step.conv.out_channels
        return 4 * (self._transformed_weights + shortcut)

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> _Weights:
        """G w G^T for every kernel w of the convolution, packed together or row by row of the result."""
        conv = self.step.conv
        shortcut = self.step.shortcut
        of_shortcut = None
        kernels = conv.weight.detach().float().cpu().flatten(0, 1).flatten(1).t()  # [9, K * C]
        size = self._piece_bytes()
        packed = []
        rows = self._tiles[0] * self._tiles[1]
        blocks = self.inputs.store.scratch.lend(1, size)
        try:
            matrices = blocks[0].data[:size].view(torch.float32).view(self.groups // self._pieces, -1)
            for part in self.transform.of_kernels.chunk(self._pieces):
                torch.mm(part, kernels, out=matrices)
                packed.append(PackedProducts.pack(matrices.unflatten(1, conv.weight.shape[:2]), rows))
        finally:
            self.inputs.store.scratch.take_back(blocks)
        if shortcut is not None:
            matrix = shortcut.weight.detach().float().cpu()[None, :, :, 0, 0]
            of_shortcut = PackedProducts.pack(matrix, self.layout.first.positions)
        return _Weights(packed, winograd.bias_of(self.step), of_shortcut)

    def prepare(self, packed: _Weights, each: Each = one_by_one) -> None:
        super().prepare(packed, each)
        self._coefficients: tuple[Tensor, Tensor] | None = None
        if self.inputs.coefficients is not None:
            scale, shift = self.inputs.coefficients
            self._coefficients = scale.float(), shift.float()

    def compute_strip(self, strip: Strip, scratch: Scratch, sums: np.ndarray) -> None:
        item = strip.items[0]
        top, bottom = strip.rows
        left, right = strip.columns
        scale = 2 if self.step.scale == "up" else 1
        tiles = winograd.tiles_of(strip.height, strip.width)
        source = self.inputs.source
        circular = self.inputs.circular
        pieces, first = source.around(top // scale - 1, bottom // scale + 1, circular.y)
        window = _joined([piece[item] for piece in pieces], "window", scratch)
        operands = _Operands.of(scratch, self.weights.products, self.step.conv.in_channels)
        torch_transforms.transform_inputs(
            self.transform,
            window,
            top // scale - 1 - first,
            left // scale - 1,
            circular.x,
            self._coefficients and (self._coefficients[0][item], self._coefficients[1][item]),
            tiles,
            scratch.tensor,
            operands.left,
        )
        results = operands.multiply()
        place = self.inputs.target.rows(top, bottom)[item, :, left:right]
        residual = self._residual(strip, scratch)
        torch_transforms.transform_outputs(
            self.transform, results, self.weights.bias, residual, place, tiles, scratch.tensor, sums
        )
        results.zero_()

    def _residual(self, strip: Strip, scratch: Scratch) -> Tensor | None:
        """What is added to a strip, [rows, columns, K]."""
        whole = self.inputs.residual
        shortcut = self.weights.shortcut
        if whole is None:
            return None
        pieces = [piece[strip.items[0], :, slice(*strip.columns)] for piece in whole.pieces(*strip.rows)]
        if shortcut is None:
            return _joined(pieces, "residual", scratch)
        x = scratch.tensor("residual", (shortcut.rows, 1, shortcut.in_channels))
        rows = x[: strip.positions, 0].view(strip.height, strip.width, -1)
        _join(pieces, rows[..., : whole.shape[3]])
        rows[..., whole.shape[3] :] = 0.0
        product = scratch.tensor("shortcut", (shortcut.rows, 1, shortcut.out_channels)).zero_()
        shortcut.add_to(product, x)
        return product[: strip.positions].view(strip.height, strip.width, shortcut.out_channels)


def _even_count(strips: int, times: int, workers: int) -> int:
    """So many strips of rows, `times` of which there are; where all are few, some more, which workers share evenly."""
    return round_up(strips, workers) if strips * times < 4 * workers else strips


def _most_tiles(channels: int, groups: int, share: float) -> int:
    """Tiles of a strip, about, for a convolution whose wider side has so many channels.

    `share`, up to 1, is what a memory budget leaves of the usual size.
    """
    least = _LEAST_ROWS["wide" if channels >= _WIDE_CHANNELS else "narrow"]
    most = max(least, _OPERAND_BYTES // (4 * groups * channels))
    return max(_FEWEST_ROWS, int(most * share) // 16 * 16)


def _joined(pieces: Sequence[Tensor], part: str, scratch: Scratch) -> Tensor:
    """Pieces [rows, columns, C] below one another in float32: one as it is, others in a part of a worker's memory."""
    if len(pieces) == 1 and pieces[0].dtype == torch.float32 and pieces[0].device.type == "cpu":
        return pieces[0]
    rows = sum(len(piece) for piece in pieces)
    _, columns, channels = pieces[0].shape
    out = scratch.tensor(part, (rows, columns, channels))
    _join(pieces, out)
    return out


def _join(pieces: Sequence[Tensor], out: Tensor) -> None:
    start = 0
    for piece in pieces:
        out[start : start + len(piece)].copy_(piece)
        start += len(piece)
