"""A 3x3 convolution of a doubled map, compiled; `transforms.py` has its matrices and where they come from.

The ring of `upsample_inputs` is that of `convolve.py` with four rows and four slots: a tile of 4x4 outputs reads 4x4
pixels, two columns further than the one before it, and column j is in slot j % 4. After columns 3, 5, 7, ... a tile is
complete.

                 slot 0     slot 1     slot 2     slot 3
               +----------+----------+----------+----------+
    row 0      | 16 ch.   | 16 ch.   |          |          |     x1 + x2 of a column's four pixels
    row 1      |          |          |          |          |     x2 - x1, which two of the five products take
    row 2      |          |          |          |          |     x0 - x2
    row 3      |          |          |          |          |     x3 - x1
               +----------+----------+----------+----------+
    after j = 3: column 0        1          2          3         tile 0: slots 0 1 2 3
    after j = 5: column 4        5          2          3         tile 1: slots 2 3 0 1
"""

from __future__ import annotations

from .lanes import LANES, load, part, step, store, store_value, whole
from .pixels import nothing_to_add, pixel_address, put_tiles, value
from .resample import each_block


@part
def _four_differences(x0, x1, x2, x3):
    """B^T x without its fourth number, which is the second: what is multiplied, of four neighbours."""
    return x1 + x2, x2 - x1, x0 - x2, x3 - x1


@part
def _four_outputs(m0, m1, m2, m3, m4):
    """A^T m, of five products."""
    return m0 + m1 + m2, m0 + m3, m0 - m1, m0 - m3 + m4


@part
def _store_five(kind, row, s0, s1, s2, s3, m, stride):
    """Write a line of what is multiplied, of a row of the ring whose slots, the oldest first, are s0 ... s3."""
    v = _four_differences(load(row + s0), load(row + s1), load(row + s2), load(row + s3))
    store_value(kind, m, v[0])
    store_value(kind, m + stride, v[1])
    store_value(kind, m + 2 * stride, v[2])
    store_value(kind, m + 3 * stride, v[1])
    store_value(kind, m + 4 * stride, v[3])


@step
def upsample_inputs(source, y0, x0, circular_x, ring_begin, out, tiles, channels):
    """Transform the inputs of tiles of 4x4 outputs, of which the first input is in row y0 and column x0.

    Arguments are those of `convolve.transform_inputs`, but the source is the map before the doubling,
    and out is of [tiles, 25, apart].
    """
    rows, width, depth, kind = source
    down, across = tiles
    tile, apart, out_kind = out
    line = 5 * apart
    row_of_ring = 4 * LANES
    for y in range(y0, y0 + 2 * down, 2):
        for j in range(2 * across + 2):
            slot = j % 4
            x = (x0 + j) % width if circular_x else x0 + j
            p0 = pixel_address(rows, width, depth, y, x)
            p1 = pixel_address(rows, width, depth, y + 1, x)
            p2 = pixel_address(rows, width, depth, y + 2, x)
            p3 = pixel_address(rows, width, depth, y + 3, x)
            for c in range(0, channels, LANES):
                v = _four_differences(value(kind, p0, c), value(kind, p1, c), value(kind, p2, c), value(kind, p3, c))
                m = ring_begin + 16 * c + slot * LANES
                store(m, v[0])
                store(m + row_of_ring, v[1])
                store(m + 2 * row_of_ring, v[2])
                store(m + 3 * row_of_ring, v[3])
            if j < 3 or j % 2 == 0:
                continue
            s0 = (j + 1) % 4 * LANES
            s1 = (j + 2) % 4 * LANES
            s2 = (j + 3) % 4 * LANES
            s3 = slot * LANES
            for c in range(0, channels, LANES):
                row = ring_begin + 16 * c
                _store_five(out_kind, row, s0, s1, s2, s3, tile + c, apart)
                _store_five(out_kind, row + row_of_ring, s0, s1, s2, s3, tile + line + c, apart)
                _store_five(out_kind, row + 2 * row_of_ring, s0, s1, s2, s3, tile + 2 * line + c, apart)
                _store_five(out_kind, row + row_of_ring, s0, s1, s2, s3, tile + 3 * line + c, apart)
                _store_five(out_kind, row + 3 * row_of_ring, s0, s1, s2, s3, tile + 4 * line + c, apart)
            tile += 25 * apart


@part
def _outputs_of_line(m, stride):
    """A^T along a line of five products."""
    return _four_outputs(load(m), load(m + stride), load(m + 2 * stride), load(m + 3 * stride), load(m + 4 * stride))


@part
def _pixels_of_tile(tile, apart):
    line = 5 * apart
    s0 = _outputs_of_line(tile, apart)
    s1 = _outputs_of_line(tile + line, apart)
    s2 = _outputs_of_line(tile + 2 * line, apart)
    s3 = _outputs_of_line(tile + 3 * line, apart)
    s4 = _outputs_of_line(tile + 4 * line, apart)
    return (
        _four_outputs(s0[0], s1[0], s2[0], s3[0], s4[0]),
        _four_outputs(s0[1], s1[1], s2[1], s3[1], s4[1]),
        _four_outputs(s0[2], s1[2], s2[2], s3[2], s4[2]),
        _four_outputs(s0[3], s1[3], s2[3], s3[3], s4[3]),
    )


@step
def upsample_outputs(products, apart, biases, target, size, channels, sums):
    """Transform products, [tiles, 25, apart], to pixels, and write them; see `pixels.put_tiles`."""
    put_tiles(_pixels_of_tile, 25, products, apart, biases, nothing_to_add(target), target, size, channels, sums)


@part
def _first_input(row, column):
    return row // 2, column // 2 - 1


@whole
def upsample(source, circular_x, weights, bias, target, columns, memory, total, squares):
    """conv(double(source)) + bias for some rows of the target, the first of them even, a few tiles at a time.

    Arguments are those of `convolve`, with the source before the doubling, and weights [25, K / COLUMNS, C, COLUMNS].
    """
    each_block(
        upsample_inputs,
        upsample_outputs,
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
