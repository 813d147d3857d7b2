"""Memory straight from the system, so that what is given back is free at once, whatever an allocator's habits are."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

from ..errors import in_one_line
from ..units import MIB

_SMALL = 2**16  # bytes that an allocator may have
_HUGE_PAGE = 2**21


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
