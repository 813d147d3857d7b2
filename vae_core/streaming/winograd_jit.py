"""The transforms around the matrix products of a fast convolution, compiled by numba (an optional extra).

Every function works on one row of tiles of channels-last maps and releases the interpreter lock. The innermost loop
runs over channels, so that it becomes vector instructions. `source` holds the rows that the tiles read; a row that
is not in it lies outside the picture and counts as zero.
"""

from __future__ import annotations

import numba
import numpy as np

F32 = np.float32


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _silu(x):
    """x / (1 + exp(-x)), with exp as 2^n times a polynomial of degree 6 (Cephes' expf: about 1 ulp)."""
    z = min(max(-x, F32(-87.0)), F32(87.0))
    n = np.floor(z * F32(1.44269504) + F32(0.5))
    r = z - n * F32(0.693359375) + n * F32(2.12194440e-4)
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    p = p * r * r + r + F32(1.0)
    exp = p * np.int32((np.int32(n) + 127) << 23).view(np.float32)
    return x / (F32(1.0) + exp)


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _activated(source, y, x, wrap_x, scale, shift, activate, row):
    """row[:] = silu(source[y, x] * scale + shift), or a plain copy, or zeros outside the picture."""
    height, width, channels = source.shape
    if wrap_x:
        x = x % width
    if y < 0 or y >= height or x < 0 or x >= width:
        for c in range(channels):
            row[c] = F32(0.0)
    elif activate:
        for c in range(channels):
            row[c] = _silu(source[y, x, c] * scale[c] + shift[c])
    else:
        for c in range(channels):
            row[c] = source[y, x, c]


# F(4, 3) at the points 0, +-2/3, +-3/2 and infinity. Of all pairs tried they round best: a fifth of the largest error
# of the usual 1 and 2 (`benchmarks/winograd_points.py`). Their squares multiply to one.
_A, _B = F32(2 / 3), F32(3 / 2)
_A2, _B2 = F32(4 / 9), F32(9 / 4)
_SUM = F32(4 / 9 + 9 / 4)
_A3, _B3 = F32(8 / 27), F32(27 / 8)


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _six_points(x0, x1, x2, x3, x4, x5):
    """B^T x (Lavin & Gray, 2016, for points a, -a, b, -b)."""
    p = x4 - _B2 * x2
    q = _A * (x3 - _B2 * x1)
    r = x4 - _A2 * x2
    s = _B * (x3 - _A2 * x1)
    return x0 - _SUM * x2 + x4, p + q, p - q, r + s, r - s, x1 - _SUM * x3 + x5


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _four_outputs(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    p = m1 + m2
    q = m1 - m2
    u = m3 + m4
    v = m3 - m4
    return m0 + p + u, _A * q + _B * v, _A2 * p + _B2 * u, _A3 * q + _B3 * v + m5


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def tiles_in(source, y0, x0, wrap_x, scale, shift, activate, column, rows, out):
    """Transform the inputs of a row of tiles of 4x4 outputs whose first input is source[y0, x0].

    column [6, C] and rows [6, >= 4 * tiles + 2, C] are scratch; out [6, tiles, 6, >= C].
    """
    tiles, channels = out.shape[1], source.shape[2]
    for j in range(4 * tiles + 2):
        for i in range(6):
            _activated(source, y0 + i, x0 + j, wrap_x, scale, shift, activate, column[i])
        for c in range(channels):
            v = _six_points(column[0, c], column[1, c], column[2, c], column[3, c], column[4, c], column[5, c])
            rows[0, j, c] = v[0]
            rows[1, j, c] = v[1]
            rows[2, j, c] = v[2]
            rows[3, j, c] = v[3]
            rows[4, j, c] = v[4]
            rows[5, j, c] = v[5]
    for t in range(tiles):
        j = 4 * t
        for i in range(6):
            for c in range(channels):
                v = _six_points(
                    rows[i, j, c],
                    rows[i, j + 1, c],
                    rows[i, j + 2, c],
                    rows[i, j + 3, c],
                    rows[i, j + 4, c],
                    rows[i, j + 5, c],
                )
                out[i, t, 0, c] = v[0]
                out[i, t, 1, c] = v[1]
                out[i, t, 2, c] = v[2]
                out[i, t, 3, c] = v[3]
                out[i, t, 4, c] = v[4]
                out[i, t, 5, c] = v[5]


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _store(values, bias, residual, mode, target, total, squares):
    """target = values + bias (+ residual, or + what is there), and its sums in double precision."""
    channels = target.shape[0]
    if mode == 1:
        for c in range(channels):
            values[c] += residual[c]
    elif mode == 2:
        for c in range(channels):
            values[c] += target[c]
    for c in range(channels):
        v = values[c] + bias[c]
        target[c] = v
        d = np.float64(v)
        total[c] += d
        squares[c] += d * d


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def tiles_out(products, first, bias, residual, mode, scratch, values, target, total, squares):
    """Transform six products [tiles, 6, K] to the pixels of target [rows <= 4, columns <= 4 * tiles, K].

    first: the first tile's place in the products.
    mode: 0 to write, 1 to add residual (of target's shape), 2 to add to what target holds.
    scratch [6, 4, K], values [4, K]. total and squares [K] of float64 gather the sums of what is written.
    """
    height, width, channels = target.shape
    for t in range((width + 3) // 4):
        for i in range(6):
            m = products[i][first + t]
            for c in range(channels):
                v = _four_outputs(m[0, c], m[1, c], m[2, c], m[3, c], m[4, c], m[5, c])
                scratch[i, 0, c] = v[0]
                scratch[i, 1, c] = v[1]
                scratch[i, 2, c] = v[2]
                scratch[i, 3, c] = v[3]
        for b in range(min(4, width - 4 * t)):
            for c in range(channels):
                v = _four_outputs(
                    scratch[0, b, c], scratch[1, b, c], scratch[2, b, c],
                    scratch[3, b, c], scratch[4, b, c], scratch[5, b, c],
                )  # fmt: skip
                values[0, c] = v[0]
                values[1, c] = v[1]
                values[2, c] = v[2]
                values[3, c] = v[3]
            x = 4 * t + b
            for a in range(height):
                _store(values[a], bias, residual[a, x], mode, target[a, x], total, squares)


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def upsample_in(source, y0, x0, wrap_x, column, out):
    """The nine combinations of a position and its neighbours that an upsampling needs; see `convolution.py`.

    out [3, positions, 3, >= C] for the positions source[y0, x0 : x0 + positions]; column [3, 3, C] is scratch.
    """
    positions, channels = out.shape[1], source.shape[2]
    no_coefficients = column[0, 0]
    for j in range(-1, positions + 1):
        slot = (j + 3) % 3
        for i in range(3):
            _activated(
                source, y0 - 1 + i, x0 + j, wrap_x, no_coefficients, no_coefficients, False, column[slot, i]
            )
        for c in range(channels):
            centre = column[slot, 1, c]
            column[slot, 0, c] -= centre
            column[slot, 2, c] -= centre
        if j < 1:
            continue
        before, here, after = (j + 1) % 3, (j + 2) % 3, slot
        for i in range(3):
            row = (1, 0, 2)[i]  # the combinations in the order: centre, above, below
            for c in range(channels):
                centre = column[here, i, c]
                out[row, j - 1, 0, c] = centre
                out[row, j - 1, 1, c] = column[before, i, c] - centre
                out[row, j - 1, 2, c] = column[after, i, c] - centre


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def upsample_out(products, first, bias, target, total, squares):
    """Three products [positions, 3, K], from place `first` on, to target [2, 2 * positions, K]; see `tiles_out`."""
    _, width, channels = target.shape
    for t in range(width // 2):
        centre = products[0][first + t]
        for a in range(2):
            beside = products[1 + a][first + t]
            for b in range(2):
                for c in range(channels):
                    v = centre[0, c] + centre[1 + b, c] + beside[0, c] + beside[1 + b, c] + bias[c]
                    target[a, 2 * t + b, c] = v
                    d = np.float64(v)
                    total[c] += d
                    squares[c] += d * d
