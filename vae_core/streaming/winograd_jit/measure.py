"""Sums over positions for statistics, compiled: what is summed is read once."""

from __future__ import annotations

import numpy as np

from .lanes import LANES, ZERO, accumulate, address, load, load_value, part, splat, store, whole

_POSITIONS = 32  # summed up in single precision, before they are added in double precision


@part
def _sums(kind, place, depth, count, about):
    """Sums of deviations of a vector's channels and of their squares, over positions that are `depth` apart."""
    total = squares = splat(ZERO)
    for _ in range(count):
        v = load_value(kind, place) - about
        total = total + v
        squares = squares + v * v
        place += depth
    return total, squares


@whole
def measure(values, about, total, squares):
    """Sums of deviations from a value near the mean, and of their squares, for each channel.

    Args:
        values: [positions, channels] of float32, or of uint16 for bfloat16; whole vectors of channels.
        about: [channels]; set to the mean of the first positions.
        total, squares: [channels] of float64, to which is added.
    """
    positions, channels = values.shape
    kind = values[0, 0]
    first = min(positions, _POSITIONS)
    for c in range(0, channels, LANES):
        found, _ = _sums(kind, address(values) + c, channels, first, splat(ZERO))
        store(address(about) + c, found * np.float32(1 / first))
    for start in range(0, positions, _POSITIONS):
        count = min(_POSITIONS, positions - start)
        row = address(values) + start * channels
        for c in range(0, channels, LANES):
            found, found_squares = _sums(kind, row + c, channels, count, load(address(about) + c))
            accumulate(address(total) + c, found)
            accumulate(address(squares) + c, found_squares)
