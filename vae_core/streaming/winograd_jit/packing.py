"""Kernels of a convolution, transformed and laid out as `multiply.py` reads them."""

from __future__ import annotations

import numpy as np

from .lanes import LANES, ZERO, address, load, part, store, store_channels, transpose, whole
from .multiply import COLUMNS

_CHANNELS = 16  # that are read at once
_FEW = 8  # transformed at once, so that what is written for one product is some cache lines one after the other


@part
def _combined(matrix, line, size, first, apart):
    """A line of a matrix times as many vectors, which are so far apart."""
    total = matrix[line, 0] * load(first)
    for each in range(1, size):
        total = total + matrix[line, each] * load(first + each * apart)
    return total


@part
def _side_by_side(kernels, channel, count, out):
    """The kernels of `count` channels, [count, taps, COLUMNS], with zeros for output channels beyond the last."""
    out_channels, channels, taps = kernels.shape
    numbers = count * taps
    for first in range(0, COLUMNS, LANES):
        of_kernels = address(kernels) + (first * channels + channel) * taps
        present = min(LANES, out_channels - first)
        whole_vectors = numbers - numbers % LANES if present == LANES else 0
        for number in range(0, whole_vectors, LANES):
            transpose(of_kernels + number, channels * taps, address(out) + number * COLUMNS + first, COLUMNS)
        for number in range(whole_vectors, numbers):
            for lane in range(LANES):
                found = ZERO
                if lane < present:
                    found = kernels[first + lane, channel + number // taps, number % taps]
                out[number * COLUMNS + first + lane] = found


@whole
def pack(kernels, matrix, packed, block):
    """packed[:, block] = matrix x kernel x matrix^T.

    Args:
        kernels: [K, C, side * side] without gaps, up to COLUMNS output channels; as many as lack count as zero.
        matrix: [size, side].
        packed: [size * size, blocks, C, COLUMNS] of float32, or of uint16 for bfloat16 in pairs of channels: what is
            written is [size * size, C / 2, COLUMNS, 2] then.
    """
    channels, taps = kernels.shape[1:]
    blocks = packed.shape[1]
    size, side = matrix.shape
    from_side_to_side = size * side * COLUMNS  # numbers of a channel, of which the lines are transformed
    kernels_of_block = np.empty(_CHANNELS * taps * COLUMNS, np.float32)
    lines = np.empty(_FEW * from_side_to_side, np.float32)  # [channels, size, side, COLUMNS]
    kind = packed[0, 0, 0, 0]
    for read in range(0, channels, _CHANNELS):
        _side_by_side(kernels, read, min(_CHANNELS, channels - read), kernels_of_block)
        for channel in range(read, min(read + _CHANNELS, channels), _FEW):
            count = min(_FEW, channels - channel)
            for c in range(count):
                kernel = address(kernels_of_block) + (channel - read + c) * taps * COLUMNS
                for number in range(size * side):
                    place = address(lines) + c * from_side_to_side + number * COLUMNS
                    for lane in range(0, COLUMNS, LANES):
                        begin = kernel + number % side * COLUMNS + lane
                        store(place + lane, _combined(matrix, number // side, side, begin, side * COLUMNS))
            for group in range(size * size):
                out = address(packed) + ((group * blocks + block) * channels + channel) * COLUMNS
                of_group = address(lines) + group // size * side * COLUMNS
                for c in range(0, count, 2):
                    even = of_group + c * from_side_to_side
                    odd = even + from_side_to_side
                    for lane in range(0, COLUMNS, LANES):
                        low = _combined(matrix, group % size, side, even + lane, COLUMNS)
                        high = _combined(matrix, group % size, side, odd + lane, COLUMNS)
                        store_channels(kind, out + c * COLUMNS, COLUMNS, lane, low, high)
