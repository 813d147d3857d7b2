"""A 3x3 convolution with stride 2, compiled; `transforms.py` has its matrices and where they come from.

A tile of 4x4 outputs reads 9x9 pixels, of which the last row and column are the first ones of its neighbours. Columns
are transformed one after the other. For each vector of channels the patch has 9 x 9 vectors, and the next vector of
channels follows them:

               column 0   column 1     ...      column 8
             +----------+----------+----------+----------+
    row 0    | 16 ch.   | 16 ch.   |          |          |    rows 0 to 4: what is made of a column's pixels
     ...     |          |          |          |          |    0, 2, 4, 6, 8; rows 5 to 8: its pixels 1, 3, 5, 7
    row 8    |          |          |          |          |
             +----------+----------+----------+----------+

The same along each row of the patch gives one line of nine products. At most `PATCH_CHANNELS` channels are worked on at
a time, so that the patch, 81 * 4 * PATCH_CHANNELS bytes, stays in the first cache.
"""

from __future__ import annotations

from .lanes import F32, LANES, ZERO, load, part, step, store_value, whole
from .pixels import nothing_to_add, pixel_address, put_tiles, value
from .resample import each_block

PATCH = 81
PATCH_CHANNELS = 64

# Those of `transforms.DOWNSAMPLE`: the points, their powers, and the sum and the product of both squares.
_A = F32(1 / 2)
_B = F32(4 / 3)
_A2 = F32(1 / 4)
_B2 = F32(16 / 9)
_A3 = F32(1 / 8)
_B3 = F32(64 / 27)
_SUM = F32(1 / 4 + 16 / 9)
_PRODUCT = F32(4 / 9)


@part
def _nine_products(x0, x1, x2, x3, x4, x5, x6, x7, x8):
    """B^T x: what is multiplied, of nine neighbours."""
    p = x6 - _B2 * x2
    q = _A * (x4 - _B2 * x0)
    r = x6 - _A2 * x2
    s = _B * (x4 - _A2 * x0)
    return p + q, p - q, r + s, r - s, x8 - _SUM * x4 + _PRODUCT * x0, x1, x3, x5, x7


@part
def _four_outputs(m0, m1, m2, m3, m4, m5, m6, m7, m8):
    """A^T m, of nine products."""
    p = m0 + m1
    q = m0 - m1
    u = m2 + m3
    v = m2 - m3
    return p + u + m5, _A * q + _B * v + m6, _A2 * p + _B2 * u + m7, _A3 * q + _B3 * v + m4 + m8


@part
def _nine(first, apart):
    """Nine vectors that are so far apart."""
    return (
        load(first),
        load(first + apart),
        load(first + 2 * apart),
        load(first + 3 * apart),
        load(first + 4 * apart),
        load(first + 5 * apart),
        load(first + 6 * apart),
        load(first + 7 * apart),
        load(first + 8 * apart),
    )


@part
def _store_nine(kind, m, apart, v):
    store_value(kind, m, v[0])
    store_value(kind, m + apart, v[1])
    store_value(kind, m + 2 * apart, v[2])
    store_value(kind, m + 3 * apart, v[3])
    store_value(kind, m + 4 * apart, v[4])
    store_value(kind, m + 5 * apart, v[5])
    store_value(kind, m + 6 * apart, v[6])
    store_value(kind, m + 7 * apart, v[7])
    store_value(kind, m + 8 * apart, v[8])


@step
def _column(pixels, kind, patch, block, stop):
    """Transform a column of pixels, by their addresses, for channels from `block` on."""
    p0, p1, p2, p3, p4, p5, p6, p7, p8 = pixels
    for c in range(block, stop, LANES):
        v = _nine_products(
            value(kind, p0, c),
            value(kind, p1, c),
            value(kind, p2, c),
            value(kind, p3, c),
            value(kind, p4, c),
            value(kind, p5, c),
            value(kind, p6, c),
            value(kind, p7, c),
            value(kind, p8, c),
        )
        _store_nine(ZERO, patch + PATCH * (c - block), 9 * LANES, v)


@step
def downsample_inputs(source, y0, x0, circular_x, patch, out, tiles, channels):
    """Transform the inputs of tiles of 4x4 outputs, of which the first input is in row y0 and column x0.

    Arguments are those of `convolve.transform_inputs`, but the map has twice the target's size, out is of
    [tiles, 81, apart], and `patch` is the address of one, see above.
    """
    rows, width, depth, kind = source
    down, across = tiles
    tile, apart, out_kind = out
    for y in range(y0, y0 + 8 * down, 8):
        for left in range(x0, x0 + 8 * across, 8):
            for block in range(0, channels, PATCH_CHANNELS):
                stop = min(block + PATCH_CHANNELS, channels)
                for j in range(9):
                    x = (left + j) % width if circular_x else left + j
                    pixels = (
                        pixel_address(rows, width, depth, y, x),
                        pixel_address(rows, width, depth, y + 1, x),
                        pixel_address(rows, width, depth, y + 2, x),
                        pixel_address(rows, width, depth, y + 3, x),
                        pixel_address(rows, width, depth, y + 4, x),
                        pixel_address(rows, width, depth, y + 5, x),
                        pixel_address(rows, width, depth, y + 6, x),
                        pixel_address(rows, width, depth, y + 7, x),
                        pixel_address(rows, width, depth, y + 8, x),
                    )
                    _column(pixels, kind, patch + j * LANES, block, stop)
                for c in range(block, stop, LANES):
                    row = patch + PATCH * (c - block)
                    for i in range(9):
                        x0_8 = _nine(row + 9 * i * LANES, LANES)
                        _store_nine(out_kind, tile + 9 * i * apart + c, apart, _nine_products(*x0_8))
            tile += 81 * apart


@part
def _pixels_of_tile(tile, apart):
    line = 9 * apart
    s0 = _four_outputs(*_nine(tile, apart))
    s1 = _four_outputs(*_nine(tile + line, apart))
    s2 = _four_outputs(*_nine(tile + 2 * line, apart))
    s3 = _four_outputs(*_nine(tile + 3 * line, apart))
    s4 = _four_outputs(*_nine(tile + 4 * line, apart))
    s5 = _four_outputs(*_nine(tile + 5 * line, apart))
    s6 = _four_outputs(*_nine(tile + 6 * line, apart))
    s7 = _four_outputs(*_nine(tile + 7 * line, apart))
    s8 = _four_outputs(*_nine(tile + 8 * line, apart))
    return (
        _four_outputs(s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0], s8[0]),
        _four_outputs(s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1], s8[1]),
        _four_outputs(s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2], s8[2]),
        _four_outputs(s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3], s8[3]),
    )


@step
def downsample_outputs(products, apart, biases, target, size, channels, sums):
    """Transform products, [tiles, 81, apart], to pixels, and write them; see `pixels.put_tiles`."""
    put_tiles(_pixels_of_tile, PATCH, products, apart, biases, nothing_to_add(target), target, size, channels, sums)


@part
def _first_input(row, column):
    return 2 * row, 2 * column


@whole
def downsample(source, circular_x, weights, bias, target, columns, memory, total, squares):
    """conv(source) + bias with stride 2 for some rows of the target, a few tiles at a time.

    Arguments are those of `convolve`: the source from the first row on that the target's first one reads, and weights
    [81, K / COLUMNS, C, COLUMNS].
    """
    each_block(
        downsample_inputs,
        downsample_outputs,
        _first_input,
        source,
        circular_x,
        weights,
        bias,
        target,
        columns,
        memory,
        total,
        squares,
    )
