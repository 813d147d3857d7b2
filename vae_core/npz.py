"""Archives of NumPy's arrays (`.npz`) from anywhere: nothing is allocated that the file does not have."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .units import MIB

MOST_BEYOND = 64 * MIB  # bytes that arrays may take beyond the file itself, which may be compressed
_ERRORS = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive by their names.

    Raises:
        ValueError: it is not one, is damaged, or says that it has more than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            total, most = sum(entry.file_size for entry in entries), path.stat().st_size + MOST_BEYOND
            if total > most:
                raise ValueError(f"its arrays take {total} bytes, and a file of this size may have {most}")
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except _ERRORS as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{entry.filename} is of an unknown version, {version[0]}.{version[1]}")
        shape, fortran_order, dtype = readers[version](stream)
        size, there = math.prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} has Python objects (a pickle) in it, which are not opened")
        if min(shape, default=0) < 0 or size != there:
            raise ValueError(f"{entry.filename} says that it has {shape} of {dtype}, and has {there} bytes")
        values = np.frombuffer(bytearray(stream.read(size)), dtype)
    return values.reshape(shape, order="F" if fortran_order else "C")
