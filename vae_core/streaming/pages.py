"""Memory straight from the system, so that what is given back is free at once, whatever an allocator's habits are."""

from __future__ import annotations

import contextlib
import mmap
import sys
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

from ..errors import in_one_line
from ..units import MIB

_SMALL = 2**16  # bytes that an allocator may have
_HUGE_PAGE = 2**21
_KEPT = 512 * MIB  # at most, for all runs together
_CAN_KEEP = sys.platform == "linux" and hasattr(mmap, "MADV_FREE")


class KeptPages:
    """Memory of runs that are over, for the next ones: the system clears fresh pages, which takes time.

    What is kept is marked as free (MADV_FREE), as allocators do it: the system takes it as soon as it needs memory, and
    counts it as available; until then it can be written to as it is.

    Args:
        most: bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._kept: list[mmap.mmap] = []  # appended to without the lock: whatever holds it may be interrupted to do so

    @property
    def bytes(self) -> int:
        """That are kept now."""
        return sum(map(len, list(self._kept)))

    def take(self, size: int) -> mmap.mmap | None:
        """The smallest that has so many bytes, or more. None if there is none; then as many go back to the system."""
        with self._lock:
            kept = sorted(self._kept, key=len)
            fitting = next((each for each in kept if len(each) >= size), None)
            if fitting is not None:
                self._kept.remove(fitting)
                return fitting
            dropped = 0
            while kept and dropped < size:
                dropped += len(kept[-1])
                self._kept.remove(kept.pop())
        return None

    def put(self, block: mmap.mmap) -> None:
        """Keep a block that nothing uses any more, if there is room for it."""
        if self.bytes + len(block) <= self.most:
            with contextlib.suppress(OSError):  # a kernel that cannot: it goes back now
                block.madvise(mmap.MADV_FREE)
                self._kept.append(block)

    def drop(self) -> bool:
        """Give everything back to the system. Whether there was anything."""
        with self._lock:
            found = bool(self._kept)
            self._kept.clear()
        return found


kept = KeptPages(_KEPT if _CAN_KEEP else 0)


def pages(size: int, what: str, keep: bool = False) -> Tensor:
    """`size` bytes of memory of the CPU, given back with the last tensor on it.

    In large pages where the system has them: it clears those several times faster.

    Args:
        what: what the memory is for, in words, for the message.
        keep: it may be what an earlier run had, and be kept for a later one. If not, it is all zero from 64 KiB on.

    Raises:
        MemoryError: there is none.
    """
    if size < _SMALL:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    return tensor_on(mapped(size, what, keep), keep)[:size]


def tensor_on(block: mmap.mmap, keep: bool) -> Tensor:
    """The bytes of `mapped`, which is kept or given back with the last tensor on it."""
    if not keep:
        return torch.frombuffer(block, dtype=torch.uint8)
    array = np.frombuffer(block, np.uint8)
    weakref.finalize(array, kept.put, block).atexit = False
    return torch.from_numpy(array)


def mapped(size: int, what: str, keep: bool = False) -> mmap.mmap:
    """The same as a mapping, of any size but 0; of `size` bytes or, if it was kept, more."""
    if keep and (found := kept.take(size)) is not None:
        return found
    try:
        try:
            made = mmap.mmap(-1, size, **_private())
        except OSError:
            if not kept.drop():
                raise
            made = mmap.mmap(-1, size, **_private())
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{size / MIB:.0f} MiB for {what} cannot be allocated ({in_one_line(error)}).") from error
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            made.madvise(mmap.MADV_HUGEPAGE)
    return made


def _private() -> dict[str, int]:
    # Shared ones, which are the default, count as files in memory and have no large pages.
    names = ("MAP_PRIVATE", "MAP_ANONYMOUS")
    if not all(hasattr(mmap, name) for name in names):
        return {}
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
