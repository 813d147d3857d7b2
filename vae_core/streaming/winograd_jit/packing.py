"""Kernels of a convolution, transformed and laid out as `multiply.py` reads them."""

from __future__ import annotations

import numpy as np

from .lanes import LANES, ZERO, address, load, splat, store, whole
from .multiply import COLUMNS

_CHANNELS = 8  # at once, so that what is written for one product is some cache lines one after the other


@whole
def pack(kernels, matrix, packed, first, stop):
    """packed = matrix x kernel, for blocks [first, stop) of output channels.

    Args:
        kernels: [K, C, taps]; output channels beyond the last one count as zero.
        matrix: [groups, taps].
        packed: [groups, blocks, C, COLUMNS].
    """
    out_channels, channels, taps = kernels.shape
    groups, blocks = packed.shape[:2]
    side_by_side = np.empty(_CHANNELS * taps * COLUMNS, np.float32)  # the kernels of a block, [C, taps, COLUMNS]
    begin = address(side_by_side)
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
                for c in range(count):
                    for lane in range(0, COLUMNS, LANES):
                        total = splat(ZERO)
                        for tap in range(taps):
                            total = total + matrix[group, tap] * load(begin + (c * taps + tap) * COLUMNS + lane)
                        store(out + c * COLUMNS + lane, total)
