"""Where feature maps are: on the device while the budget allows it, then offloaded to CPU memory, then to disk."""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import os
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from . import maps
from .internals import page_lock, unlock
from .maps import FeatureMap
from .memory import give_back_freed

logger = logging.getLogger("seamless_vae")

# A buffer that is at most so many times larger than needed is used again instead of a fresh one, whose pages the
# system would have to clear.
_REUSE_LIMIT = 4
_HUGE_PAGE = 2**21
_LARGE = 2**26  # bytes of a map that is worth some milliseconds spent on finding memory for it

Place = Literal["device", "cpu", "disk"]
PLACES: tuple[Place, ...] = ("device", "cpu", "disk")


@dataclass(eq=False)  # found by identity: tensors do not compare to one truth
class _Buffer:
    bytes: int
    data: Tensor  # uint8
    place: Place
    locked: bool = False  # see page_lock


class MapStore:
    """Hands out maps and takes them back, within limits of memory.

    Args:
        device: of the arithmetic; "meta" makes a store that only counts, for planning.
        limit: bytes of maps to hold on the device; None for no limit.
        cpu_limit: bytes of what does not fit there to offload to CPU memory, which is page-locked where that can be;
            0 where it is the same memory. What does not fit either is offloaded to disk, to a file that has no name
            where the system allows that, and is deleted with its map everywhere.

    Attributes:
        used, peak: bytes now and at most, by place.
    """

    def __init__(self, device: torch.device, limit: int | None = None, cpu_limit: int = 0) -> None:
        self.device = device
        self.limits: dict[Place, int | None] = {"device": limit, "cpu": cpu_limit, "disk": None}
        self.used: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self.peak: dict[Place, int] = dict.fromkeys(PLACES, 0)
        # Idle buffers, the oldest first, by the number of their place and their bytes: many are of few sizes.
        self._idle: dict[tuple[int, int], deque[_Buffer]] = {}
        self._idle_bytes: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self._lent: dict[int, _Buffer] = {}

    def allocate(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> FeatureMap:
        """An uninitialised map [B, H, W, C].

        Raises:
            MemoryBudgetError: the temporary folder has no room for what the memory limits keep out.
        """
        batch, height, width, channels = shape
        rows = maps.band_rows(shape, dtype)
        bands: list[Tensor] = []
        try:
            for first in range(0, height, rows):
                bands.append(
                    self._band((batch, min(rows, height - first), width, channels), dtype, first + rows < height)
                )
        except BaseException:
            for band in bands:
                self._take_back(band)
            raise
        return FeatureMap(tuple(bands), torch.Size(shape))

    def release(self, lent: FeatureMap) -> None:
        """Take back a map of `allocate`. Its memory serves the next one."""
        for band in lent.bands:
            self._take_back(band)

    def _band(self, shape: tuple[int, ...], dtype: torch.dtype, more: bool) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        # Bands that others follow are of one size whatever the map's width, so that each can serve for any other.
        capacity = max(size, maps.BAND_BYTES) if more else size
        buffer = self._reusable(capacity) or self._fresh(capacity)
        tensor = buffer.data[:size].view(dtype).view(shape)
        self._lent[id(tensor)] = buffer
        return tensor

    def _take_back(self, band: Tensor) -> None:
        buffer = self._lent.pop(id(band))
        self._idle.setdefault((PLACES.index(buffer.place), buffer.bytes), deque()).append(buffer)
        self._idle_bytes[buffer.place] += buffer.bytes

    def drop_free(self) -> None:
        """Give buffers that are not lent back to the system."""
        for buffers in self._idle.values():
            for buffer in buffers:
                if buffer.locked:
                    unlock(buffer.data)
        for place in PLACES:
            self.used[place] -= self._idle_bytes[place]
            self._idle_bytes[place] = 0
        self._idle.clear()

    def _reusable(self, size: int) -> _Buffer | None:
        best = min((key for key in self._idle if size <= key[1] <= _REUSE_LIMIT * size), default=None)
        if best is None or best[0] > PLACES.index(self._nearest(size)):
            return None
        buffer = self._idle[best].popleft()
        self._idle_bytes[buffer.place] -= buffer.bytes
        if not self._idle[best]:
            del self._idle[best]
        return buffer

    def _nearest(self, size: int) -> Place:
        """The first place that has room, if what is idle were dropped."""
        for place in PLACES:
            limit = self.limits[place]
            if limit is None or self.used[place] - self._idle_bytes[place] + size <= limit:
                return place
        raise AssertionError("the disk has no limit")

    def _fresh(self, size: int) -> _Buffer:
        self.drop_free()
        place = self._nearest(size)
        buffer = self._made(size, place)
        self.used[place] += size
        self.peak[place] = max(self.peak[place], self.used[place])
        return buffer

    def _made(self, size: int, place: Place) -> _Buffer:
        if self.device.type == "meta":
            return _Buffer(size, torch.empty(size, dtype=torch.uint8, device="meta"), place)
        if place == "disk":
            return _Buffer(size, _mapped_file(size), place)
        if size >= _LARGE:
            give_back_freed()
        if place == "cpu" or self.device.type == "cpu":
            data = _pages(size)
            return _Buffer(size, data, place, locked=page_lock(data, self.device))
        return _Buffer(size, torch.empty(size, dtype=torch.uint8, device=self.device), place)


def _pages(size: int) -> Tensor:
    """`size` bytes of fresh memory, in large pages where the system has them: it clears those several times faster."""
    if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size / 2**20:.0f} MiB for feature maps cannot be allocated ({error.strerror}).") from error
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _mapped_file(size: int) -> Tensor:
    """`size` bytes of a temporary file, mapped. The file has no name, or goes when the mapping does."""
    with tempfile.TemporaryFile(prefix="seamless-vae-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would be a fatal signal later
            else:
                file.truncate(size)
        except OSError as error:
            raise MemoryBudgetError(
                f"the memory budget leaves {size / 2**20:.0f} MiB of feature maps to be offloaded to disk, to "
                f"{tempfile.gettempdir()}, which has no room for them ({error.strerror}). "
                f"Raise the budget, or point TMPDIR to a larger disk."
            ) from error
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
