"""Maps as compiled functions take them: the address of each row, wherever its band is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .maps import FeatureMap
from .numba_functions import KINDS
from .program import INPUT, OUTPUT

_OUTSIDE = 0


class RowTable(NamedTuple):
    """Rows of one item of a map in CPU memory. Its user keeps the map.

    Attributes:
        rows: addresses in units of the map's numbers, 0 for a row outside the map.
        width: pixels in a row.
        depth: numbers from one pixel to the next: the map's channels or more.
        kind: a number of the map's type; of uint16 for bfloat16.
    """

    rows: np.ndarray
    width: int
    depth: int
    kind: np.generic

    @classmethod
    def of(cls, whole: FeatureMap, item: int, dtype: torch.dtype) -> RowTable | None:
        """Of a map [B, H, W, C]; None if it is elsewhere, of another type, or a pixel's channels are apart."""
        width = whole.shape[2]
        depth = _depth(whole, dtype)
        if depth is None:
            return None
        rows = np.empty(whole.shape[1], np.int64)
        first = 0
        for band in whole.bands:
            stop = first + band.shape[1]
            begin = band.data_ptr() // dtype.itemsize + item * band.stride(0)
            rows[first:stop] = begin + band.stride(1) * np.arange(stop - first)
            first = stop
        return cls(rows, width, depth, KINDS[dtype].type(0))

    @classmethod
    def empty(cls, dtype: torch.dtype) -> RowTable:
        """Of no rows."""
        return cls(np.empty(0, np.int64), 0, 0, KINDS[dtype].type(0))

    def framed(self, circular: bool) -> RowTable:
        """With one row more above and below: those at the other side, or rows outside the map."""
        above, below = (self.rows[-1], self.rows[0]) if circular else (_OUTSIDE, _OUTSIDE)
        return self._replace(rows=np.concatenate([[above], self.rows, [below]]))

    def part(self, first: int, stop: int) -> RowTable:
        """The rows [first, stop)."""
        return self._replace(rows=self.rows[first:stop])


def may_be_elsewhere(whole: FeatureMap, name: str, dtype: torch.dtype) -> bool:
    """Whether a map of a pass may have no RowTable: what comes from a caller or goes there is laid out as they like."""
    return name in (INPUT, OUTPUT) or any(_depth(FeatureMap.of(band), dtype) is None for band in whole.bands)


def _depth(whole: FeatureMap, dtype: torch.dtype) -> int | None:
    depths = set()
    for band in whole.bands:
        width, channels = band.shape[2:]
        if band.device.type != "cpu" or band.dtype != dtype or (channels > 1 and band.stride(3) != 1):
            return None
        depths.add(band.stride(2) if width > 1 else channels)
    depth = depths.pop()
    return None if depths or depth < whole.shape[3] else depth
