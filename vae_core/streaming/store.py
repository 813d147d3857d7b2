"""Where feature maps are: on the device while the budget allows it, then offloaded to CPU memory, then to disk."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from .ledger import Ledger, Lot, Place, bands_of
from .maps import FeatureMap
from .memory import trim_heap
from .offload_file import OffloadFile
from .page_locks import page_locks
from .pages import kept_pages, pages
from .scratch import ScratchStore

_LARGE = 2**26  # bytes of a map that is worth some milliseconds spent on finding memory for it


@dataclass(eq=False)  # found by identity: tensors do not compare to one truth
class _Buffer:
    lot: Lot  # of it alone
    data: Tensor  # uint8
    locked: bool = False  # see page_locks


class Store(Protocol):
    """Lends maps and takes them back.

    Attributes:
        used: bytes of maps by place.
        idle: bytes that are not lent and not given back yet.
        scratch: memory that kernels compute strips in.
    """

    used: dict[Place, int]
    scratch: ScratchStore

    @property
    def idle(self) -> int: ...

    def allocate(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> FeatureMap: ...
    def release(self, lent: Any) -> None: ...


class MapStore:
    """Hands out maps and takes them back, within limits of memory.

    Args:
        device: where it computes.
        limit: bytes of maps to hold on the device; None for no limit.
        cpu_limit: bytes of what does not fit there to offload to CPU memory, which is page-locked where that can be;
            0 where it is the same memory. What does not fit either is offloaded to disk, to one temporary file.
        disk_bytes: most bytes that are planned to be on disk at once; room for them is asked for at once.
        scratch_room: most bytes that a pass needs of one block of scratch memory.
        keep: keep memory for the next run; see `pages.KeptPages`.

    Attributes:
        used, peak: bytes of maps now and at most, by place.
        scratch: memory that kernels compute strips in, which is not counted.
    """

    def __init__(
        self,
        device: torch.device,
        limit: int | None = None,
        cpu_limit: int = 0,
        disk_bytes: int = 0,
        scratch_room: int = 0,
        keep: bool = False,
    ) -> None:
        self.device = device
        self._ledger = Ledger(limit, cpu_limit)
        self.used = self._ledger.used
        self.peak = self._ledger.peak
        self._idle: dict[tuple[Place, int], deque[_Buffer]] = {}  # the oldest first
        self._lent: dict[int, _Buffer] = {}
        self._file = OffloadFile(disk_bytes)
        self._locks = page_locks(device)
        self.keep = keep
        self.scratch = ScratchStore(scratch_room, keep)

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
            self._drop_idle()
            buffer = self._made(lot.bytes, lot.place)
        else:
            buffer = self._idle[lot.place, lot.bytes].popleft()
        self._ledger.take(lot)
        return buffer

    def _take_back(self, band: Tensor) -> None:
        buffer = self._lent.pop(id(band))
        self._idle.setdefault((buffer.lot.place, buffer.lot.bytes), deque()).append(buffer)
        self._ledger.take_back(buffer.lot)

    @property
    def idle(self) -> int:
        """Bytes that are not lent and not given back yet."""
        return sum(buffer.data.numel() for buffers in self._idle.values() for buffer in buffers)

    @property
    def lent(self) -> list[Tensor]:
        """The memory of all bands that are lent, uint8."""
        return [buffer.data for buffer in self._lent.values()]

    def drop_free(self) -> None:
        """Give buffers that are not lent, and what kernels have computed in, back to the system."""
        self._drop_idle()
        self.scratch.drop()
        if not self.used["disk"]:
            self._file.close()

    def _drop_idle(self) -> None:
        locked = self._end_idle()
        self._idle.clear()
        self._ledger.drop_idle()
        if locked:
            self._locks.give_back()

    def _end_idle(self) -> bool:
        """Idle buffers may go now. Whether any was page-locked."""
        locked = False
        for buffer in chain.from_iterable(self._idle.values()):
            if buffer.locked:
                self._locks.unlock(buffer.data)
                locked = True
            if buffer.lot.place == "disk":
                self._file.take_back(buffer.data)
        return locked

    def _made(self, size: int, place: Place) -> _Buffer:
        lot = Lot(place, size, 1, True)
        if place == "disk":
            return _Buffer(lot, self._file.lend(size))
        if size >= _LARGE:
            trim_heap()
        if place == "cpu" or self.device.type == "cpu":
            make = kept_pages if self.keep else pages
            return _Buffer(lot, *self._locks.make(size, lambda: make(size, "feature maps")))
        return _Buffer(lot, torch.empty(size, dtype=torch.uint8, device=self.device))
