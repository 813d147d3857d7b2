"""A step of an online softmax, compiled; source: Milakov & Gimelshein, Online normalizer calculation, 2018."""

from __future__ import annotations

import math

import numpy as np

from .lanes import LANES, ZERO, address, exp, first_lanes, highest, larger, load, splat, store_value, summed, whole

_NOTHING = np.float32(-math.inf)


@whole
def soften(scores, scores_step, keys, weights, weights_step, largest, total, shrink):
    """weights = exp(scores - the largest so far) for each row of a block of keys.

    Rows are `scores_step` and `weights_step` numbers apart. Whole vectors of them are read and written, so after the
    last of the `keys` there is room for one vector less a number.

    Args:
        scores: of float32, one after the other.
        weights: of float32, which may be the scores' own memory, or of uint16 for bfloat16.
        largest: [rows], of all blocks before; updated.
        total: [rows], the sums of all weights before; made smaller, and added to.
        shrink: [rows], set to what else was summed up before has to be multiplied by.
    """
    kind = weights[0]
    rest = keys % LANES
    stop = keys - rest
    for row in range(largest.size):
        read = address(scores) + row * scores_step
        write = address(weights) + row * weights_step
        peaks = splat(largest[row])
        for key in range(0, stop, LANES):
            peaks = larger(peaks, load(read + key))
        if rest > 0:
            peaks = larger(peaks, first_lanes(load(read + stop), rest, splat(_NOTHING)))
        peak = highest(peaks)
        sums = splat(ZERO)
        for key in range(0, stop, LANES):
            weight = exp(load(read + key) - peak)
            store_value(kind, write + key, weight)
            sums = sums + weight
        if rest > 0:
            weight = first_lanes(exp(load(read + stop) - peak), rest, splat(ZERO))
            store_value(kind, write + stop, weight)
            sums = sums + weight
        shrink[row] = math.exp(largest[row] - peak)
        total[row] = total[row] * shrink[row] + summed(sums)
        largest[row] = peak
