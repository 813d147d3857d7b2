"""Blended tiling and slicing for traced functions: equal pieces run one after the other in one compiled loop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ..tiling.grid import TileSpec, spans

Run = Callable[[Array], Array]


def blend(before: Array, after: Array, extent: int, axis: int) -> Array:
    """`after`, whose first `extent` positions along `axis` fade in from the last `extent` of `before`.

    Position k of the B that are blended is before * (1 - k / B) + after * (k / B).
    """
    extent = min(before.shape[axis], after.shape[axis], extent)
    if extent <= 0:
        return after
    shape = [1] * after.ndim
    shape[axis] = extent
    ramp = (jnp.arange(extent, dtype=jnp.float32) / extent).astype(after.dtype).reshape(shape)
    old = jax.lax.slice_in_dim(before, before.shape[axis] - extent, before.shape[axis], axis=axis)
    new, rest = jnp.split(after, [extent], axis=axis)
    return jnp.concatenate([old * (1 - ramp) + new * ramp, rest], axis=axis)


def run_blended(run: Run, x: Array, tile: TileSpec, in_unit: int, out_unit: int) -> Array:
    """Run a function over overlapping tiles of `x` [B, C, H, W] and blend the results into one map.

    Args:
        run: maps a tile [B, C, h, w] to [B, C', h * out_unit / in_unit, ...].
        in_unit, out_unit: size of one latent pixel in `x` and in the result: 1 for latents, the model's
            downscale factor for images.
    """
    assert tile.size is not None
    size = tile.size * in_unit
    stride = tile.stride * in_unit
    extent = tile.overlap * out_unit
    keep = tile.stride * out_unit
    rows, columns = (spans(length, size, stride, minimum=in_unit) for length in x.shape[2:])
    tiles = [x[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]
    results = run_by_shape(run, tiles)
    above: list[Array] = []
    strips = []
    for start in range(0, len(results), len(columns)):
        row: list[Array] = []
        for column, result in enumerate(results[start : start + len(columns)]):
            if above:
                result = blend(above[column], result, extent, axis=2)
            if row:
                result = blend(row[-1], result, extent, axis=3)
            row.append(result)
        strips.append(jnp.concatenate([result[:, :, :keep, :keep] for result in row], axis=3))
        above = row
    return jnp.concatenate(strips, axis=2)


def run_by_shape(run: Run, pieces: list[Array]) -> list[Array]:
    """run(piece) for every piece, in order. Pieces of one shape share one compiled loop and never run at once."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, piece in enumerate(pieces):
        places.setdefault(piece.shape, []).append(i)
    results: dict[int, Array] = {}
    for indices in places.values():
        results.update(zip(indices, jax.lax.map(run, jnp.stack([pieces[i] for i in indices])), strict=True))
    return [results[i] for i in range(len(pieces))]


def run_slices(run: Run, x: Array) -> Array:
    """run(x) item by item of the batch."""
    return jax.lax.map(lambda item: run(item[None])[0], x)
