"""Where feature maps are, in numbers alone: plans count by it, and the store decides by it."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import torch

from . import maps
from .maps import PlannedMap
from .scratch import ScratchStore

Place = Literal["device", "cpu", "disk"]
PLACES: tuple[Place, ...] = ("device", "cpu", "disk")


class Lot(NamedTuple):
    """Buffers of one size in one place.

    Attributes:
        bytes: of each.
        fresh: they are new; idle ones were none that fit, and are given up first.
    """

    place: Place
    bytes: int
    count: int
    fresh: bool


class Ledger:
    """Which buffers there are, and from where the next ones come.

    Args:
        limit: bytes on the device; None for no limit.
        cpu_limit: bytes in CPU memory of what does not fit there. What does not fit either goes to disk.

    Attributes:
        used, peak: bytes now and at most, by place, idle buffers included.
    """

    def __init__(self, limit: int | None, cpu_limit: int) -> None:
        self.limits: dict[Place, int | None] = {"device": limit, "cpu": cpu_limit, "disk": None}
        self.used: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self.peak: dict[Place, int] = dict.fromkeys(PLACES, 0)
        # By the number of their place, and their bytes: many are of few sizes.
        self._idle: Counter[tuple[int, int]] = Counter()
        self._idle_bytes: dict[Place, int] = dict.fromkeys(PLACES, 0)

    def next_lot(self, size: int, count: int = 1) -> Lot:
        """Where buffers of `size` bytes come from: up to `count` of them that come from one place.

        Idle ones of that size serve again, the nearest first, unless there is room for fresh ones nearer. Larger ones
        do not: a small map in one of them would keep the rest of it from the next. Nothing is taken by this.
        """
        nearest = self._nearest(size)
        best = min((place for place, idle in self._idle if idle == size), default=None)
        # While they are taken, what is nearest can only go farther.
        if best is not None and best <= PLACES.index(nearest):
            return Lot(PLACES[best], size, min(count, self._idle[best, size]), False)
        room = self._room(nearest)
        return Lot(nearest, size, count if room is None else min(count, room // size), True)

    def take(self, lot: Lot) -> None:
        """Those buffers are lent. Before fresh ones are made, `drop_idle`."""
        if lot.fresh:
            self.used[lot.place] += lot.count * lot.bytes
            self.peak[lot.place] = max(self.peak[lot.place], self.used[lot.place])
        else:
            self._add_idle(lot, -lot.count)

    def take_back(self, lot: Lot) -> None:
        """Those buffers are idle."""
        self._add_idle(lot, lot.count)

    def drop_idle(self) -> None:
        """Idle buffers are gone."""
        for place in PLACES:
            self.used[place] -= self._idle_bytes[place]
            self._idle_bytes[place] = 0
        self._idle.clear()

    def _add_idle(self, lot: Lot, count: int) -> None:
        key = PLACES.index(lot.place), lot.bytes
        self._idle[key] += count
        self._idle_bytes[lot.place] += count * lot.bytes
        if not self._idle[key]:
            del self._idle[key]

    def _room(self, place: Place) -> int | None:
        """Bytes that are left, if what is idle were dropped; None for no limit."""
        limit = self.limits[place]
        return None if limit is None else limit - self.used[place] + self._idle_bytes[place]

    def _nearest(self, size: int) -> Place:
        """The first place that has room."""
        return next(place for place in PLACES if (room := self._room(place)) is None or room >= size)


def bands_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, list[tuple[int, int]]]:
    """Rows of a band of a map [B, H, W, C], and how its memory is asked for: bytes and number of buffers.

    Bands that others follow are of one size whatever the map's width, so that each can serve for any other.
    """
    batch, height, width, channels = shape
    rows = maps.band_rows(shape, dtype)
    row = batch * width * channels * dtype.itemsize
    full = -(-height // rows) - 1
    last = (row * (height - full * rows), 1)
    return rows, [(max(row * rows, maps.BAND_BYTES), full), last] if full else [last]


class PlannedStore:
    """A store for dry runs: it lends maps without memory, in a time that does not grow with them. See Ledger."""

    def __init__(self, limit: int | None = None, cpu_limit: int = 0) -> None:
        self._ledger = Ledger(limit, cpu_limit)
        self.used = self._ledger.used
        self.peak = self._ledger.peak
        self.idle = 0
        self.scratch = ScratchStore()  # nothing is computed

    def allocate(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> PlannedMap:
        """As MapStore's."""
        rows, wanted = bands_of(shape, dtype)
        lots: list[Lot] = []
        for size, count in wanted:
            while count:
                lot = self._ledger.next_lot(size, count)
                if lot.fresh:
                    self._ledger.drop_idle()
                self._ledger.take(lot)
                lots.append(lot)
                count -= lot.count
        return PlannedMap((), torch.Size(shape), rows, tuple(lots))

    def release(self, lent: PlannedMap) -> None:
        for lot in lent.lots:
            self._ledger.take_back(lot)
