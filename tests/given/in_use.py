"""What this process holds, without what allocators keep of freed memory: a leak is seen in it, fragments are not.

What only cycles hold is counted until they are collected.
"""

from __future__ import annotations

import ctypes
import sys

# The fields of glibc's `struct mallinfo2`, in their order (malloc.h).
_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def bytes_in_use() -> int:
    """Bytes that were allocated from the C library, in all heaps and by maps of their own, and not freed: tensors and
    large objects of Python. 0 where the library does not tell (before glibc 2.33, and elsewhere).
    """
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return 0
    tell.restype = _MallInfo
    found = tell()
    return found.uordblks + found.hblkhd


def blocks_in_use() -> int:
    """Blocks of Python's allocator for small objects."""
    return sys.getallocatedblocks()
