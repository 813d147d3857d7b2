"""Fast convolutions for float32 on a CPU: far fewer multiplications, all of them in large matrix products.

A 3x3 convolution is Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144. A 3x3 convolution of a doubled
map is 25 products for 16 outputs, and never makes the doubled map. `transforms.py` has the mathematics, `products.py`
the products; the transforms around them are compiled (`winograd_jit/`), or, without numba, torch operations
(`winograd_torch.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import internals, transforms, winograd_torch
from .internals import products_available
from .products import VECTOR, PackedProducts, padded, whole_vectors
from .scratch import Scratch
from .transforms import TILE, Transform

__all__ = [
    "GROUPS",
    "TILE",
    "VECTOR",
    "Operands",
    "PackedProducts",
    "Rows",
    "Target",
    "compiled",
    "is_whole",
    "most_tiles",
    "pack",
    "packing_bytes",
    "padded",
    "pieces_of",
    "products_available",
    "scratch_sizes",
    "upsample_strip",
    "whole_array",
    "whole_vectors",
    "winograd_strip",
]

# Rows of the products: enough to keep the weights' traffic and the calls' cost small, few enough to stay in cache.
_LEAST_ROWS = {"narrow": 128, "wide": 256}
_FEWEST_ROWS = 64  # within a small budget; with fewer yet, weights would be read more than anything else
_OPERAND_BYTES = 5 * 2**19
_WIDE_CHANNELS = 384
# The C library gives larger blocks fresh pages each time, which the system must clear first.
_LARGEST_PIECE = 2**24
GROUPS = {scale: each.products**2 for scale, each in transforms.BY_SCALE.items()}  # products of a tile


@functools.cache
def _jit() -> Any:
    """The compiled transforms, `winograd_jit`; None without numba."""
    return internals.load_compiled(Path(__file__).with_name("winograd_jit"))


@functools.cache
def compiled() -> bool:
    """Whether numba is there, for the fastest transforms."""
    return _jit() is not None


def most_tiles(channels: int, groups: int, share: float) -> int:
    """Tiles of a strip, about, for a convolution whose wider side has so many channels.

    `share`, up to 1, is what a memory budget leaves of the usual size.
    """
    least = _LEAST_ROWS["wide" if channels >= _WIDE_CHANNELS else "narrow"]
    most = max(least, _OPERAND_BYTES // (4 * groups * channels))
    return max(_FEWEST_ROWS, int(most * share) // 16 * 16)


def _pieces(weights: int, transform: Transform) -> int:
    return transform.products if 4 * weights > _LARGEST_PIECE else 1


def pieces_of(weights: int, scale: str) -> int:
    """In how many pieces so many transformed weights of a pass are packed, by its scale."""
    return _pieces(weights, transforms.BY_SCALE[scale])


def packing_bytes(conv: nn.Conv2d, scale: str) -> int:
    """Bytes of the transformed weights that `pack` packs at a time."""
    weights = GROUPS[scale] * conv.in_channels * conv.out_channels
    return 4 * weights // pieces_of(weights, scale)


def _pack_transformed(conv: nn.Conv2d, transform: Transform, rows: int, memory: Tensor) -> list[PackedProducts]:
    """G w G^T for every kernel w of `conv`, packed together or row by row of the result."""
    kernels = conv.weight.detach().float().cpu().flatten(0, 1).flatten(1).t()  # [9, K * C]
    one = transforms.as_tensor(transform.kernel)
    both = torch.kron(one, one).float()
    pieces = _pieces(both.shape[0] * kernels.shape[1], transform)
    matrices = memory.view(torch.float32).view(both.shape[0] // pieces, kernels.shape[1])
    packed = []
    for part in both.chunk(pieces):
        torch.mm(part, kernels, out=matrices)
        packed.append(PackedProducts.pack(matrices.unflatten(1, conv.weight.shape[:2]), rows))
    return packed


def pack(conv: nn.Conv2d, scale: str, tiles: int, memory: Tensor) -> list[PackedProducts]:
    """The weights of a 3x3 convolution, transformed for strips of so many tiles.

    They are four times as large as its own, or 25/9 where it follows a doubling (scale "up").

    Args:
        memory: `packing_bytes` of it, uint8.
    """
    return _pack_transformed(conv, transforms.BY_SCALE[scale], tiles, memory)


# What is not there, for the compiled functions.
_NO_VECTOR = np.empty(0, np.float32)
_NO_MAP = np.empty((0, 0, 0), np.float32)


def scratch_sizes(conv: nn.Conv2d, scale: str, tiles: tuple[int, int]) -> dict[str, int]:
    """Bytes that a strip of so many tiles below and beside one another needs, by what they are for.

    "products" are both sides of them; "ring" is that of the compiled transforms, and the others are those in torch
    operations.
    """
    transform, channels, out_channels = transforms.BY_SCALE[scale], conv.in_channels, conv.out_channels
    numbers = tiles[0] * tiles[1] * transform.products**2
    sizes = {"left": numbers * whole_vectors(channels), "results": numbers * out_channels}
    if compiled():
        sizes["ring"] = 16 * channels if scale == "up" else 36 * min(channels, _jit().BLOCK)
    else:
        sizes.update(winograd_torch.scratch_sizes(transform, channels, out_channels, tiles))
    return {name: 4 * size for name, size in sizes.items()}


@dataclass(frozen=True)
class Operands:
    """Both sides of a pass's products in one thread: memory, and the operators' views of it.

    They are made once for a pass, since each of torch's operations, be it a view, gives the interpreter lock away and
    waits for it again, which would take a tenth of the time of threads with short strips.

    Attributes:
        scratch: with the parts that `scratch_sizes` names.
        left: [products, rows, groups, padded channels], zeros beyond the channels.
        results: [products, rows, groups, K], zeros between strips: oneDNN's operator that writes to memory of the
            caller's adds to what is there.
        ring: of the compiled transforms.
    """

    products: list[PackedProducts]
    scratch: Scratch
    left: np.ndarray
    results: np.ndarray
    ring: np.ndarray | None
    views: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, scratch: Scratch, products: list[PackedProducts], channels: int) -> Operands:
        """Those in a worker's memory, whichever thread that is."""
        if scratch.made is not None:
            return scratch.made
        first = products[0]
        left = scratch.array("left", len(products), first.rows, first.groups, first.in_channels)
        results = scratch.array("results", len(products), first.rows, first.groups, first.out_channels)
        left[..., channels:] = 0.0
        results.fill(0.0)
        views = [
            (each.as_image(x), each.as_image(y), each.weight)
            for each, x, y in zip(products, torch.from_numpy(left), torch.from_numpy(results), strict=True)
        ]
        ring = scratch.array("ring", scratch.sizes["ring"] // 4) if compiled() else None
        scratch.made = cls(products, scratch, left, results, ring, views)
        return scratch.made

    def multiply(self, tiles: int) -> np.ndarray:
        """The products of the first `tiles` rows. Whoever reads them must leave zeros."""
        for x, y, weight in self.views:
            internals.add_products(y, x, weight, self.products[0].groups)
        self.results[:, tiles:] = 0.0
        return self.results


@dataclass(frozen=True)
class Rows:
    """Some rows of a map for the compiled functions: whole, and contiguous.

    Attributes:
        array: [rows, W, C or more] of float32; channels beyond the map's own belong to another map.
        first: number of the first of these rows in the map.
        channels: C.
    """

    array: np.ndarray
    first: int
    channels: int

    @classmethod
    def of(cls, rows: Tensor, first: int) -> Rows:
        """Of contiguous [rows, W, C]."""
        return cls(rows.numpy(), first, rows.shape[2])


def is_whole(band: Tensor) -> bool:
    """Whether a band [B, rows, W, C] is float32 in the CPU's memory, laid out so, or part of a wider one that is."""
    _, rows, width, channels = band.shape
    wider = band.stride(2)
    lines = (rows * width * wider, width * wider, wider, 1)
    strides = zip(band.shape, band.stride(), lines, strict=True)
    laid_out = wider >= channels and all(size == 1 or step == line for size, step, line in strides)
    return laid_out and band.dtype == torch.float32 and band.device.type in ("cpu", "meta")


def whole_array(band: Tensor) -> np.ndarray | None:
    """A band as an array, with the other channels of a wider map; None if it is not whole."""
    if not is_whole(band):
        return None
    batch, rows, width, _ = band.shape
    wider = band.stride(2)
    return band.as_strided((batch, rows, width, wider), (rows * width * wider, width * wider, wider, 1)).numpy()


@dataclass(frozen=True)
class Target:
    """A rectangle to be written: all of its rows, and the columns [left, right)."""

    rows: Rows
    left: int
    right: int

    @property
    def height(self) -> int:
        return len(self.rows.array)

    @property
    def tiles(self) -> tuple[int, int]:
        """How many lie below and beside one another."""
        return -(-self.height // TILE), -(-(self.right - self.left) // TILE)

    @property
    def count(self) -> int:
        return self.tiles[0] * self.tiles[1]

    @property
    def values(self) -> Tensor:
        """What is to be written, [rows, columns, K]."""
        return torch.from_numpy(self.rows.array)[:, self.left : self.right, : self.rows.channels]


def winograd_strip(
    operands: Operands,
    window: Rows,
    coefficients: tuple[np.ndarray, np.ndarray] | None,
    bias: np.ndarray,
    residual: Tensor | None,
    in_place: bool,
    target: Target,
    circular_x: bool,
    sums: np.ndarray,
) -> None:
    """conv(silu(x * scale + shift)) + bias, with a residual, for a rectangle.

    Args:
        window: source rows, from one above the target to one below it as far as they exist.
        coefficients: scale and shift [C]; None to convolve the source as it is.
        residual: added, [rows, columns, K] of the rectangle, contiguous; None for none.
        in_place: add what is in the rectangle instead.
        sums: [2, K] in float64, where the sums of the values and of their squares are written.
    """
    if not compiled():
        if in_place:
            residual = target.values
        left = (1, target.left)
        _strip_by_torch(
            transforms.WINOGRAD, operands, window, coefficients, bias, residual, target, left, circular_x, sums
        )
        return
    scale, shift = (_NO_VECTOR, _NO_VECTOR) if coefficients is None else coefficients
    _jit().transform_inputs(
        window.array,
        target.rows.first - 1 - window.first,
        target.left - 1,
        circular_x,
        scale,
        shift,
        operands.ring,
        operands.left,
        *target.tiles,
        window.channels,
    )
    added, added_left = _NO_MAP if residual is None else residual.numpy(), 0
    if in_place:
        added, added_left = target.rows.array, target.left
    sums.fill(0.0)
    _jit().transform_outputs(
        operands.multiply(target.count),
        bias,
        added,
        added_left,
        target.rows.array,
        target.left,
        target.right,
        sums[0],
        sums[1],
    )


def upsample_strip(
    operands: Operands, window: Rows, bias: np.ndarray, target: Target, circular_x: bool, sums: np.ndarray
) -> None:
    """conv(double(x)) + bias for a rectangle whose upper and left edges are even.

    `window` is of source rows, from one above the target's to one below them as far as they exist; `sums` as for
    `winograd_strip`.
    """
    if not compiled():
        left = (2, target.left // 2)
        _strip_by_torch(transforms.UPSAMPLE, operands, window, None, bias, None, target, left, circular_x, sums)
        return
    _jit().upsample_inputs(
        window.array,
        target.rows.first // 2 - 1 - window.first,
        target.left // 2 - 1,
        circular_x,
        operands.ring,
        operands.left,
        *target.tiles,
        window.channels,
    )
    sums.fill(0.0)
    _jit().upsample_outputs(
        operands.multiply(target.count), bias, target.rows.array, target.left, target.right, sums[0], sums[1]
    )


def _strip_by_torch(
    transform: Transform,
    operands: Operands,
    window: Rows,
    coefficients: tuple[np.ndarray, np.ndarray] | None,
    bias: np.ndarray,
    residual: Tensor | None,
    target: Target,
    origin: tuple[int, int],
    circular_x: bool,
    sums: np.ndarray,
) -> None:
    """A strip without compiled code. `origin`: the map's size over the source's, and the source's first column."""
    scale, left = origin
    source = torch.from_numpy(window.array)[..., : window.channels]
    top, out, part = target.rows.first // scale - 1 - window.first, torch.from_numpy(operands.left), operands.scratch
    affine = None if coefficients is None else (torch.from_numpy(coefficients[0]), torch.from_numpy(coefficients[1]))
    winograd_torch.transform_inputs(
        transform, source, top, left - 1, circular_x, affine, target.tiles, part.tensor, out
    )
    results = torch.from_numpy(operands.multiply(target.count))
    winograd_torch.transform_outputs(
        transform, results, torch.from_numpy(bias), residual, target.values, target.tiles, part.tensor, sums
    )
    results[:, : target.count] = 0.0
