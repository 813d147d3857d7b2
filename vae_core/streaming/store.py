"""Where feature maps lie: in memory while the budget allows it, else in a temporary file that is mapped."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MemoryBudgetError

# A buffer that is at most so many times larger than needed is used again instead of a fresh one, whose pages the
# system would have to clear.
_REUSE_LIMIT = 4
_HUGE_PAGE = 2**21


@dataclass
class _Buffer:
    bytes: int
    data: Tensor  # uint8
    in_file: bool


class MapStore:
    """Hands out maps and takes them back, within a limit of memory.

    Args:
        device: of the maps; "meta" makes a store that only counts, for planning.
        limit: bytes of maps to hold in memory; None for no limit. What does not fit goes to a file, which has no
            name where the system allows that, and is deleted with its map everywhere.

    Attributes:
        peak, file_peak: most bytes in memory and in files so far.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self.device = device
        self.limit = limit
        self.used = self.file_used = self.peak = self.file_peak = 0
        self._free: list[_Buffer] = []
        self._lent: dict[int, _Buffer] = {}

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor.

        Raises:
            MemoryBudgetError: the temporary folder has no room for what the memory limit keeps out.
        """
        size = math.prod(shape) * dtype.itemsize
        buffer = self._reusable(size) or self._fresh(size)
        tensor = buffer.data[:size].view(dtype).view(shape)
        self._lent[id(tensor)] = buffer
        return tensor

    def release(self, tensor: Tensor) -> None:
        """Take back a tensor of `allocate`. Its memory serves the next one."""
        self._free.append(self._lent.pop(id(tensor)))

    def _reusable(self, size: int) -> _Buffer | None:
        fitting = [buffer for buffer in self._free if size <= buffer.bytes <= _REUSE_LIMIT * size]
        best = min(fitting, key=lambda buffer: (buffer.in_file, buffer.bytes), default=None)
        if best is not None and not (best.in_file and self._fits(size)):
            self._free.remove(best)
            return best
        return None

    def _fits(self, size: int) -> bool:
        idle = sum(buffer.bytes for buffer in self._free if not buffer.in_file)
        return self.limit is None or self.used - idle + size <= self.limit

    def _fresh(self, size: int) -> _Buffer:
        self.drop_free()
        in_file = not self._fits(size)
        if in_file:
            data = torch.empty(size, dtype=torch.uint8, device="meta") if self._counts_only else _mapped_file(size)
            self.file_used += size
            self.file_peak = max(self.file_peak, self.file_used)
        else:
            data = (
                _pages(size) if self.device.type == "cpu" else torch.empty(size, dtype=torch.uint8, device=self.device)
            )
            self.used += size
            self.peak = max(self.peak, self.used)
        return _Buffer(size, data, in_file)

    def drop_free(self) -> None:
        """Give buffers that are not lent back to the system."""
        for buffer in self._free:
            if buffer.in_file:
                self.file_used -= buffer.bytes
            else:
                self.used -= buffer.bytes
        self._free.clear()

    @property
    def _counts_only(self) -> bool:
        return self.device.type == "meta"


def _pages(size: int) -> Tensor:
    """`size` bytes of fresh memory, in large pages where the system has them: it clears those several times faster."""
    if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
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
                f"the memory budget leaves {size / 2**20:.0f} MiB of feature maps to a file in "
                f"{tempfile.gettempdir()}, which has no room for them ({error.strerror}). "
                f"Raise the budget, or point TMPDIR to a larger disk."
            ) from error
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
