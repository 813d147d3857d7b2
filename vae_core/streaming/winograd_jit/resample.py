"""A walk over the tiles of a rectangle of the target, a few at a time, where the source has another size."""

from __future__ import annotations

from .lanes import address, part
from .multiply import COLUMNS, GAP, multiply


@part
def each_block(
    inputs_of, outputs_of, first_input, source, circular_x, weights, bias, target, columns, memory, total, squares
):
    """conv(source) + bias for some rows of the target, by transforms of inputs and of products.

    Args:
        inputs_of, outputs_of: as `upsample.upsample_inputs` and `upsample_outputs`.
        first_input: row and column of the source where a tile of the target begins, by row and column there.
        source, ...: as in `convolve.convolve`.
    """
    target_rows, _, depth, kind = target
    ring, inputs, products, at_once = memory
    multiplied = inputs[0]  # a number of the kind
    channels = weights.shape[2]
    out_channels = bias.size
    width = weights.shape[1] * COLUMNS
    for row in range(0, target_rows.size, 4 * at_once[0]):
        rows = min(4 * at_once[0], target_rows.size - row)
        for column in range(columns[0], columns[1], 4 * at_once[1]):
            size = rows, min(4 * at_once[1], columns[1] - column)
            tiles = (rows + 3) // 4, (size[1] + 3) // 4
            y0, x0 = first_input(row, column)
            place = address(inputs), channels + GAP, multiplied
            inputs_of(source, y0, x0, circular_x, address(ring), place, tiles, channels)
            multiply(inputs, weights, products, tiles[0] * tiles[1])
            outputs_of(
                address(products),
                width + GAP,
                address(bias),
                (target_rows, (row, column), depth, kind),
                size,
                out_channels,
                (address(total), address(squares)),
            )
