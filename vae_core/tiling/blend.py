"""The overlapped and blended tiling of diffusers: each tile is run by itself, the overlaps are cross-faded.

It is not exact: every tile has its own normalisation statistics and its own attention. It is here because saved
images and other programs rely on its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .grid import TileSpec, span_lengths, spans


def blend(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """`after`, whose first `extent` positions along `dim` fade in from the last `extent` of `before`.

    Position k of the B that are blended is before * (1 - k / B) + after * (k / B).
    """
    extent = min(before.shape[dim], after.shape[dim], extent)
    if extent <= 0:
        return after
    shape = [1] * after.ndim
    shape[dim] = extent
    ramp = (torch.arange(extent, device=after.device, dtype=torch.float32) / extent).to(after.dtype).view(shape)
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    new = after.narrow(dim, 0, extent)
    rest = after.narrow(dim, extent, after.shape[dim] - extent)
    return torch.cat([old * (1 - ramp) + new * ramp, rest], dim=dim)


def blended_tiles(
    run: Callable[[Tensor], Tensor], x: Tensor, tile: TileSpec, in_unit: int, out_unit: int
) -> Iterator[tuple[Tensor, int, int]]:
    """Run a function over overlapping tiles of `x` [B, C, H, W] and blend the results.

    Args:
        run: maps a tile [B, C, h, w] to [B, C', h * out_unit / in_unit, ...].
        in_unit, out_unit: pixels along one side of a latent pixel, in `x` and in the result: 1 for latents, the
            model's downscale factor for images.

    Yields:
        Pieces [B, C', rows, columns] of the result, that cover it without overlap, and where the first row and column
        of each belong.
    """
    assert tile.size is not None
    size = tile.size * in_unit
    stride = tile.stride * in_unit
    extent = tile.overlap * out_unit
    keep = tile.stride * out_unit
    above: list[Tensor] = []
    for top, bottom in spans(x.shape[2], size, stride, minimum=in_unit):
        edges: list[Tensor] = []
        beside: Tensor | None = None
        for index, (left, right) in enumerate(spans(x.shape[3], size, stride, minimum=in_unit)):
            result = run(x[:, :, top:bottom, left:right])
            if above:
                result = blend(above[index], result, extent, dim=2)
            if beside is not None:
                result = blend(beside, result, extent, dim=3)
            yield result[:, :, :keep, :keep], top // in_unit * out_unit, left // in_unit * out_unit
            # Of a tile, its neighbours need what they share with it.
            edges.append(_last(result, extent, dim=2).clone())
            beside = _last(result, extent, dim=3)
        above = edges


def _last(x: Tensor, extent: int, dim: int) -> Tensor:
    extent = min(extent, x.shape[dim])
    return x.narrow(dim, x.shape[dim] - extent, extent)


def kept_positions(size: Sequence[int], tile: TileSpec, out_unit: int) -> int:
    """Positions of a result of this height and width that `blended_tiles` keeps, at most: two rows of tiles' edges."""
    assert tile.size is not None
    height, width = size
    lengths = span_lengths(width, tile.size * out_unit, tile.stride * out_unit, out_unit)
    across = sum(length * count for length, count in lengths.items())
    return 2 * min(tile.overlap * out_unit, height) * across


def run_blended(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: TileSpec,
    in_unit: int,
    out_unit: int,
    out: Tensor | None = None,
) -> Tensor:
    """The pieces of `blended_tiles` as one map, in `out` if that is given; gradients flow through it if not."""
    rows: dict[int, list[Tensor]] = {}
    for piece, top, left in blended_tiles(run, x, tile, in_unit, out_unit):
        if out is None and not torch.is_grad_enabled():
            height, width = (side // in_unit * out_unit for side in x.shape[2:])
            out = piece.new_empty(len(piece), piece.shape[1], height, width)
        if out is not None:
            out[:, :, top : top + piece.shape[2], left : left + piece.shape[3]].copy_(piece)
        else:
            rows.setdefault(top, []).append(piece)
    return out if out is not None else torch.cat([torch.cat(row, dim=3) for row in rows.values()], dim=2)


def cut_tiles(size: Sequence[int], tile: TileSpec, in_unit: int) -> Counter[tuple[int, int]]:
    """How many tiles of each height and width `blended_tiles` cuts a map of this height and width into."""
    assert tile.size is not None
    heights, widths = (span_lengths(side, tile.size * in_unit, tile.stride * in_unit, in_unit) for side in size)
    return Counter({(height, width): high * wide for height, high in heights.items() for width, wide in widths.items()})
