"""Winograd's F(4x4, 3x3), compiled; `transforms.py` has its matrices, and a test compares these numbers with them.

The ring of `transform_inputs`. Tiles overlap by two columns, so the columns of a row of tiles are transformed one after
the other, from the left, and the last six are kept: column j is in slot j % 6. For each vector of channels the ring
has 6 x 6 vectors, and the next vector of channels follows them:

                 slot 0     slot 1     slot 2     slot 3     slot 4     slot 5
               +----------+----------+----------+----------+----------+----------+
    row 0      | 16 ch.   | 16 ch.   |          |          |          |          |    row i: the i-th of the
    row 1      |          |          |          |          |          |          |    six numbers that B^T makes
     ...       |          |          |          |          |          |          |    of a column's six pixels
    row 5      |          |          |          |          |          |          |
               +----------+----------+----------+----------+----------+----------+
    after j = 5: column 0        1          2          3          4          5       tile 0: slots 0 1 2 3 4 5
    after j = 9: column 6        7          8          9          4          5       tile 1: slots 4 5 0 1 2 3

After columns 5, 9, 13, ... a tile is complete: its oldest column is in slot (j + 1) % 6. B^T along each row of the
ring gives one line of six products. At most `BLOCK` channels are worked on at a time, so that the ring, 36 * 4 * BLOCK
bytes, stays in the first cache.
"""

from __future__ import annotations

from .lanes import F32, LANES, ZERO, address, load, load_value, part, silu, step, store_value, whole
from .multiply import COLUMNS, GAP, multiply
from .pixels import OUTSIDE, copy_pixels, pixel_address, put_tiles, value

BLOCK = 128

# Those of `transforms.WINOGRAD`: the points, their powers, and the sum of both squares.
_A = F32(2 / 3)
_B = F32(3 / 2)
_A2 = F32(4 / 9)
_B2 = F32(9 / 4)
_A3 = F32(8 / 27)
_B3 = F32(27 / 8)
_SUM = F32(4 / 9 + 9 / 4)


@part
def _six_products(x0, x1, x2, x3, x4, x5):
    """B^T x: what is multiplied, of six neighbours."""
    p = x4 - _B2 * x2
    q = _A * (x3 - _B2 * x1)
    r = x4 - _A2 * x2
    s = _B * (x3 - _A2 * x1)
    return x0 - _SUM * x2 + x4, p + q, p - q, r + s, r - s, x1 - _SUM * x3 + x5


@part
def _four_outputs(m0, m1, m2, m3, m4, m5):
    """A^T m, of six products."""
    p = m1 + m2
    q = m1 - m2
    u = m3 + m4
    v = m3 - m4
    return m0 + p + u, _A * q + _B * v, _A2 * p + _B2 * u, _A3 * q + _B3 * v + m5


@part
def _store_six(kind, m, stride, v):
    store_value(kind, m, v[0])
    store_value(kind, m + stride, v[1])
    store_value(kind, m + 2 * stride, v[2])
    store_value(kind, m + 3 * stride, v[3])
    store_value(kind, m + 4 * stride, v[4])
    store_value(kind, m + 5 * stride, v[5])


@part
def _activated(kind, pixel, c, scale, shift, activate):
    """silu(value * scale + shift), or the value as it is; zeros outside the image."""
    if pixel != OUTSIDE and activate:
        return silu(load_value(kind, pixel + c) * load(scale + c) + load(shift + c))
    return value(kind, pixel, c)


@step
def transform_inputs(source, y0, x0, circular_x, scales, shifts, activate, ring_begin, out, tiles, channels):
    """Transform the inputs of tiles of 4x4 outputs, of which the first input is in row y0 and column x0.

    Args:
        source: addresses of rows of [width, depth], width, depth >= channels, and the kind; see `load_value`.
        circular_x: a column outside the image is one at its other side.
        scales, shifts: addresses of [channels], applied before SiLU, if `activate`.
        ring_begin: address of the ring, see above.
        out: address of [tiles, 36, apart] for what is multiplied, in the first `channels` of each `apart`; `apart`; and
            the kind.
        tiles: how many below and beside one another.
    """
    rows, width, depth, kind = source
    row_out, apart, out_kind = out
    down, across = tiles
    line = 6 * apart
    row_of_ring = 6 * LANES
    for y in range(y0, y0 + 4 * down, 4):
        for block in range(0, channels, BLOCK):
            stop = min(block + BLOCK, channels)
            for j in range(4 * across + 2):
                slot = j % 6
                x = (x0 + j) % width if circular_x else x0 + j
                p0 = pixel_address(rows, width, depth, y, x)
                p1 = pixel_address(rows, width, depth, y + 1, x)
                p2 = pixel_address(rows, width, depth, y + 2, x)
                p3 = pixel_address(rows, width, depth, y + 3, x)
                p4 = pixel_address(rows, width, depth, y + 4, x)
                p5 = pixel_address(rows, width, depth, y + 5, x)
                for c in range(block, stop, LANES):
                    v = _six_products(
                        _activated(kind, p0, c, scales, shifts, activate),
                        _activated(kind, p1, c, scales, shifts, activate),
                        _activated(kind, p2, c, scales, shifts, activate),
                        _activated(kind, p3, c, scales, shifts, activate),
                        _activated(kind, p4, c, scales, shifts, activate),
                        _activated(kind, p5, c, scales, shifts, activate),
                    )
                    _store_six(ZERO, ring_begin + 36 * (c - block) + slot * LANES, row_of_ring, v)
                if j < 5 or (j - 5) % 4:
                    continue
                tile = row_out + (j - 5) // 4 * 36 * apart
                s0 = (j + 1) % 6 * LANES
                s1 = (j + 2) % 6 * LANES
                s2 = (j + 3) % 6 * LANES
                s3 = (j + 4) % 6 * LANES
                s4 = (j + 5) % 6 * LANES
                s5 = slot * LANES
                for c in range(block, stop, LANES):
                    row = ring_begin + 36 * (c - block)
                    for i in range(6):
                        v = _six_products(
                            load(row + s0),
                            load(row + s1),
                            load(row + s2),
                            load(row + s3),
                            load(row + s4),
                            load(row + s5),
                        )
                        _store_six(out_kind, tile + i * line + c, apart, v)
                        row += row_of_ring
        row_out += across * 36 * apart


@part
def _outputs_of_line(m, stride):
    """A^T along a line of six products."""
    return _four_outputs(
        load(m),
        load(m + stride),
        load(m + 2 * stride),
        load(m + 3 * stride),
        load(m + 4 * stride),
        load(m + 5 * stride),
    )


@part
def _pixels_of_tile(tile, apart):
    line = 6 * apart
    s0 = _outputs_of_line(tile, apart)
    s1 = _outputs_of_line(tile + line, apart)
    s2 = _outputs_of_line(tile + 2 * line, apart)
    s3 = _outputs_of_line(tile + 3 * line, apart)
    s4 = _outputs_of_line(tile + 4 * line, apart)
    s5 = _outputs_of_line(tile + 5 * line, apart)
    return (
        _four_outputs(s0[0], s1[0], s2[0], s3[0], s4[0], s5[0]),
        _four_outputs(s0[1], s1[1], s2[1], s3[1], s4[1], s5[1]),
        _four_outputs(s0[2], s1[2], s2[2], s3[2], s4[2], s5[2]),
        _four_outputs(s0[3], s1[3], s2[3], s3[3], s4[3], s5[3]),
    )


@step
def transform_outputs(products, apart, biases, to_add, target, size, channels, sums):
    """Transform products, [tiles, 36, apart], to pixels, and write them; see `pixels.put_tiles`."""
    put_tiles(_pixels_of_tile, 36, products, apart, biases, to_add, target, size, channels, sums)


@whole
def convolve(source, circular_x, scale, shift, weights, bias, added, shortcut, target, columns, memory, total, squares):
    """conv(silu(source * scale + shift)) + bias, with a residual, for some rows of the target, a few tiles at a time.

    A map is given as (rows, width, depth, kind): addresses of rows [width, depth], 0 for one outside the image. It may
    have more channels than are worked on. Its kind is that of `load_value`.

    Args:
        source: from the row above the first one of the target to the row below the last one.
        circular_x: a column outside the image is one at its other side.
        scale, shift: [C]; without elements to take the source as it is.
        weights: [36, K / COLUMNS, C, COLUMNS], K filled up to whole blocks, as `pack` lays them out: of float32, or of
            uint16 for bfloat16, as what is multiplied in the memory.
        bias: [K].
        added: a map of the target's rows and columns that is added; without rows, nothing is.
        shortcut: [1, K / COLUMNS, channels, COLUMNS], by which each pixel of what is added is multiplied; without
            elements, none is.
        target: the rows to be written.
        columns: [start, stop) of them.
        memory: ring (see above); for what is multiplied; for the products; for what is added and was multiplied, with
            the addresses of its rows; how many tiles below and beside one another there is room for.
        total, squares: [K] of float64; the sums of what is written, and of its squares, are added to them.
    """
    added_rows, _, added_depth, added_kind = added
    target_rows, _, depth, kind = target
    ring, inputs, products, beside, beside_rows, at_once = memory
    multiplied = inputs[0]  # a number of the kind
    channels = weights.shape[2]
    out_channels = bias.size
    width = weights.shape[1] * COLUMNS
    results_apart = width + GAP
    of_shortcut = shortcut.shape[2]
    for row in range(0, target_rows.size, 4 * at_once[0]):
        rows = min(4 * at_once[0], target_rows.size - row)
        for column in range(columns[0], columns[1], 4 * at_once[1]):
            size = rows, min(4 * at_once[1], columns[1] - column)
            tiles = (rows + 3) // 4, (size[1] + 3) // 4
            if of_shortcut > 0:
                copy_pixels(
                    (added_kind, added_rows, added_depth),
                    (row, column),
                    size,
                    of_shortcut,
                    (address(inputs), of_shortcut + GAP, multiplied),
                )
                multiply(inputs, shortcut, beside, size[0] * size[1])
                for y in range(rows):
                    beside_rows[y] = address(beside) + y * size[1] * results_apart
            transform_inputs(
                source,
                row,
                column - 1,
                circular_x,
                address(scale),
                address(shift),
                scale.size > 0,
                address(ring),
                (address(inputs), channels + GAP, multiplied),
                tiles,
                channels,
            )
            multiply(inputs, weights, products, tiles[0] * tiles[1])
            place = target_rows, (row, column), depth, kind
            sums = address(total), address(squares)
            if of_shortcut > 0:
                to_add = True, beside_rows, (0, 0), results_apart, ZERO
                transform_outputs(
                    address(products), results_apart, address(bias), to_add, place, size, out_channels, sums
                )
            else:
                from_map = added_rows.size > 0, added_rows, (row, column), added_depth, added_kind
                transform_outputs(
                    address(products), results_apart, address(bias), from_map, place, size, out_channels, sums
                )
