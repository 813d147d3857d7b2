"""Archives of arrays: honest ones are read, and of others nothing is allocated that is not there."""

from __future__ import annotations

import io
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


def entry(array: np.ndarray, shape: bytes | None = None) -> bytes:
    """An array as a file of its own, whose header says another shape."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue() if shape is None else file.getvalue().replace(str(array.shape).encode(), shape)


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
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


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
