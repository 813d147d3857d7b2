"""Convolutions with few multiplications, in float32 on a CPU, compiled: a strip is one call.

Where the precision of a pass is bfloat16, what is multiplied is rounded to it; sums and all else are in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..units import round_up
from . import winograd
from .kernel import STRIP_BYTES, Each, Layout, Memory, PassInputs, Spans, Strip, cut, one_by_one
from .maps import FeatureMap
from .numba_functions import KINDS
from .products import VECTOR
from .program import Convolve, Pass
from .row_tables import RowTable, may_be_elsewhere
from .scratch import Scratch, fresh
from .transforms import TILE

# Tiles at once: few, so that what is multiplied and the products stay in the second cache; but all weights are read
# for them, so the more the more weights there are. For the geometric mean of both sides' channels.
_TILES_PER_CHANNEL = 3 / 8
_FEWEST_TILES = 12
_TWICE = 0.06  # what transforming half a tile's columns takes, of what its products take
_STRIP_FLOPS = 2**33  # of a direct convolution: some ten milliseconds, after which a run can be interrupted

_NO_VECTOR = np.empty(0, np.float32)


class _Weights(NamedTuple):
    """A pass's weights, as the compiled functions take them.

    Attributes:
        weights: [products, blocks, C, COLUMNS], of float32 or of uint16, see `winograd_jit.pack`.
        shortcut: [1, blocks, channels, COLUMNS]; without elements if there is none.
        bias: [K], that of the shortcut included.
    """

    weights: np.ndarray
    shortcut: np.ndarray
    bias: np.ndarray


class CompiledWinograd(winograd.Winograd):
    """Winograd compiled by numba. Strips are rows; within one, a few tiles at a time are worked on."""

    def __init__(self, inputs: PassInputs) -> None:
        super().__init__(inputs)
        self._sources: list[RowTable] = []
        self._targets: list[RowTable | None] = []
        self._residuals: list[RowTable] = []
        self._copies: list[Tensor] = []

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this kernel can compute a pass: one of whole vectors of channels."""
        if not winograd.compiled() or not winograd.is_winograds(step, dtype, device):
            return False
        assert isinstance(step, Convolve)
        widths = [step.conv.in_channels, step.conv.out_channels]
        if step.shortcut is not None:
            widths.append(step.shortcut.in_channels)
        return not any(width % VECTOR for width in widths)

    @functools.cached_property
    def _tallest(self) -> int:
        """Tiles below one another that a strip may have."""
        _, height, width, _ = self.inputs.target.shape
        tall = min(-(-height // TILE), _STRIP_FLOPS // self.step.flops(TILE * width))
        if self.inputs.max_rows is not None:
            tall = min(tall, self.inputs.max_rows // TILE)
        return max(1, tall)

    @functools.cached_property
    def _most_tiles(self) -> int:
        """Tiles that are worked on at once, at most."""
        conv = self.step.conv
        share = min(1.0, self.inputs.strip_bytes / STRIP_BYTES) * min(1.0, winograd.GROUPS["same"] / self.groups)
        most = (conv.in_channels * conv.out_channels) ** 0.5 * _TILES_PER_CHANNEL
        return max(_FEWEST_TILES, int(most * share))

    def _block(self, down: int) -> _Block:
        """For strips of so many tiles below one another."""
        across = -(-self.inputs.target.shape[2] // TILE)
        return _block(down, across, self._most_tiles, winograd.jit().ROWS)

    def _rows_by(self, tall: int) -> Spans:
        """Rows of pixels in strips of so many tiles below one another, or fewer."""
        batch, height, _, _ = self.inputs.target.shape
        # Items are shared first, if there are as many for each worker.
        workers = 1 if batch % self.inputs.workers == 0 else self.inputs.workers
        return cut(height, tall * TILE, TILE, workers=workers)

    def _lay_out(self) -> Layout:
        """Such that the busiest worker has the least to do."""
        batch, height, width, _ = self.inputs.target.shape
        down = -(-height // TILE)
        fewest = -(-down // self._tallest)
        tallness = {-(-down // count) for count in range(fewest, min(down, fewest + 2 * self.inputs.workers) + 1)}

        def cost(tall: int) -> float:
            busiest = self._rows_by(tall).busiest
            return sum(count * tiles * self._block(tiles).cost for tiles, count in _in_tiles(busiest))

        return Layout(cut(batch, 1), self._rows_by(min(sorted(tallness), key=cost)), cut(width, width))

    @functools.cached_property
    def _at_once(self) -> dict[int, tuple[int, int]]:
        """How many tiles, below and beside one another, are worked on at once; for strips of so many tiles' height."""
        return {tiles: self._block(tiles)[:2] for tiles, _ in _in_tiles(self.layout.rows.sizes)}

    @property
    def _kind(self) -> np.dtype:
        """Of what is multiplied."""
        return KINDS[self.inputs.dtype]

    @property
    def _padded_channels(self) -> int:
        """Output channels, filled up to whole blocks of products."""
        return round_up(self.step.conv.out_channels, winograd.jit().COLUMNS)

    @property
    def _shortcut_channels(self) -> int:
        return 0 if self.step.shortcut is None else self.step.shortcut.in_channels

    def scratch_sizes(self) -> dict[str, int]:
        jit = winograd.jit()
        channels = self.step.conv.in_channels
        width = self._padded_channels
        tiles = max(tall * wide for tall, wide in self._at_once.values())
        rows = round_up(tiles, jit.ROWS)
        pixels = round_up(tiles * TILE**2, jit.ROWS) if self._shortcut_channels else 0
        rings = {"same": 36 * min(channels, jit.BLOCK), "up": 16 * channels, "down": jit.PATCH * jit.PATCH_CHANNELS}
        sizes = {
            "ring": rings[self.step.scale],
            "inputs": max(rows * self.groups * (channels + jit.GAP), pixels * (self._shortcut_channels + jit.GAP)),
            "products": rows * self.groups * (width + jit.GAP),
            "shortcut": pixels * (width + jit.GAP),
            "rows": 2 * TILE * max(tall for tall, _ in self._at_once.values()),
        }
        dtype = self.inputs.map_dtype
        sizes = {name: (self._kind.itemsize if name == "inputs" else 4) * size for name, size in sizes.items()}
        if may_be_elsewhere(self.inputs.target, self.step.target, dtype):  # then a strip is copied to its place
            sizes["output"] = dtype.itemsize * self.layout.first.positions * self.step.conv.out_channels
        return sizes

    def workspace(self) -> dict[str, int]:
        terms = super().workspace()
        dtype = self.inputs.map_dtype
        if may_be_elsewhere(self.inputs.source, self.step.source, dtype):  # then it is read from a copy
            terms["copy"] = dtype.itemsize * self.inputs.source.shape.numel()
        return terms

    def held(self) -> dict[str, int]:
        assert self.scratches is not None
        terms = {"weights": self.weights.weights.nbytes + self.weights.shortcut.nbytes, "sums": self._sums.nbytes}
        copies = {"copy": sum(each.nbytes for each in self._copies)} if self._copies else {}
        return {**terms, **copies, **self.scratches.allocated}

    def packing_bytes(self) -> int:
        """The kernels of the blocks that are packed at once, in float32."""
        kernel = self.step.conv.weight[0].numel()
        return 4 * self.inputs.workers * winograd.jit().COLUMNS * kernel

    def packed_bytes(self) -> int:
        numbers = self.groups * self.step.conv.in_channels + self._shortcut_channels
        return self._kind.itemsize * numbers * self._padded_channels

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> _Weights:
        conv = self.step.conv
        shortcut = self.step.shortcut
        place = memory(self.packed_bytes()).numpy().view(self._kind)
        of_kernels = self.groups * conv.in_channels * self._padded_channels
        packed = self._packed(conv.weight, self.transform.of_kernel.numpy(), place[:of_kernels], each)
        of_shortcut = np.empty((0, 0, 0, 0), self._kind)
        if shortcut is not None:
            of_shortcut = self._packed(shortcut.weight, winograd.UNCHANGED, place[of_kernels:], each)
        return _Weights(packed, of_shortcut, winograd.bias_of(self.step).numpy())

    def _packed(self, weight: Tensor, matrix: np.ndarray, place: np.ndarray, each: Each) -> np.ndarray:
        """matrix x kernel x matrix^T for each of the kernels [K, C, h, w], as products read them."""
        jit = winograd.jit()
        blocks = self._padded_channels // jit.COLUMNS
        packed = place.reshape(len(matrix) ** 2, blocks, weight.shape[1], jit.COLUMNS)

        def pack(block: int) -> None:
            kernels = weight[block * jit.COLUMNS : (block + 1) * jit.COLUMNS]
            jit.pack(kernels.detach().float().cpu().flatten(2).contiguous().numpy(), matrix, packed, block)

        each(pack, blocks)
        return packed

    def prepare(self, packed: _Weights, each: Each = one_by_one) -> None:
        super().prepare(packed, each)
        inputs = self.inputs
        items = range(inputs.target.shape[0])
        self._coefficients = [(_NO_VECTOR, _NO_VECTOR)] * len(items)
        if inputs.coefficients is not None:
            scale, shift = (each.float().numpy() for each in inputs.coefficients)
            self._coefficients = list(zip(scale, shift, strict=True))
        self._sources = [self._table(inputs.source, item).framed(inputs.circular.y) for item in items]
        self._targets = [RowTable.of(inputs.target, item, inputs.map_dtype) for item in items]
        residual = inputs.residual
        nothing = RowTable.empty(inputs.map_dtype)
        self._residuals = [nothing if residual is None else self._table(residual, item) for item in items]

    def _table(self, whole: FeatureMap, item: int) -> RowTable:
        """The rows of a map, or of a copy of it."""
        dtype = self.inputs.map_dtype
        found = RowTable.of(whole, item, dtype)
        if found is None:
            copy = FeatureMap.of(whole.item(item).rows(0, whole.shape[1]).to("cpu", dtype).contiguous())
            self._copies.append(copy.bands[0])
            found = RowTable.of(copy, 0, dtype)
            assert found is not None
        return found

    def compute_strip(self, strip: Strip, scratch: Scratch, sums: np.ndarray) -> None:
        item = strip.items[0]
        top, bottom = strip.rows
        written = None
        target = self._targets[item]
        if target is None:
            shape = 1, strip.height, strip.width, self.step.conv.out_channels
            written = FeatureMap.of(scratch.tensor("output", shape, self.inputs.map_dtype))
            target = RowTable.of(written, 0, self.inputs.map_dtype)
            assert target is not None
        else:
            target = target.part(top, bottom)
        weights = self.weights
        jit = winograd.jit()
        circular = self.inputs.circular.x
        ring, products, shortcut = (
            scratch.array(name, scratch.sizes[name] // 4) for name in ("ring", "products", "shortcut")
        )
        inputs = scratch.parts["inputs"].numpy().view(self._kind)
        at_once = self._at_once[-(-strip.height // TILE)]
        rows = scratch.tensor("rows", (TILE * at_once[0],), torch.int64).numpy()
        sums.fill(0.0)
        # Plain tuples: what numba keeps on disk has the names of all others, which a host may change.
        if self.step.scale == "same":
            jit.convolve(
                tuple(self._sources[item].part(top, bottom + 2)),
                circular,
                *self._coefficients[item],
                weights.weights,
                weights.bias,
                tuple(self._residuals[item].part(top, bottom)),
                weights.shortcut,
                tuple(target),
                strip.columns,
                (ring, inputs, products, shortcut, rows, at_once),
                sums[0],
                sums[1],
            )
        else:
            up = self.step.scale == "up"
            # The row above the map comes first.
            first, stop = (top // 2, bottom // 2 + 2) if up else (2 * top + 1, 2 * bottom + 2)
            (jit.upsample if up else jit.downsample)(
                tuple(self._sources[item].part(first, stop)),
                circular,
                weights.weights,
                weights.bias,
                tuple(target),
                strip.columns,
                (ring, inputs, products, at_once),
                sums[0],
                sums[1],
            )
        if written is not None:
            self.inputs.target.item(item).write(top, written.bands[0])

    def close(self) -> None:
        super().close()
        self._sources = []
        self._targets = []
        self._residuals = []
        self._copies = []


def _in_tiles(sizes: Mapping[int, int]) -> list[tuple[int, int]]:
    """Heights in tiles of strips of so many rows of pixels, and how many there are of each."""
    return [(-(-rows // TILE), count) for rows, count in sizes.items()]


class _Block(NamedTuple):
    """Tiles that are worked on at once.

    Attributes:
        tall, wide: how many below and beside one another.
        cost: of a strip, for each of its tiles, in products for one.
    """

    tall: int
    wide: int
    cost: float


@functools.cache
def _block(down: int, across: int, most: int, rows: int) -> _Block:
    """Up to `most` tiles of so many that a strip has: those for which the least is done in vain.

    Products are made for `rows` tiles at a time, and those beyond the last tile are lost; and half a tile's columns are
    transformed twice at each border between blocks. Of equals the largest is taken.
    """

    def products(tall: int, wide: int) -> int:
        """For a line of blocks."""
        blocks, rest = divmod(across, wide)
        return blocks * round_up(tall * wide, rows) + round_up(tall * rest, rows)

    def block(wide: int) -> _Block:
        tall = max(1, min(most // wide, down))
        lines, rest = divmod(down, tall)
        made = lines * products(tall, wide) + products(rest, wide)
        return _Block(tall, wide, made / (down * across) + _TWICE / wide)

    return min(map(block, range(1, min(across, most) + 1)), key=lambda each: (each.cost, -each.tall * each.wide))
