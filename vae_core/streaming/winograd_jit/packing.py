"""Kernels of a convolution, transformed and laid out as `multiply.py` reads them."""

from __future__ import annotations

import numpy as np

from .lanes import LANES, ZERO, address, load, part, splat, store_channels, whole
from .multiply import COLUMNS

_CHANNELS = 8  # at once, so that what is written for one product is some cache lines one after the other


@part
def _combined(matrix, group, taps, kernels):
    """A line of a matrix times as many vectors of kernels, which are COLUMNS numbers apart."""
    total = splat(ZERO)
    for tap in range(taps):
        total = total + matrix[group, tap] * load(kernels + tap * COLUMNS)
    return total


@whole
def pack(kernels, matrix, packed, first, stop):
    """packed = matrix x kernel, for blocks [first, stop) of output channels.

    Args:
        kernels: [K, C, taps]; output channels beyond the last one count as zero.
        matrix: [groups, taps].
        packed: [groups, blocks, C, COLUMNS] of float32, or of uint16 for bfloat16 in pairs of channels: what is written
            is [groups, blocks, C / 2, COLUMNS, 2] then.
    """
    out_channels, channels, taps = kernels.shape
    groups, blocks = packed.shape[:2]
    side_by_side = np.empty(_CHANNELS * taps * COLUMNS, np.float32)  # the kernels of a block, [C, taps, COLUMNS]
    begin = address(side_by_side)
    kind = packed[0, 0, 0, 0]
    for block in range(first, stop):
        filled = min(COLUMNS, out_channels - block * COLUMNS)
        if filled < COLUMNS:
            side_by_side[:] = ZERO
        for channel in range(0, channels, _CHANNELS):
            count = min(_CHANNELS, channels - channel)
            for column in range(filled):
                for c in range(count):
                    for tap in range(taps):
                        number = kernels[block * COLUMNS + column, channel + c, tap]
                        side_by_side[(c * taps + tap) * COLUMNS + column] = number
            for group in range(groups):
                out = address(packed) + ((group * blocks + block) * channels + channel) * COLUMNS
                for c in range(0, count, 2):
                    even = begin + c * taps * COLUMNS
                    odd = even + taps * COLUMNS
                    for lane in range(0, COLUMNS, LANES):
                        first = _combined(matrix, group, taps, even + lane)
                        second = _combined(matrix, group, taps, odd + lane)
                        store_channels(kind, out + c * COLUMNS, COLUMNS, lane, first, second)
