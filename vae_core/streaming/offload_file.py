"""The temporary file of maps that are offloaded to disk: one file, whatever the number of bands."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from dataclasses import dataclass, field
from typing import IO

import torch
from torch import Tensor

from ..errors import MemoryBudgetError, in_one_line
from ..temporary import NO_PLACE, place_and_room
from ..units import MIB, round_up

_UNKNOWN = {errno.EINVAL, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.EINVAL)}  # where nothing can be reserved
_UNIT = 2**12  # bytes; parts begin and end at multiples of it
_SLACK = 2**18  # for parts that are not multiples
_ZEROS = bytes(MIB)


@dataclass
class _Extent:
    """A part of the file, mapped at once.

    Attributes:
        free: spans [start, stop) that are not lent, in their order; none touches another.
    """

    data: Tensor  # uint8
    free: list[tuple[int, int]] = field(default_factory=list)

    def take(self, size: int) -> Tensor | None:
        """A part of the first free span that is large enough."""
        needed = round_up(size, _UNIT)
        for index, (start, stop) in enumerate(self.free):
            if stop - start >= needed:
                self.free[index : index + 1] = [(start + needed, stop)] if stop - start > needed else []
                return self.data[start : start + size]
        return None

    def put_back(self, start: int, size: int) -> None:
        spans: list[tuple[int, int]] = []
        for span in sorted([*self.free, (start, start + round_up(size, _UNIT))]):
            if spans and spans[-1][1] == span[0]:
                spans[-1] = spans[-1][0], span[1]
            else:
                spans.append(span)
        self.free = spans


class OffloadFile:
    """Lends parts of one temporary file as memory. It has no name where the system allows that, and goes with its maps.

    Two descriptors are open, and two more for each time that it has to grow.

    Args:
        total: bytes that a run is planned to need at once; so much room is asked for in the beginning.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self._file: IO[bytes] | None = None
        self._extents: list[_Extent] = []
        self._bytes = 0

    def lend(self, size: int) -> Tensor:
        """`size` bytes, uint8.

        Raises:
            MemoryBudgetError: there is no temporary folder, or no room in it.
            MemoryError: the file cannot be mapped.
        """
        for extent in self._extents:
            found = extent.take(size)
            if found is not None:
                return found
        extent = self._extended(max(size, self.total + _SLACK - self._bytes))
        found = extent.take(size)
        assert found is not None
        return found

    def take_back(self, lent: Tensor) -> None:
        """What `lend` has lent may be lent again."""
        for extent in self._extents:
            start = lent.data_ptr() - extent.data.data_ptr()
            if 0 <= start < extent.data.numel():
                extent.put_back(start, lent.numel())

    def close(self) -> None:
        """Give the file back to the system, as soon as no part of it is in use."""
        self._extents.clear()
        self._bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _extended(self, size: int) -> _Extent:
        size = round_up(size, mmap.ALLOCATIONGRANULARITY)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="seamless-vae-")  # noqa: SIM115  # open as long as its maps
            _reserve(self._file, self._bytes, size)
            mapped = mmap.mmap(self._file.fileno(), size, offset=self._bytes)
        except NO_PLACE as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError(
                    f"{size / MIB:.0f} MiB of a temporary file cannot be mapped ({in_one_line(error)})."
                ) from error
            raise MemoryBudgetError(_no_room(max(self.total, self._bytes + size), error)) from error
        extent = _Extent(torch.frombuffer(mapped, dtype=torch.uint8), [(0, size)])
        self._extents.append(extent)
        self._bytes += size
        return extent


def _reserve(file: IO[bytes], start: int, size: int) -> None:
    """Make a file longer, with room for it on the disk: else a full one would be a fatal signal later."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), start, size)
            return
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
    if not hasattr(os, "pwrite"):  # Windows, which reserves what a file is made longer by
        file.truncate(start + size)
        return
    found = os.fstatvfs(file.fileno())
    if found.f_bavail * found.f_frsize < size:  # compressed, zeros alone would find room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        _write_zeros(file.fileno(), start, size)
    except OSError:
        file.truncate(start)
        raise


def _write_zeros(handle: int, start: int, size: int) -> None:
    end = start + size
    while start < end:
        start += os.pwrite(handle, _ZEROS[: end - start], start)


def _no_room(total: int, error: Exception) -> str:
    return (
        f"{total / MIB:.0f} MiB of feature maps cannot be offloaded to a temporary file in {place_and_room()}: "
        f"{in_one_line(error)}. Raise the memory budget, or set TMPDIR to a writable folder "
        f"with this much room."
    )
