"""Archives of arrays: honest ones are read, and of others nothing is allocated that is not there."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vae_core.npz import MOST_BEYOND, read_arrays

HONEST = {
    "latents": np.arange(24, dtype=np.float32).reshape(4, 2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "number": np.array(1.5),
    "nothing": np.zeros((0, 3), np.float16),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_honest_archives(save, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **HONEST)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(HONEST)
    for name, array in HONEST.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        found[name][...] = 0  # writable


@pytest.mark.parametrize("kind", [">f4", ">f2", ">f8", ">i8", "<f4"])
def test_arrays_in_the_other_byte_order_are_turned(kind: str, tmp_path: Path) -> None:
    """Into this machine's, which torch needs."""
    array = np.arange(6).reshape(2, 3).astype(kind)
    np.savez(tmp_path / "a.npz", array)
    found = read_arrays(tmp_path / "a.npz")["arr_0"]
    assert found.dtype.isnative and found.tolist() == [[0, 1, 2], [3, 4, 5]]


def entry(array: np.ndarray, shape: bytes | None = None) -> bytes:
    """An array as a file of its own, whose header says another shape."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue() if shape is None else file.getvalue().replace(str(array.shape).encode(), shape)


def refused(path: Path, said: str, most: int = 2**20) -> str:
    """Why an archive is refused, with no more memory than `most`."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said) as error:
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert type(error.value) is ValueError and len(str(error.value)) <= 300
    return str(error.value)


ZEROS = np.zeros((4, 2, 3), np.float32)
HOSTILE = {
    "says that it has": entry(ZEROS, b"(99999999, 99999999, 3)"),
    "says that it has .*-4": entry(ZEROS, b"(-4, 2, 3)"),
    "says that it has \\(4, 2, 2\\)": entry(ZEROS, b"(4, 2, 2)"),
    "Python objects": entry(np.array([print], dtype=object)),
    "unknown version": entry(ZEROS).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
    "magic": b"something else",
    "its arrays take": bytes(MOST_BEYOND + 2**20),
}


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_archives(said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", HOSTILE[said])
    refused(path, said)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "LZMA"])
def test_methods_that_are_unpacked_at_once_are_refused(method: int, tmp_path: Path) -> None:
    """A header of an honest array, and megabytes of zeros behind it that the directory does not mention."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("latents.npy", entry(ZEROS) + bytes(8 << 20))
    size = len(entry(ZEROS))
    raw = bytearray(path.read_bytes())
    place = raw.rindex(b"PK\x01\x02") + 24
    raw[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(raw)
    refused(path, "packed by the method")


def test_a_directory_of_millions_of_entries(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(20):
            archive.writestr(f"{i:02}" + "x" * 60_000, b"")
    refused(tmp_path / "a.npz", "its directory has 12")


HEADERS = {
    "deep": b"[" * 9000,
    "deep by signs": b"-" * 9000 + b"1",
    "long": b"1" * 60_000,
    "a thousand dimensions": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 1000 + b")}",
    "huge numbers": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}",
    "no bytes": b"{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999,)}",
    "fields": b"{'descr': " + b"[('a', " * 300 + b"'<f4'" + b")]" * 300 + b", 'fortran_order': False, 'shape': ()}",
    "a date": b"{'descr': '<M8[99999999999999999999s]', 'fortran_order': False, 'shape': ()}",
    "another type": b"{'descr': {'a': 1}, 'fortran_order': 5, 'shape': [1]}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_no_headers(name: str, tmp_path: Path) -> None:
    header = HEADERS[name]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("latents.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert refused(tmp_path / "a.npz", ".", most=2**24)


def test_damage_at_every_byte(tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.savez_compressed(whole, latents=ZEROS)
    path, raw = tmp_path / "a.npz", whole.getvalue()
    for place in range(len(raw)):
        for damaged in (raw[:place], raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :]):
            path.write_bytes(damaged)
            try:
                read_arrays(path)
            except ValueError:
                continue
