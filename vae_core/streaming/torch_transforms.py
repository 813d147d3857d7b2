"""The transforms around the matrix products of a fast convolution in torch operations alone, where there is no numba.

Each transform is a product with a small matrix. What the compiled functions (`winograd_jit/`) keep in the first cache
is written to the second here, so this saves about half as much time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .stats import StripStats
from .transforms import Transform

Scratched = Callable[[str, Sequence[int]], Tensor]  # scratch memory of a name in `scratch_sizes`, of a shape


def scratch_sizes(transform: Transform, channels: int, out_channels: int, tiles: tuple[int, int]) -> dict[str, int]:
    """Numbers in float32 that a strip of so many tiles below and beside one another needs, by what they are for."""
    step = transform.step
    size = transform.products
    reach = transform.reach
    down, across = tiles
    wide = step * (across - 1) + reach
    values = 16 * down * across * out_channels
    return {
        "padded": (step * (down - 1) + reach) * wide * channels,
        "by row": down * size * wide * channels,
        "windows": across * size * channels,
        "halves": 4 * size * down * across * out_channels,
        "values": values,
        "pixels": values,
        "deviations": values,
    }


def transform_inputs(
    transform: Transform,
    source: Tensor,
    y: int,
    x: int,
    circular_x: bool,
    coefficients: tuple[Tensor, Tensor] | None,
    tiles: tuple[int, int],
    part_of: Scratched,
    out: Tensor,
) -> None:
    """Transform the inputs of rows and columns of tiles whose first input is source[y, x], [rows, W, C].

    Args:
        coefficients: scale and shift [C] before SiLU; None to take the source as it is.
        out: [1, tiles or more, n * n, >= C], or [n, tiles or more, n, >= C].
    """
    before = transform.before
    step = transform.step
    size = transform.products
    reach = transform.reach
    down, across = tiles
    channels = source.shape[2]
    high = step * (down - 1) + reach
    wide = step * (across - 1) + reach
    padded = part_of("padded", (high, wide, channels)).zero_()
    rows = slice(max(0, y), min(source.shape[0], y + high))
    if circular_x:
        columns = torch.arange(x, x + wide, device=source.device) % source.shape[1]
        place = padded[rows.start - y : rows.stop - y]
        part = source[rows].index_select(1, columns)
    else:
        columns = slice(max(0, x), min(source.shape[1], x + wide))
        place = padded[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        part = source[rows, columns]
    if coefficients is None:
        place.copy_(part)
    else:
        torch.mul(part, coefficients[0], out=place)
        F.silu(place.add_(coefficients[1]), inplace=True)

    row = wide * channels
    by_row = part_of("by row", (down, size, row))
    rows_of_tiles = padded.as_strided((down, reach, row), (step * row, row, 1), padded.storage_offset())
    torch.bmm(before.expand(down, -1, -1), rows_of_tiles, out=by_row)
    matrices = before.expand(across, -1, -1)
    lines = part_of("windows", (across, size, channels))
    whole = len(out) == 1
    for i in range(down):
        tiles_of_row = slice(i * across, (i + 1) * across)
        for j in range(size):
            windows = by_row[i, j].as_strided(
                (across, reach, channels), (step * channels, channels, 1), by_row[i, j].storage_offset()
            )
            place = out[0, tiles_of_row, size * j : size * (j + 1)] if whole else out[j, tiles_of_row]
            place[..., :channels] = torch.bmm(matrices, windows, out=lines)


def transform_outputs(
    transform: Transform,
    products: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    target: Tensor,
    tiles: tuple[int, int],
    part_of: Scratched,
    sums: np.ndarray,
) -> None:
    """Transform products, [1, tiles or more, n * n, K] or [n, tiles or more, n, K], and write them to target [h, w, K].

    Args:
        residual: [h, w, K], added; None for none.
        sums: [2, K] in float64, where the sums of the values and of their squares are written.
    """
    after = transform.after
    size = transform.products
    down, across = tiles
    count = down * across
    channels = target.shape[2]
    pieces = list(products[:, :count])
    if len(pieces) == 1:
        pieces = list(pieces[0].unflatten(1, (size, size)).unbind(1))
    matrices = after.expand(count, -1, -1)
    halves = part_of("halves", (size, count, 4, channels))
    for piece, half in zip(pieces, halves, strict=True):
        torch.bmm(matrices, piece, out=half)
    values = torch.mm(after, halves.view(size, -1), out=part_of("values", (4, 4 * count * channels)))
    values = values.view(4, down, across, 4, channels).permute(1, 0, 2, 3, 4)
    pixels = part_of("pixels", (down, 4, across, 4, channels)).copy_(values).view(4 * down, 4 * across, channels)
    height, width = target.shape[:2]
    values = torch.add(pixels[:height, :width], bias, out=part_of("values", (height, width, channels)))
    if residual is not None:
        values.add_(residual)
    target.copy_(values)
    stats = StripStats.of(values[None], part_of("deviations", (1, height * width, channels))).finished()
    total = stats.mean[0] * stats.count
    sums[0] = total.numpy()
    sums[1] = (stats.m2[0] + total * stats.mean[0]).numpy()
