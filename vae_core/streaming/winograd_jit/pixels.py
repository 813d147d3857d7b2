"""Parts of the compiled functions: reading pixels, and writing tiles of them."""

from __future__ import annotations

from .lanes import LANES, ZERO, accumulate, load, load_value, part, splat, step, store_value

OUTSIDE = 0  # the address of a row or a pixel outside the image


@part
def pixel_address(rows, width, depth, y, x):
    """Address of the first channel of a pixel of a map, by the addresses of its rows; see `convolve`."""
    if y < 0 or y >= rows.size or x < 0 or x >= width or rows[y] == OUTSIDE:
        return OUTSIDE
    return rows[y] + x * depth


@part
def value(kind, pixel, c):
    """Channels of a pixel from c on; zeros outside the image. `kind` is the map's, see `load_value`."""
    return load_value(kind, pixel + c) if pixel != OUTSIDE else splat(ZERO)


@part
def _put(kinds, v, bias, adds, added, pixel, sums):
    """Write v + bias, and what is added, to a pixel; returns sums of the values and of their squares so far."""
    v = v + bias
    if adds:
        v = v + load_value(kinds[0], added)
    store_value(kinds[1], pixel, v)
    return sums[0] + v, sums[1] + v * v


@part
def _put_column(kinds, v, rows, bias, adds, added, added_offset, pixels, offset, sums):
    """`_put` for up to four pixels below one another, by the addresses of their rows."""
    sums = _put(kinds, v[0], bias, adds, added[0] + added_offset, pixels[0] + offset, sums)
    if rows > 1:
        sums = _put(kinds, v[1], bias, adds, added[1] + added_offset, pixels[1] + offset, sums)
    if rows > 2:
        sums = _put(kinds, v[2], bias, adds, added[2] + added_offset, pixels[2] + offset, sums)
    if rows > 3:
        sums = _put(kinds, v[3], bias, adds, added[3] + added_offset, pixels[3] + offset, sums)
    return sums


@part
def four_rows(rows, y):
    """Addresses of the rows from y on; of the last one instead of those beyond."""
    last = rows.size - 1
    return rows[y], rows[min(y + 1, last)], rows[min(y + 2, last)], rows[min(y + 3, last)]


@part
def _put_tile(kinds, by_column, size, bias, to_add, pixels, offset, depth, total, squares):
    """Write the upper left part of a tile, and add its values and their squares to running sums.

    Args:
        kinds: of the map that is added and of the one that is written, see `load_value`.
        by_column: four of four vectors.
        size: rows and columns that are written; four or more for all.
        to_add: whether anything is added, and if so, the addresses of its four rows, where its first pixel begins in
            them, and from one pixel to the next.
        pixels, offset, depth: the same for what is written.
        total, squares: addresses of the sums, in double precision.
    """
    adds, added, more, added_depth = to_add
    sums = splat(ZERO), splat(ZERO)
    sums = _put_column(kinds, by_column[0], size[0], bias, adds, added, more, pixels, offset, sums)
    if size[1] > 1:
        more = more + added_depth
        offset = offset + depth
        sums = _put_column(kinds, by_column[1], size[0], bias, adds, added, more, pixels, offset, sums)
    if size[1] > 2:
        more = more + added_depth
        offset = offset + depth
        sums = _put_column(kinds, by_column[2], size[0], bias, adds, added, more, pixels, offset, sums)
    if size[1] > 3:
        more = more + added_depth
        offset = offset + depth
        sums = _put_column(kinds, by_column[3], size[0], bias, adds, added, more, pixels, offset, sums)
    accumulate(total, sums[0])
    accumulate(squares, sums[1])


@part
def nothing_to_add(target):
    """In `put_tiles`, for a target to whose pixels nothing is added. Rows and kind are the target's own, and not read:
    with others, numba would compile the functions that take them a second time."""
    return False, target[0], (0, 0), 0, target[3]


@part
def put_tiles(pixels_of, count, products, apart, biases, to_add, target, size, channels, sums):
    """Transform products to pixels, tile by tile, and write them.

    Args:
        pixels_of: of the address of a tile's first product for a vector of channels, and from one product to the next:
            the tile's pixels, four of four vectors.
        count: products of a tile.
        products: address of [tiles, count, apart].
        biases: address of [channels]; channels <= apart.
        to_add: whether anything is added to the pixels, and if so, addresses of its rows, the first row and column,
            its depth and kind.
        target: addresses of rows, the first row and column that are written, the depth and the kind.
        size: rows and columns of pixels that are written.
        sums: two addresses of [channels] of float64; the sums of what is written, and of its squares, are added.
    """
    adds, added_rows, (added_y, added_x), added_depth, added_kind = to_add
    target_rows, (target_y, target_x), depth, kind = target
    tile = products
    added = (0, 0, 0, 0)
    for y in range(0, size[0], 4):
        pixels = four_rows(target_rows, target_y + y)
        if adds:
            added = four_rows(added_rows, added_y + y)
        for x in range(0, size[1], 4):
            offset = (target_x + x) * depth
            more = (added_x + x) * added_depth
            for c in range(0, channels, LANES):
                _put_tile(
                    (added_kind, kind),
                    pixels_of(tile + c, apart),
                    (size[0] - y, size[1] - x),
                    load(biases + c),
                    (adds, added, more + c, added_depth),
                    pixels,
                    offset + c,
                    depth,
                    sums[0] + c,
                    sums[1] + c,
                )
            tile += count * apart


@step
def copy_pixels(source, first, size, channels, out):
    """Copy a rectangle of pixels, from a row and a column on.

    Args:
        source: a map's kind, the addresses of its rows, and its depth.
        out: address of [pixels, apart], `apart`, and the kind.
    """
    kind, rows, depth = source
    place, apart, out_kind = out
    for y in range(first[0], first[0] + size[0]):
        for x in range(first[1], first[1] + size[1]):
            for c in range(0, channels, LANES):
                store_value(out_kind, place + c, load_value(kind, rows[y] + x * depth + c))
            place += apart
