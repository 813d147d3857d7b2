"""The transforms around the matrix products of a fast convolution, compiled by numba (an optional extra).

Every function works on one row of tiles of channels-last maps and releases the interpreter lock. The innermost loop
runs over channels, so that it becomes vector instructions. `source` holds the rows that the tiles read; a row that
is not in it lies outside the picture and counts as zero. `winograd.py` loads this file under a name of its own.
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
    height, width = source.shape[:2]
    channels = row.shape[0]  # the source may have more
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


# F(4, 3) at the points 0, +-2/3, +-3/2 and infinity. Of all pairs tried they round best: less than half the error
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
def tiles_in(source, y0, x0, wrap_x, scale, shift, activate, column, ring, out):
    """Transform the inputs of a row of tiles of 4x4 outputs whose first input is source[y0, x0].

    column [6, C] and ring [6, 6, C] are scratch; out is [1, tiles, 36, >= C], or [6, tiles, 6, >= C].
    """
    tiles, channels = out.shape[1], column.shape[1]
    for j in range(4 * tiles + 2):
        slot = j % 6  # the last six transformed columns are kept
        for i in range(6):
            _activated(source, y0 + i, x0 + j, wrap_x, scale, shift, activate, column[i])
        for c in range(channels):
            v = _six_points(column[0, c], column[1, c], column[2, c], column[3, c], column[4, c], column[5, c])
            ring[0, slot, c] = v[0]
            ring[1, slot, c] = v[1]
            ring[2, slot, c] = v[2]
            ring[3, slot, c] = v[3]
            ring[4, slot, c] = v[4]
            ring[5, slot, c] = v[5]
        if j < 5 or (j - 5) % 4:
            continue
        t = (j - 5) // 4
        s0, s1, s2, s3, s4, s5 = (j + 1) % 6, (j + 2) % 6, (j + 3) % 6, (j + 4) % 6, (j + 5) % 6, slot
        for i in range(6):
            place = out[i, t] if len(out) == 6 else out[0, t, 6 * i : 6 * i + 6]
            row = ring[i]
            for c in range(channels):
                v = _six_points(row[s0, c], row[s1, c], row[s2, c], row[s3, c], row[s4, c], row[s5, c])
                place[0, c] = v[0]
                place[1, c] = v[1]
                place[2, c] = v[2]
                place[3, c] = v[3]
                place[4, c] = v[4]
                place[5, c] = v[5]


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _add(values, rows, residual, mode, target, y, x, left):
    """values [rows, K] += the pixels of residual, or of target, in one column; by mode."""
    channels = values.shape[1]
    if mode == 1:
        for a in range(rows):
            for c in range(channels):
                values[a, c] += residual[y + a, x - left, c]
    elif mode == 2:
        for a in range(rows):
            for c in range(channels):
                values[a, c] += target[y + a, x, c]


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _sum(values, rows, total, squares):
    """Add up values [rows, K]: four at a time in single precision, the rest in double."""
    channels = values.shape[1]
    if rows == 4:
        for c in range(channels):
            v0, v1, v2, v3 = values[0, c], values[1, c], values[2, c], values[3, c]
            total[c] += np.float64(v0 + v1 + v2 + v3)
            squares[c] += np.float64(v0 * v0 + v1 * v1 + v2 * v2 + v3 * v3)
    else:
        for a in range(rows):
            for c in range(channels):
                total[c] += np.float64(values[a, c])
                squares[c] += np.float64(values[a, c] * values[a, c])


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _store(row, pixel):
    for c in range(row.shape[0]):
        pixel[c] = row[c]


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def tiles_out(products, first, bias, residual, mode, scratch, values, target, y, rows, left, right, total, squares):
    """Transform one product [tiles, 36, K], or six [tiles, 6, K], to pixels of target [rows, W, >= K].

    first: the first tile's place in the products.
    mode: 0 to write, 1 to add residual [rows, right - left, K], 2 to add to what target holds.
    scratch [6, 4, K], values [4, K].
    y, rows, left, right: the pixels, target[y : y + rows, left : right], of at most four rows.
    total, squares: [K] of float64, gather the sums of what is written.
    """
    channels = values.shape[1]
    for t in range((right - left + 3) // 4):
        for i in range(6):
            m = products[i][first + t] if len(products) == 6 else products[0][first + t, 6 * i : 6 * i + 6]
            for c in range(channels):
                v = _four_outputs(m[0, c], m[1, c], m[2, c], m[3, c], m[4, c], m[5, c])
                scratch[i, 0, c] = v[0]
                scratch[i, 1, c] = v[1]
                scratch[i, 2, c] = v[2]
                scratch[i, 3, c] = v[3]
        for x in range(left + 4 * t, min(left + 4 * t + 4, right)):
            b = x - left - 4 * t
            for c in range(channels):
                v = _four_outputs(
                    scratch[0, b, c], scratch[1, b, c], scratch[2, b, c],
                    scratch[3, b, c], scratch[4, b, c], scratch[5, b, c],
                )  # fmt: skip
                values[0, c] = v[0] + bias[c]
                values[1, c] = v[1] + bias[c]
                values[2, c] = v[2] + bias[c]
                values[3, c] = v[3] + bias[c]
            _add(values, rows, residual, mode, target, y, x, left)
            _sum(values, rows, total, squares)
            for a in range(rows):
                _store(values[a], target[y + a, x])


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _five_products(x0, x1, x2, x3):
    """What is multiplied in an upsampling, of four neighbours; see `winograd.py`. The second counts twice."""
    return x1 + x2, x2 - x1, x0 - x2, x3 - x1


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _four_of_five(m0, m1, m2, m3, m4):
    """Four outputs of an upsampling, of its five products."""
    return m0 + m1 + m2, m0 + m3, m0 - m1, m0 - m3 + m4


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def upsample_in(source, y0, x0, wrap_x, column, ring, out):
    """Transform the inputs of a row of tiles of 4x4 outputs of an upsampling whose first input is source[y0, x0].

    column [4, C] and ring [4, 4, C] are scratch; out is [1, tiles, 25, >= C], or [5, tiles, 5, >= C].
    """
    tiles, channels = out.shape[1], column.shape[1]
    for j in range(2 * tiles + 2):
        slot = j % 4  # the last four transformed columns are kept
        for i in range(4):
            _activated(source, y0 + i, x0 + j, wrap_x, column[0], column[0], False, column[i])
        for c in range(channels):
            v = _five_products(column[0, c], column[1, c], column[2, c], column[3, c])
            ring[0, slot, c] = v[0]
            ring[1, slot, c] = v[1]
            ring[2, slot, c] = v[2]
            ring[3, slot, c] = v[3]
        if j < 3 or j % 2 == 0:
            continue
        t = (j - 3) // 2
        s0, s1, s2, s3 = (j + 1) % 4, (j + 2) % 4, (j + 3) % 4, slot
        for i in range(5):
            place = out[i, t] if len(out) == 5 else out[0, t, 5 * i : 5 * i + 5]
            row = ring[(0, 1, 2, 1, 3)[i]]
            for c in range(channels):
                v = _five_products(row[s0, c], row[s1, c], row[s2, c], row[s3, c])
                place[0, c] = v[0]
                place[1, c] = v[1]
                place[2, c] = v[2]
                place[3, c] = v[1]
                place[4, c] = v[3]


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def upsample_out(products, first, bias, scratch, values, target, y, rows, left, right, total, squares):
    """Transform one product [tiles, 25, K], or five [tiles, 5, K], of an upsampling to pixels of target.

    scratch [5, 4, K]; the rest is as in `tiles_out`.
    """
    channels = values.shape[1]
    for t in range((right - left + 3) // 4):
        for i in range(5):
            m = products[i][first + t] if len(products) == 5 else products[0][first + t, 5 * i : 5 * i + 5]
            for c in range(channels):
                v = _four_of_five(m[0, c], m[1, c], m[2, c], m[3, c], m[4, c])
                scratch[i, 0, c] = v[0]
                scratch[i, 1, c] = v[1]
                scratch[i, 2, c] = v[2]
                scratch[i, 3, c] = v[3]
        for x in range(left + 4 * t, min(left + 4 * t + 4, right)):
            b = x - left - 4 * t
            for c in range(channels):
                v = _four_of_five(
                    scratch[0, b, c], scratch[1, b, c], scratch[2, b, c], scratch[3, b, c], scratch[4, b, c]
                )
                values[0, c] = v[0] + bias[c]
                values[1, c] = v[1] + bias[c]
                values[2, c] = v[2] + bias[c]
                values[3, c] = v[3] + bias[c]
            _sum(values, rows, total, squares)
            for a in range(rows):
                _store(values[a], target[y + a, x])
