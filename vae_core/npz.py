"""NumPy's arrays and archives of them (`.npy`, `.npz`) from anywhere: nothing is allocated that the file does not have.

The archives are as NumPy writes them: entries stored, or compressed by DEFLATE, which `zipfile` unpacks a piece at a
time. It has no such bound for the other methods that a zip may name.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import in_one_line
from .regular_files import open_regular
from .units import MIB

MOST_BEYOND = 64 * MIB  # bytes that arrays may take beyond the file itself, which may be compressed
MOST_NAMES = MIB  # bytes of an archive's directory: of some ten thousand arrays
_TAIL = 1 << 17  # bytes, more than a zip's last record and its comment can have
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive by their names.

    Raises:
        ValueError: it is not one, is damaged, or says that it has more than it has.
    """
    try:
        with open_regular(path) as file:
            bounded = _Bounded(file)
            with zipfile.ZipFile(bounded) as archive:  # type: ignore[arg-type]  # of a file it takes these alone
                bounded.most = None
                entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
                total = sum(entry.file_size for entry in entries)
                most = path.stat().st_size + MOST_BEYOND
                if total > most:
                    raise ValueError(f"its arrays take {total} bytes; a file of this size may have {most}")
                return {entry.filename.removesuffix(".npy"): _entry(archive, entry) for entry in entries}
    except Exception as error:  # zipfile's and NumPy's readers raise nearly everything on damaged files
        raise ValueError(in_one_line(error)) from None


def read_array(stream: BinaryIO, size: int, name: str) -> np.ndarray:
    """The array in the next `size` bytes of a stream, as `numpy.save` writes it.

    Args:
        name: for messages.

    Raises:
        ValueError: there is none, it is damaged, has Python objects, or says that it has more than it has.
    """
    try:
        return _read_array(stream, size, name)
    except Exception as error:  # NumPy reads headers by Python's own parser
        raise ValueError(in_one_line(error)) from None


def native(array: np.ndarray) -> np.ndarray:
    """An array in this machine's byte order, which torch needs: itself, or a copy if it was written in the other."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


class _Bounded:
    """A file as `zipfile` reads it, which must not ask for more than the most at once while the directory is read."""

    def __init__(self, file: BinaryIO) -> None:
        self.most: int | None = MOST_NAMES
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        if self.most is not None and count > self.most:
            raise ValueError(f"its directory has {count} bytes, and that of an archive of arrays up to {self.most}")
        return self._read(count if count >= 0 or self.most is None else _TAIL)


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    name = entry.filename[:80]
    if entry.compress_type not in _METHODS:
        raise ValueError(f"{name} is packed by the method {entry.compress_type}, as NumPy never does")
    with archive.open(entry) as stream:
        return _read_array(stream, entry.file_size, name)  # type: ignore[arg-type]


def _read_array(stream: BinaryIO, size: int, name: str) -> np.ndarray:
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} is of an unknown version, {version[0]}.{version[1]}")
    shape, fortran_order, dtype = readers[version](stream)
    needed = math.prod(shape) * dtype.itemsize
    there = size - (stream.tell() - start)
    if dtype.hasobject:
        raise ValueError(f"{name} has Python objects (a pickle) in it, which are not opened")
    if min(shape, default=0) < 0 or needed != there:
        raise ValueError(f"{name} says that it has {str(shape)[:80]} of {str(dtype)[:40]}, and has {there} bytes")
    values = native(np.frombuffer(bytearray(stream.read(needed)), dtype))
    return values.reshape(shape, order="F" if fortran_order else "C")
