"""The transforms around the matrix products of a fast convolution in torch operations alone, where there is no numba.

Each transform is a product with a small matrix. What the compiled functions (`winograd_jit/`) keep in the first cache
is written to the second here, so this saves about half as much time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .stats import StripStats
from .transforms import Transform

Buffer = Callable[..., np.ndarray]


def transform_inputs(
    transform: Transform,
    source: Tensor,
    y: int,
    x: int,
    circular_x: bool,
    coefficients: tuple[Tensor, Tensor] | None,
    tiles: tuple[int, int],
    buffer: Buffer,
    out: Tensor,
) -> None:
    """Transform the inputs of rows and columns of tiles whose first input is source[y, x], [rows, W, C].

    Args:
        coefficients: scale and shift [C] before SiLU; None to take the source as it is.
        out: [1, tiles or more, n * n, >= C], or [n, tiles or more, n, >= C].
    """
    before, step, size, reach = transform.before, transform.step, transform.products, transform.reach
    down, across = tiles
    channels = source.shape[2]
    high, wide = step * (down - 1) + reach, step * (across - 1) + reach
    padded = torch.from_numpy(buffer("padded", high, wide, channels)).zero_()
    rows = slice(max(0, y), min(source.shape[0], y + high))
    if circular_x:
        columns = torch.arange(x, x + wide, device=source.device) % source.shape[1]
        place, part = padded[rows.start - y : rows.stop - y], source[rows].index_select(1, columns)
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
    by_row = torch.from_numpy(buffer("by row", down, size, row))
    torch.bmm(before.expand(down, -1, -1), padded.as_strided((down, reach, row), (step * row, row, 1)), out=by_row)
    matrices = before.expand(across, -1, -1)
    whole = len(out) == 1
    for i in range(down):
        tiles_of_row = slice(i * across, (i + 1) * across)
        for j in range(size):
            windows = by_row[i, j].as_strided(
                (across, reach, channels), (step * channels, channels, 1), by_row[i, j].storage_offset()
            )
            place = out[0, tiles_of_row, size * j : size * (j + 1)] if whole else out[j, tiles_of_row]
            place[..., :channels] = torch.bmm(matrices, windows)


def transform_outputs(
    transform: Transform,
    products: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    target: Tensor,
    tiles: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Transform products, [1, tiles or more, n * n, K] or [n, tiles or more, n, K], and write them to target [h, w, K].

    Args:
        residual: [h, w, K], added; None for none.

    Returns:
        Sums of the values and of their squares, [K] in float64.
    """
    after, size = transform.after, transform.products
    down, across = tiles
    count, channels = down * across, target.shape[2]
    pieces = list(products[:, :count])
    if len(pieces) == 1:
        pieces = list(pieces[0].unflatten(1, (size, size)).unbind(1))
    matrices = after.expand(count, -1, -1)
    halves = torch.stack([torch.bmm(matrices, piece) for piece in pieces])  # [n, tiles, 4, K]
    values = (after @ halves.view(size, -1)).view(4, down, across, 4, channels)
    values = values.permute(1, 0, 2, 3, 4).reshape(4 * down, 4 * across, channels)
    values = values[: target.shape[0], : target.shape[1]]
    values = torch.add(values, bias)
    if residual is not None:
        values.add_(residual)
    target.copy_(values)
    stats = StripStats.of(values[None]).finished()
    total = stats.mean[0] * stats.count
    return total.numpy(), (stats.m2[0] + total * stats.mean[0]).numpy()
