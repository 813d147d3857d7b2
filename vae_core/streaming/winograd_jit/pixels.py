"""Parts of the compiled functions: reading pixels, and writing tiles of them."""

from __future__ import annotations

from .lanes import ZERO, accumulate, load, part, splat, store

OUTSIDE = 0  # the address of a pixel outside the image
NOTHING_ADDED = (False, 0, (0, 0))  # see `put_tile`


@part
def pixel_address(begin, height, width, depth, y, x):
    """Address of the first channel of a pixel of a map [height, width, depth] that begins at an address."""
    if y < 0 or y >= height or x < 0 or x >= width:
        return OUTSIDE
    return begin + (y * width + x) * depth


@part
def value(pixel, c):
    """Channels of a pixel from c on; zeros outside the image."""
    return load(pixel + c) if pixel != OUTSIDE else splat(ZERO)


@part
def _put(v, bias, adds, added, pixel, sums):
    """Write v + bias, and what is added, to a pixel; returns sums of the values and of their squares so far."""
    v = v + bias
    if adds:
        v = v + load(added)
    store(pixel, v)
    return sums[0] + v, sums[1] + v * v


@part
def _put_column(v, rows, bias, adds, added, added_down, pixel, down, sums):
    """`_put` for up to four pixels below one another, `down` and `added_down` apart."""
    sums = _put(v[0], bias, adds, added, pixel, sums)
    if rows > 1:
        sums = _put(v[1], bias, adds, added + added_down, pixel + down, sums)
    if rows > 2:
        sums = _put(v[2], bias, adds, added + 2 * added_down, pixel + 2 * down, sums)
    if rows > 3:
        sums = _put(v[3], bias, adds, added + 3 * added_down, pixel + 3 * down, sums)
    return sums


@part
def put_tile(columns, size, bias, to_add, pixel, steps, total, squares):
    """Write the upper left part of a tile, and add its values and their squares to running sums.

    Args:
        columns: four of four vectors.
        size: rows and columns that are written; four or more for all.
        to_add: whether anything is added, and if so, the address of its first pixel and its steps.
        pixel: address of the first pixel.
        steps: from one row of pixels and from one column to the next.
        total, squares: addresses of the sums, in double precision.
    """
    adds, added, added_steps = to_add
    rows, down, added_down = size[0], steps[0], added_steps[0]
    sums = splat(ZERO), splat(ZERO)
    sums = _put_column(columns[0], rows, bias, adds, added, added_down, pixel, down, sums)
    if size[1] > 1:
        added, pixel = added + added_steps[1], pixel + steps[1]
        sums = _put_column(columns[1], rows, bias, adds, added, added_down, pixel, down, sums)
    if size[1] > 2:
        added, pixel = added + added_steps[1], pixel + steps[1]
        sums = _put_column(columns[2], rows, bias, adds, added, added_down, pixel, down, sums)
    if size[1] > 3:
        added, pixel = added + added_steps[1], pixel + steps[1]
        sums = _put_column(columns[3], rows, bias, adds, added, added_down, pixel, down, sums)
    accumulate(total, sums[0])
    accumulate(squares, sums[1])
