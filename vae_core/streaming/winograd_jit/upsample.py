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

from .lanes import LANES, address, load, load_and_clear, part, store, whole
from .pixels import NOTHING_ADDED, pixel_address, put_tile, value


@part
def _four_differences(x0, x1, x2, x3):
    """B^T x without its fourth number, which is the second: what is multiplied, of four neighbours."""
    return x1 + x2, x2 - x1, x0 - x2, x3 - x1


@part
def _four_outputs(m0, m1, m2, m3, m4):
    """A^T m, of five products."""
    return m0 + m1 + m2, m0 + m3, m0 - m1, m0 - m3 + m4


@part
def _store_five(row, s0, s1, s2, s3, m, step):
    """Write a line of what is multiplied, of a row of the ring whose slots, the oldest first, are s0 ... s3."""
    v = _four_differences(load(row + s0), load(row + s1), load(row + s2), load(row + s3))
    store(m, v[0])
    store(m + step, v[1])
    store(m + 2 * step, v[2])
    store(m + 3 * step, v[1])
    store(m + 4 * step, v[3])


@whole
def upsample_inputs(source, y0, x0, circular_x, ring, out, down, across, channels):
    """Transform the inputs of `down` rows of `across` tiles of 4x4 outputs, the first input being source[y0, x0].

    Args:
        source: [rows, W, channels or more], before the doubling.
        circular_x: a column outside the image is one at its other side.
        ring: scratch, see above: [vectors, 4, 4, LANES] for the vectors of `channels`.
        out: [1, tiles or more, 25, C], or [5, tiles or more, 5, C]: what is multiplied; C >= channels.
    """
    height, width, depth = source.shape
    groups, padded = out.shape[2], out.shape[3]
    line = (out.shape[1] if groups == 5 else 1) * 5 * padded
    begin, ring_begin, tile = address(source), address(ring), address(out)
    row_of_ring = 4 * LANES
    for y in range(y0, y0 + 2 * down, 2):
        for j in range(2 * across + 2):
            slot = j % 4
            x = (x0 + j) % width if circular_x else x0 + j
            p0 = pixel_address(begin, height, width, depth, y, x)
            p1 = pixel_address(begin, height, width, depth, y + 1, x)
            p2 = pixel_address(begin, height, width, depth, y + 2, x)
            p3 = pixel_address(begin, height, width, depth, y + 3, x)
            for c in range(0, channels, LANES):
                v = _four_differences(value(p0, c), value(p1, c), value(p2, c), value(p3, c))
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
                _store_five(row, s0, s1, s2, s3, tile + c, padded)
                _store_five(row + row_of_ring, s0, s1, s2, s3, tile + line + c, padded)
                _store_five(row + 2 * row_of_ring, s0, s1, s2, s3, tile + 2 * line + c, padded)
                _store_five(row + row_of_ring, s0, s1, s2, s3, tile + 3 * line + c, padded)
                _store_five(row + 3 * row_of_ring, s0, s1, s2, s3, tile + 4 * line + c, padded)
            tile += groups * padded


@part
def _outputs_of_line(m, step):
    """A^T along a line of five products, which are zero afterwards."""
    return _four_outputs(
        load_and_clear(m),
        load_and_clear(m + step),
        load_and_clear(m + 2 * step),
        load_and_clear(m + 3 * step),
        load_and_clear(m + 4 * step),
    )


@whole
def upsample_outputs(products, bias, target, left, right, total, squares):
    """Transform products to pixels, and write them to target[:, left:right]. The products are zero afterwards.

    Args:
        products: [1, tiles or more, 25, K], or [5, tiles or more, 5, K].
        bias, target, total, squares: as for `transform_outputs`.
    """
    groups, channels, span = products.shape[2], products.shape[3], right - left
    line = (products.shape[1] if groups == 5 else 1) * 5 * channels
    tile, biases = address(products), address(bias)
    totals, totals_of_squares = address(total), address(squares)
    steps = target.shape[1] * target.shape[2], target.shape[2]
    for y in range(0, target.shape[0], 4):
        pixel = address(target) + y * steps[0] + left * steps[1]
        for x in range(0, span, 4):
            for c in range(0, channels, LANES):
                s0 = _outputs_of_line(tile + c, channels)
                s1 = _outputs_of_line(tile + line + c, channels)
                s2 = _outputs_of_line(tile + 2 * line + c, channels)
                s3 = _outputs_of_line(tile + 3 * line + c, channels)
                s4 = _outputs_of_line(tile + 4 * line + c, channels)
                columns = (
                    _four_outputs(s0[0], s1[0], s2[0], s3[0], s4[0]),
                    _four_outputs(s0[1], s1[1], s2[1], s3[1], s4[1]),
                    _four_outputs(s0[2], s1[2], s2[2], s3[2], s4[2]),
                    _four_outputs(s0[3], s1[3], s2[3], s3[3], s4[3]),
                )
                put_tile(
                    columns,
                    (target.shape[0] - y, span - x),
                    load(biases + c),
                    NOTHING_ADDED,
                    pixel + c,
                    steps,
                    totals + c,
                    totals_of_squares + c,
                )
            tile += groups * channels
            pixel += 4 * steps[1]
