"""Memory straight from the system, so that what is given back is free at once, whatever an allocator's habits are."""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import in_one_line
from ..units import MIB, round_up

_SMALL = 2**16  # bytes that an allocator may have
_HUGE_PAGE = 2**21
_KEPT = 512 * MIB  # at most, for all runs together
_CAN_KEEP = sys.platform == "linux" and hasattr(mmap, "MADV_FREE")


class _Free(NamedTuple):
    """Large pages of a mapping that nothing uses.

    Attributes:
        start, stop: in bytes from the mapping's beginning.
        warm: how many bytes of them the system may still have to take; the others are addresses alone.
    """

    block: mmap.mmap
    start: int
    stop: int
    warm: int

    @property
    def bytes(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        return self.bytes == len(self.block) - _HUGE_PAGE


class KeptPages:
    """Memory of runs that are over, for the next ones: the system clears fresh pages, which takes time.

    What is kept is marked as free (MADV_FREE), as allocators do it: the system takes it as soon as it needs memory, and
    counts it as available; until then it can be written to as it is.

    Args:
        most: bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        # Appended to and popped from atomically: threads, and what is collected at any moment, need no lock.
        self._free: list[_Free] = []

    @property
    def bytes(self) -> int:
        """That are kept now."""
        return sum(each.warm for each in list(self._free))

    def take(self, size: int) -> tuple[mmap.mmap, int]:
        """So many bytes, whole large pages: a mapping and where in it they begin.

        What the system must clear for them takes the place of as much that is kept.
        """
        free = self._claimed()
        fitting = [each for each in free if each.bytes >= size]
        found = min(fitting, key=lambda each: (-min(each.warm, size), each.bytes), default=None)
        if found is not None:
            free.remove(found)
            start = found.start + size
            if start < found.stop:
                free.append(found._replace(start=start, warm=min(found.warm, found.stop - start)))
        self._free.extend(free)
        self.shrink(max(0, self.bytes - size + (0 if found is None else min(found.warm, size))))
        return _aligned(size) if found is None else (found.block, found.start)

    def put(self, block: mmap.mmap, start: int, size: int) -> None:
        """Keep pages that nothing uses any more, as far as there is room for them."""
        with contextlib.suppress(OSError):  # a kernel that cannot: they go back now
            block.madvise(mmap.MADV_FREE, start, size)
            self._free.append(_Free(block, start, start + size, size))
            if self.bytes > self.most:
                self.shrink(self.most)

    def shrink(self, most: int) -> bool:
        """Give back to the system what is more than so many bytes; the largest stay. Whether anything was given."""
        most = max(0, most)
        if self.bytes <= most:
            return False
        total = 0
        for each in sorted(self._claimed(), key=lambda each: -each.warm):
            warm = min(each.warm, (most - total) // _HUGE_PAGE * _HUGE_PAGE)
            if warm < each.warm:
                if each.is_whole and not warm:
                    continue
                each.block.madvise(mmap.MADV_DONTNEED, each.start + warm, each.bytes - warm)
            total += warm
            self._free.append(each._replace(warm=warm))
        return True

    def _claimed(self) -> list[_Free]:
        """All that is free, taken out: neighbours together, and without mappings that have nothing warm."""
        free = []
        while self._free:
            with contextlib.suppress(IndexError):  # another thread was faster
                free.append(self._free.pop())
        found: list[_Free] = []
        for each in sorted(free, key=lambda each: (id(each.block), each.start)):
            before = found[-1] if found else each
            if before.block is each.block and before.stop == each.start:
                found[-1] = before._replace(stop=each.stop, warm=before.warm + each.warm)
            else:
                found.append(each)
        return [each for each in found if each.warm or not each.is_whole]


kept = KeptPages(_KEPT if _CAN_KEEP else 0)


def _aligned(size: int) -> tuple[mmap.mmap, int]:
    """A mapping with room for so many bytes of large pages, and where they begin."""
    block = mapped(size + _HUGE_PAGE, "feature maps and strips")
    return block, -np.frombuffer(block, np.uint8, 1).ctypes.data % _HUGE_PAGE


def kept_pages(size: int, what: str) -> Tensor:
    """As `pages`, but uninitialised: it may be what an earlier run had, and is kept for a later one."""
    if size < _HUGE_PAGE or not kept.most:
        return pages(size, what)
    whole = round_up(size, _HUGE_PAGE)
    block, start = kept.take(whole)
    array = np.frombuffer(block, np.uint8, size, start)
    weakref.finalize(array, kept.put, block, start, whole).atexit = False
    return torch.from_numpy(array)


def pages(size: int, what: str) -> Tensor:
    """`size` bytes of fresh memory of the CPU, all zero from 64 KiB on, given back with the last tensor on it.

    In large pages where the system has them: it clears those several times faster.

    Args:
        what: what the memory is for, in words, for the message.

    Raises:
        MemoryError: there is none.
    """
    if size < _SMALL:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(mapped(size, what), dtype=torch.uint8)


def mapped(size: int, what: str) -> mmap.mmap:
    """The same as a mapping, of any size but 0."""
    try:
        try:
            found = mmap.mmap(-1, size, **_private())
        except OSError:
            if not kept.shrink(0):
                raise
            found = mmap.mmap(-1, size, **_private())
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{size / MIB:.0f} MiB for {what} cannot be allocated ({in_one_line(error)}).") from error
    if size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


def _private() -> dict[str, int]:
    # Shared ones, which are the default, count as files in memory and have no large pages.
    names = ("MAP_PRIVATE", "MAP_ANONYMOUS")
    if not all(hasattr(mmap, name) for name in names):
        return {}
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
