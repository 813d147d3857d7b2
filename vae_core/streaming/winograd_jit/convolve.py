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

from .lanes import F32, LANES, address, load, load_and_clear, part, silu, store, whole
from .pixels import OUTSIDE, pixel_address, put_tile, value

BLOCK = 128

# Those of `transforms.WINOGRAD`: the points, their powers, and the sum of both squares.
_A, _B = F32(2 / 3), F32(3 / 2)
_A2, _B2 = F32(4 / 9), F32(9 / 4)
_A3, _B3 = F32(8 / 27), F32(27 / 8)
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
def _store_six(m, step, v):
    store(m, v[0])
    store(m + step, v[1])
    store(m + 2 * step, v[2])
    store(m + 3 * step, v[3])
    store(m + 4 * step, v[4])
    store(m + 5 * step, v[5])


@part
def _activated(pixel, c, scale, shift, activate):
    """silu(value * scale + shift), or the value as it is; zeros outside the image."""
    if pixel != OUTSIDE and activate:
        return silu(load(pixel + c) * load(scale + c) + load(shift + c))
    return value(pixel, c)


@whole
def transform_inputs(source, y0, x0, circular_x, scale, shift, ring, out, down, across, channels):
    """Transform the inputs of `down` rows of `across` tiles of 4x4 outputs, the first input being source[y0, x0].

    Args:
        source: [rows, W, channels or more].
        circular_x: a column outside the image is one at its other side.
        scale, shift: [channels], applied before SiLU; without elements to take the source as it is.
        ring: scratch, see above: [vectors, 6, 6, LANES] for the vectors of `channels`, at most those of `BLOCK`.
        out: [1, tiles or more, 36, C], or [6, tiles or more, 6, C]: what is multiplied; C >= channels.
    """
    height, width, depth = source.shape
    groups, padded = out.shape[2], out.shape[3]
    line = (out.shape[1] if groups == 6 else 1) * 6 * padded  # from one line of a tile to the next
    begin, ring_begin, row_out = address(source), address(ring), address(out)
    scales, shifts, activate = address(scale), address(shift), scale.size > 0
    row_of_ring = 6 * LANES
    for y in range(y0, y0 + 4 * down, 4):
        for block in range(0, channels, BLOCK):
            stop = min(block + BLOCK, channels)
            for j in range(4 * across + 2):
                slot = j % 6
                x = (x0 + j) % width if circular_x else x0 + j
                p0 = pixel_address(begin, height, width, depth, y, x)
                p1 = pixel_address(begin, height, width, depth, y + 1, x)
                p2 = pixel_address(begin, height, width, depth, y + 2, x)
                p3 = pixel_address(begin, height, width, depth, y + 3, x)
                p4 = pixel_address(begin, height, width, depth, y + 4, x)
                p5 = pixel_address(begin, height, width, depth, y + 5, x)
                for c in range(block, stop, LANES):
                    v = _six_products(
                        _activated(p0, c, scales, shifts, activate),
                        _activated(p1, c, scales, shifts, activate),
                        _activated(p2, c, scales, shifts, activate),
                        _activated(p3, c, scales, shifts, activate),
                        _activated(p4, c, scales, shifts, activate),
                        _activated(p5, c, scales, shifts, activate),
                    )
                    _store_six(ring_begin + 36 * (c - block) + slot * LANES, row_of_ring, v)
                if j < 5 or (j - 5) % 4:
                    continue
                tile = row_out + (j - 5) // 4 * groups * padded
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
                        _store_six(tile + i * line + c, padded, v)
                        row += row_of_ring
        row_out += across * groups * padded


@part
def _outputs_of_line(m, step):
    """A^T along a line of six products, which are zero afterwards."""
    return _four_outputs(
        load_and_clear(m),
        load_and_clear(m + step),
        load_and_clear(m + 2 * step),
        load_and_clear(m + 3 * step),
        load_and_clear(m + 4 * step),
        load_and_clear(m + 5 * step),
    )


@whole
def transform_outputs(products, bias, added, added_left, target, left, right, total, squares):
    """Transform products to pixels, and write them to target[:, left:right]. The products are zero afterwards.

    Args:
        products: [1, tiles or more, 36, K], or [6, tiles or more, 6, K].
        bias: [K].
        added: [rows, columns, K or more], added to the pixels from its column `added_left` on; it may be the target.
            Without elements, nothing is added.
        target: [rows, W, K or more].
        total, squares: [K] of float64; the sums of what is written, and of its squares, are added to them.
    """
    groups, channels, span = products.shape[2], products.shape[3], right - left
    line = (products.shape[1] if groups == 6 else 1) * 6 * channels
    tile, biases, adds = address(products), address(bias), added.size > 0
    totals, totals_of_squares = address(total), address(squares)
    steps = target.shape[1] * target.shape[2], target.shape[2]
    added_steps = added.shape[1] * added.shape[2], added.shape[2]
    for y in range(0, target.shape[0], 4):
        pixel = address(target) + y * steps[0] + left * steps[1]
        more = address(added) + y * added_steps[0] + added_left * added_steps[1]
        for x in range(0, span, 4):
            for c in range(0, channels, LANES):
                s0 = _outputs_of_line(tile + c, channels)
                s1 = _outputs_of_line(tile + line + c, channels)
                s2 = _outputs_of_line(tile + 2 * line + c, channels)
                s3 = _outputs_of_line(tile + 3 * line + c, channels)
                s4 = _outputs_of_line(tile + 4 * line + c, channels)
                s5 = _outputs_of_line(tile + 5 * line + c, channels)
                columns = (
                    _four_outputs(s0[0], s1[0], s2[0], s3[0], s4[0], s5[0]),
                    _four_outputs(s0[1], s1[1], s2[1], s3[1], s4[1], s5[1]),
                    _four_outputs(s0[2], s1[2], s2[2], s3[2], s4[2], s5[2]),
                    _four_outputs(s0[3], s1[3], s2[3], s3[3], s4[3], s5[3]),
                )
                put_tile(
                    columns,
                    (target.shape[0] - y, span - x),
                    load(biases + c),
                    (adds, more + c, added_steps),
                    pixel + c,
                    steps,
                    totals + c,
                    totals_of_squares + c,
                )
            tile += groups * channels
            pixel += 4 * steps[1]
            more += 4 * added_steps[1]
