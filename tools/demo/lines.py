"""Faint lines in plain areas at the sides of reconstructions, as an eye finds them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIDE = 40  # pixels from each side that are looked at, but for the first two
LENGTH = 32  # pixels of a line that are looked at together
NEIGHBOURS = 7  # lines at each side of one, whose median is what it stands out from
PLAIN = 2.0  # levels by which neighbouring pixels of a plain area differ in the mean, at most


class Lines(NamedTuple):
    """Levels of 255 by which the mean errors of pieces of lines stand out, in the channel where they do most.

    Attributes:
        most: the largest.
        typical: root of their mean square; of no plain area 0, as `most`.
    """

    most: float
    typical: float


def plain_lines(error: np.ndarray, photograph: np.ndarray) -> dict[str, Lines]:
    """The lines at each side, left, right, top and bottom: of errors and a photograph [H, W, 3] in levels of 255."""
    found = {}
    for side, axis, turned in (("left", 1, False), ("right", 1, True), ("top", 0, False), ("bottom", 0, True)):
        both = (np.swapaxes(each, 0, 1) if axis == 0 else each for each in (error, photograph.astype(np.float64)))
        found[side] = _at_the_left(*(each[:, ::-1] if turned else each for each in both))
    return found


def _at_the_left(error: np.ndarray, photograph: np.ndarray) -> Lines:
    count = len(error) // LENGTH
    pieces, values = (
        each[: count * LENGTH, : SIDE + NEIGHBOURS + 1].reshape(count, LENGTH, -1, 3) for each in (error, photograph)
    )
    means = pieces.mean(1)  # [pieces, columns, 3]
    changes = np.abs(np.diff(values, axis=2)).mean((1, 3))
    outstanding = []
    for column in range(2, SIDE):
        first, stop = max(0, column - NEIGHBOURS), column + NEIGHBOURS + 1
        about = np.delete(means[:, first:stop], column - first, axis=1)
        line = np.abs(means[:, column] - np.median(about, axis=1)).max(-1)
        outstanding.append(line[changes[:, first:stop].mean(1) < PLAIN])
    all_lines = np.concatenate(outstanding)
    if not len(all_lines):
        return Lines(0.0, 0.0)
    return Lines(float(all_lines.max()), float(np.sqrt(np.square(all_lines).mean())))
