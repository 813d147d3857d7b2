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
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from .internals import page_lock, unlock
from .ledger import Ledger, Lot, Place, bands_of
from .maps import FeatureMap
from .memory import give_back_freed

logger = logging.getLogger("seamless_vae")

_HUGE_PAGE = 2**21
_LARGE = 2**26  # bytes of a map that is worth some milliseconds spent on finding memory for it


@dataclass(eq=False)  # found by identity: tensors do not compare to one truth
class _Buffer:
    lot: Lot  # of it alone
    data: Tensor  # uint8
    locked: bool = False  # see page_lock


class Store(Protocol):
    """Lends maps and takes them back."""

    def allocate(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> FeatureMap: ...
    def release(self, lent: Any) -> None: ...


class MapStore:
    """Hands out maps and takes them back, within limits of memory.

    Args:
        device: of the arithmetic.
        limit: bytes of maps to hold on the device; None for no limit.
        cpu_limit: bytes of what does not fit there to offload to CPU memory, which is page-locked where that can be;
            0 where it is the same memory. What does not fit either is offloaded to disk, to a file that has no name
            where the system allows that, and is deleted with its map everywhere.

    Attributes:
        used, peak: bytes now and at most, by place.
    """

    def __init__(self, device: torch.device, limit: int | None = None, cpu_limit: int = 0) -> None:
        self.device = device
        self._ledger = Ledger(limit, cpu_limit)
        self.used, self.peak = self._ledger.used, self._ledger.peak
        self._idle: dict[tuple[Place, int], deque[_Buffer]] = {}  # the oldest first
        self._lent: dict[int, _Buffer] = {}

    def allocate(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> FeatureMap:
        """An uninitialised map [B, H, W, C].

        Raises:
            MemoryBudgetError: the temporary folder has no room for what the memory limits keep out.
        """
        batch, height, width, channels = shape
        rows, wanted = bands_of(shape, dtype)
        sizes = [size for size, count in wanted for _ in range(count)]
        bands: list[Tensor] = []
        try:
            for first, size in zip(range(0, height, rows), sizes, strict=True):
                bands.append(self._band((batch, min(rows, height - first), width, channels), dtype, size))
        except BaseException:
            for band in bands:
                self._take_back(band)
            raise
        return FeatureMap(tuple(bands), torch.Size(shape))

    def release(self, lent: FeatureMap) -> None:
        """Take back a map of `allocate`. Its memory serves the next one."""
        for band in lent.bands:
            self._take_back(band)

    def _band(self, shape: tuple[int, ...], dtype: torch.dtype, capacity: int) -> Tensor:
        buffer = self._buffer(self._ledger.next_lot(capacity))
        tensor = buffer.data[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        self._lent[id(tensor)] = buffer
        return tensor

    def _buffer(self, lot: Lot) -> _Buffer:
        if lot.fresh:
            self.drop_free()
            buffer = self._made(lot.bytes, lot.place)
        else:
            buffer = self._idle[lot.place, lot.bytes].popleft()
        self._ledger.take(lot)
        return buffer

    def _take_back(self, band: Tensor) -> None:
        buffer = self._lent.pop(id(band))
        self._idle.setdefault((buffer.lot.place, buffer.lot.bytes), deque()).append(buffer)
        self._ledger.take_back(buffer.lot)

    def drop_free(self) -> None:
        """Give buffers that are not lent back to the system."""
        for buffers in self._idle.values():
            for buffer in buffers:
                if buffer.locked:
                    unlock(buffer.data)
        self._idle.clear()
        self._ledger.drop_idle()

    def _made(self, size: int, place: Place) -> _Buffer:
        lot = Lot(place, size, 1, True)
        if place == "disk":
            return _Buffer(lot, _mapped_file(size))
        if size >= _LARGE:
            give_back_freed()
        if place == "cpu" or self.device.type == "cpu":
            data = _pages(size)
            return _Buffer(lot, data, locked=page_lock(data, self.device))
        return _Buffer(lot, torch.empty(size, dtype=torch.uint8, device=self.device))


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
