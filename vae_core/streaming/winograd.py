"""Fast convolutions for float32 on a CPU: far fewer multiplications, all of them in large matrix products.

A 3x3 convolution is Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144 (Lavin & Gray, Fast Algorithms
for Convolutional Neural Networks, 2016). A 3x3 convolution of a doubled map is 25 products for 16 outputs: in one
dimension two kernels of two, one for each parity of the output, are applied to the map itself. With the kernel
(w0, w1, w2) and four neighbours x0 ... x3, the four outputs over x1 and x2 are

    p + q + w0 (x0 - x2),    p + r,    p - q,    p - r + w2 (x3 - x1)

    p = (w0 + w1 + w2) / 2 (x1 + x2),  q = (w0 - w1 - w2) / 2 (x2 - x1),  r = (w2 - w1 - w0) / 2 (x2 - x1)

which is Winograd's F(2, 2) at the points 0, 1, -1 for the even outputs and 1, -1 and infinity for the odd ones, where
the product at 1 is the same. It rounds like plain convolution, for its transforms are differences, and never makes
the doubled map.

All products of a strip are one grouped 1x1 convolution of oneDNN on weights packed in advance. That runs at the
machine's rate for any number of rows; torch's own matrix product does not on every processor.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import winograd_torch

TILE = 4  # outputs along one side of a Winograd tile
# Rows of the products: enough to keep the weights' traffic and the calls' cost small, few enough to stay in cache.
_LEAST_ROWS = {"narrow": 128, "wide": 256}
_FEWEST_ROWS = 64  # within a small budget; with fewer yet, weights would be read more than anything else
_OPERAND_BYTES = 5 * 2**19
_WIDE_CHANNELS = 384
# The C library gives larger blocks fresh pages each time, which the system must clear first.
_LARGEST_PIECE = 2**24
VECTOR = 16  # channels that oneDNN's products work on at a time


def _kernel_transform(a: float, b: float) -> Tensor:
    """G of F(4, 3) for the points 0, a, -a, b, -b and infinity: [6, 3] in float64."""
    rows = [[1 / (a * a * b * b), 0, 0]]
    for point, other in ((a, b), (b, a)):
        norm = 2 * point**2 * (point**2 - other**2)
        rows += [[1 / norm, sign * point / norm, point**2 / norm] for sign in (1, -1)]
    return torch.tensor([*rows, [0, 0, 1]], dtype=torch.float64)


_G = _kernel_transform(2 / 3, 3 / 2)  # the points of `winograd_jit.py`
_UP = torch.tensor([[0.5, 0.5, 0.5], [0.5, -0.5, -0.5], [1, 0, 0], [-0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
GROUPS = {"same": len(_G) ** 2, "up": len(_UP) ** 2}  # products of a tile, by the scale of a pass


@functools.cache
def products_available() -> bool:
    """Whether torch has oneDNN's operators for products with packed weights."""
    operators = torch.ops.mkldnn
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(operators, name) for name in names)


_JIT = "seamless_vae_winograd_jit"
_loading = threading.Lock()


@functools.cache
def _transforms() -> Any:
    """The module of compiled transforms, `winograd_jit.py`; None without numba.

    Its name does not depend on who imports this package: numba's cache on disk holds it, and what a host compiled
    under a name of the host's choosing could not be loaded by anybody else.
    """
    with _loading:
        if _JIT not in sys.modules:
            spec = importlib.util.spec_from_file_location(_JIT, Path(__file__).with_name("winograd_jit.py"))
            assert spec is not None and spec.loader is not None
            sys.modules[_JIT] = module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except ImportError:
                del sys.modules[_JIT]
                return None
        return sys.modules[_JIT]


@functools.cache
def compiled() -> bool:
    """Whether numba is there, for the fastest transforms."""
    return _transforms() is not None


def most_tiles(channels: int, groups: int, share: float) -> int:
    """Tiles of a strip, about, for a convolution whose wider side has so many channels.

    `share`, up to 1, is what a memory budget leaves of the usual size.
    """
    least = _LEAST_ROWS["wide" if channels >= _WIDE_CHANNELS else "narrow"]
    most = max(least, _OPERAND_BYTES // (4 * groups * channels))
    return max(_FEWEST_ROWS, int(most * share) // 16 * 16)


def padded(x: Tensor, zeros: int) -> Tensor:
    """x with so many zeros more in its last dimension; x itself for none, which `F.pad` would copy."""
    return F.pad(x, (0, zeros)) if zeros else x


@dataclass(frozen=True)
class PackedProducts:
    """`groups` matrices [C, K], laid out as oneDNN wants them for products of `rows` rows.

    With another number of rows it may want another layout and make it in every call, which takes a hundred times as
    long; so fewer rows are filled up. `in_channels` is C padded to whole vectors.
    """

    weight: Tensor
    rows: int
    groups: int
    in_channels: int
    out_channels: int

    @classmethod
    def pack(cls, matrices: Tensor, rows: int) -> PackedProducts:
        """Of matrices [groups, K, C], for products of up to `rows` rows. C is padded to whole vectors with zeros."""
        matrices = padded(matrices, -matrices.shape[2] % VECTOR)
        groups, out_channels, in_channels = matrices.shape
        shape = [1, groups * in_channels, 1, rows]
        weight = matrices.reshape(groups * out_channels, in_channels, 1, 1)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], groups, shape)
        return cls(packed, rows, groups, in_channels, out_channels)

    def __call__(self, left: Tensor) -> Tensor:
        """[N, groups, C] -> [N, groups, K], for N of up to `rows`."""
        count = left.shape[0]
        if count < self.rows:
            left = F.pad(left, (0, 0, 0, 0, 0, self.rows - count))
        y = torch.ops.mkldnn._convolution_pointwise(
            self.as_image(left), self.weight, None, [0, 0], [1, 1], [1, 1], self.groups, "none", [], ""
        )
        return y.permute(0, 2, 3, 1).view(self.rows, self.groups, self.out_channels)[:count]

    def as_image(self, matrices: Tensor) -> Tensor:
        """[rows, groups, C] as the image that a convolution takes."""
        return matrices.view(1, 1, self.rows, -1).permute(0, 3, 1, 2)


def _pieces(weights: int, transform: Tensor) -> int:
    return len(transform) if 4 * weights > _LARGEST_PIECE else 1


def pieces_of(weights: int, scale: str) -> int:
    """In how many pieces so many transformed weights of a pass are packed, by its scale."""
    return _pieces(weights, _UP if scale == "up" else _G)


def _pack_transformed(conv: nn.Conv2d, transform: Tensor, rows: int) -> list[PackedProducts]:
    """transform w transform^T for every kernel w of `conv`, packed together or row by row of the result."""
    kernels = conv.weight.detach().float().flatten(0, 1).flatten(1).t()  # [9, K * C]
    both = torch.kron(transform, transform).float()
    pieces = _pieces(both.shape[0] * kernels.shape[1], transform)
    matrices = torch.from_numpy(_buffer("weights", both.shape[0] // pieces, kernels.shape[1]))
    packed = []
    for part in both.chunk(pieces):
        torch.mm(part, kernels, out=matrices)
        packed.append(PackedProducts.pack(matrices.unflatten(1, conv.weight.shape[:2]), rows))
    return packed


def pack_winograd(conv: nn.Conv2d, tiles: int) -> list[PackedProducts]:
    """The weights of a 3x3 convolution, transformed for strips of so many tiles: four times their size."""
    return _pack_transformed(conv, _G, tiles)


def pack_upsample(conv: nn.Conv2d, tiles: int) -> list[PackedProducts]:
    """The weights of a 3x3 convolution that follows a doubling, as `pack_winograd`: 25/9 of their size."""
    return _pack_transformed(conv, _UP, tiles)


_scratch = threading.local()


def _buffer(name: str, *shape: int) -> np.ndarray:
    """A float32 array of this thread's own, kept from strip to strip."""
    kept: dict[str, np.ndarray] = _scratch.__dict__.setdefault("kept", {})
    size = int(np.prod(shape))
    if name not in kept or kept[name].size < size:
        kept[name] = np.empty(size, np.float32)
    return kept[name][:size].reshape(shape)


def drop_scratch() -> None:
    """Give back what `_buffer` keeps for the calling thread."""
    _scratch.__dict__.clear()


@dataclass(frozen=True)
class _Operands:
    """Both sides of a pass's products in one thread: memory, and the operators' views of it.

    They are made once for a pass, since each of torch's operations, be it a view, gives the interpreter lock away and
    waits for it again, for which threads of short strips would spend a tenth of their time.

    Attributes:
        left: [products, rows, groups, padded channels], zeros beyond the channels.
        results: [products, rows, groups, K], zeros between strips: oneDNN's operator that writes to memory of the
            caller's adds to what is there.
    """

    products: list[PackedProducts]
    left: np.ndarray
    results: np.ndarray
    views: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, products: list[PackedProducts], channels: int) -> _Operands:
        """Those of the calling thread."""
        kept: _Operands | None = getattr(_scratch, "operands", None)
        if kept is not None and kept.products is products:
            return kept
        first = products[0]
        left = _buffer("left", len(products), first.rows, first.groups, first.in_channels)
        results = _buffer("results", len(products), first.rows, first.groups, first.out_channels)
        left[..., channels:] = 0.0
        results.fill(0.0)
        views = [
            (each.as_image(x), each.as_image(y), each.weight)
            for each, x, y in zip(products, torch.from_numpy(left), torch.from_numpy(results), strict=True)
        ]
        _scratch.operands = cls(products, left, results, views)
        return _scratch.operands

    def multiply(self, tiles: int) -> np.ndarray:
        """The results, of which whoever reads the first so many rows leaves zeros behind."""
        for x, y, weight in self.views:
            torch.ops.mkldnn._convolution_pointwise_(
                y, x, weight, None, [0, 0], [1, 1], [1, 1], self.products[0].groups, "add", 1.0, None, [], None
            )
        self.results[:, tiles:] = 0.0
        return self.results


@dataclass(frozen=True)
class Rows:
    """Some rows of a map for the compiled functions: whole, and contiguous.

    Attributes:
        array: [rows, W, C or more] of float32; channels beyond the map's own belong to somebody else.
        first: number of the first of these rows in the map.
        channels: C.
    """

    array: np.ndarray
    first: int
    channels: int

    @classmethod
    def of(cls, rows: Tensor, first: int) -> Rows:
        """Of [rows, W, C], which may be the first channels of a wider contiguous map; anything else is copied."""
        whole = whole_array(rows[None])
        return cls(rows.contiguous().numpy() if whole is None else whole[0], first, rows.shape[2])


def whole_array(band: Tensor) -> np.ndarray | None:
    """A band [B, rows, W, C] as a contiguous array, with the other channels of a wider map; None if it is none."""
    batch, rows, width, channels = band.shape
    wider = band.stride(2)
    lines = (rows * width * wider, width * wider, wider, 1)
    if wider < channels or any(
        size > 1 and step != line for size, step, line in zip(band.shape, band.stride(), lines, strict=True)
    ):
        return None
    return band.as_strided((batch, rows, width, wider), lines).numpy()


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
    window: Rows,
    coefficients: tuple[np.ndarray, np.ndarray] | None,
    products: list[PackedProducts],
    bias: np.ndarray,
    residual: Tensor | None,
    in_place: bool,
    target: Target,
    wrap_x: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """conv(silu(x * scale + shift)) + bias, with a residual, for a rectangle.

    Args:
        window: source rows, from one above the target to one below it as far as they exist.
        coefficients: scale and shift [C]; None to convolve the source as it is.
        residual: added, [rows, columns, K] of the rectangle, contiguous; None for none.
        in_place: add what the rectangle holds instead.

    Returns:
        Sums of the values and of their squares, [K] in float64.
    """
    if not compiled():
        if in_place:
            residual = target.values
        return _strip_by_torch(
            winograd_torch.WINOGRAD, window, coefficients, products, bias, residual, target, (1, target.left), wrap_x
        )
    jit, operands = _transforms(), _Operands.of(products, window.channels)
    ring = _buffer("ring", 6, 6, window.channels)
    scale, shift = (ring, ring) if coefficients is None else coefficients
    jit.tiles_in(
        window.array, target.rows.first - 1 - window.first, target.left - 1, wrap_x, scale, shift,
        coefficients is not None, ring, operands.left, *target.tiles,
    )  # fmt: skip
    mode = 2 if in_place else 0 if residual is None else 1
    added = ring if residual is None else residual.numpy()
    total, squares = np.zeros(target.rows.channels), np.zeros(target.rows.channels)
    jit.tiles_out(
        operands.multiply(target.count), bias, added, mode, target.rows.array, target.left, target.right, total, squares
    )  # fmt: skip
    return total, squares


def upsample_strip(
    window: Rows, products: list[PackedProducts], bias: np.ndarray, target: Target, wrap_x: bool
) -> tuple[np.ndarray, np.ndarray]:
    """conv(double(x)) + bias for a rectangle whose upper and left edges are even.

    `window` is of source rows, from one above the target's to one below them as far as they exist. Returns as
    `winograd_strip` does.
    """
    if not compiled():
        up, left = winograd_torch.UPSAMPLE, target.left // 2
        return _strip_by_torch(up, window, None, products, bias, None, target, (2, left), wrap_x)
    jit, operands = _transforms(), _Operands.of(products, window.channels)
    y, ring = target.rows.first // 2 - 1 - window.first, _buffer("ring", 4, 4, window.channels)
    jit.upsample_in(window.array, y, target.left // 2 - 1, wrap_x, ring, operands.left, *target.tiles)
    total, squares = np.zeros(target.rows.channels), np.zeros(target.rows.channels)
    jit.upsample_out(
        operands.multiply(target.count), bias, target.rows.array, target.left, target.right, total, squares
    )
    return total, squares


def _strip_by_torch(
    transforms: winograd_torch.Transforms,
    window: Rows,
    coefficients: tuple[np.ndarray, np.ndarray] | None,
    products: list[PackedProducts],
    bias: np.ndarray,
    residual: Tensor | None,
    target: Target,
    origin: tuple[int, int],
    wrap_x: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """A strip without compiled code. `origin`: the map's size over the source's, and the source's first column."""
    scale, left = origin
    operands = _Operands.of(products, window.channels)
    source = torch.from_numpy(window.array)[..., : window.channels]
    top, out = target.rows.first // scale - 1 - window.first, torch.from_numpy(operands.left)
    affine = None if coefficients is None else (torch.from_numpy(coefficients[0]), torch.from_numpy(coefficients[1]))
    winograd_torch.tiles_in(transforms, source, top, left - 1, wrap_x, affine, target.tiles, _buffer, out)
    results = torch.from_numpy(operands.multiply(target.count))
    sums = winograd_torch.tiles_out(transforms, results, torch.from_numpy(bias), residual, target.values, target.tiles)
    results[:, : target.count] = 0.0
    return sums
