"""Tars from anywhere: what their headers say is checked against the file before anything is read."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from vae_core import DatasetError
from vae_core.datasets import webdataset_layout

LATENTS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def array(values: np.ndarray = LATENTS, shape: bytes | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue() if shape is None else file.getvalue().replace(b"(4, 2, 3)", shape)


def member(name: str = "000000000003.latents.npy", data: bytes | None = None, **fields: object) -> bytes:
    """A member, some of whose fields say something else."""
    data = array() if data is None else data
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    head = info.tobuf(tarfile.GNU_FORMAT)
    return head + data + bytes(-len(data) % 512)


def compressed(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        info = tarfile.TarInfo("000000000003.latents.npy")
        info.size = 5 << 20
        tar.addfile(info, io.BytesIO(bytes(5 << 20)))
    return file.getvalue()


def old_sparse() -> bytes:
    return member(type=tarfile.GNUTYPE_SPARSE)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip": (lambda: compressed("w:gz"), "cannot read"),
    "bzip2": (lambda: compressed("w:bz2"), "cannot read"),
    "xz": (lambda: compressed("w:xz"), "cannot read"),
    "a sparse member": (old_sparse, "not a regular file"),
    "a link": (lambda: member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular file"),
    "a device": (lambda: member(type=tarfile.CHRTYPE), "not a regular file"),
    "a long name of 8 GB": (lambda: member(type=tarfile.GNUTYPE_LONGNAME, size=8 << 30), "not a regular file"),
    "a record of pax of 8 GB": (lambda: member(type=tarfile.XHDTYPE, size=8 << 30), "not a regular file"),
    "more bytes than the file": (lambda: member(size=8 << 30), "more than are left"),
    "2^70 bytes": (lambda: member(size=1 << 70), "more than are left"),
    "fewer than none": (lambda: member(size=-512), "more than are left"),
    "a wrong sum": (lambda: b"x" + member()[1:], "bad checksum"),
    "cut in a header": (lambda: member()[:300], "truncated header"),
    "empty": (lambda: b"", "empty header"),
    "zeros": (lambda: bytes(1024), "cannot read"),
    "a shape beyond it": (lambda: member(data=array(shape=b"(99999999, 99999999, 3)")), "says that it has"),
    "a shape below nothing": (lambda: member(data=array(shape=b"(-4, 2, 3)")), "says that it has"),
    "objects": (lambda: member(data=array(np.array([print], dtype=object))), "Python objects"),
    "texts": (lambda: member(data=array(np.array(["a"]))), "cannot read"),
    "no array": (lambda: member(data=b"hello"), "cannot read"),
    "another image": (lambda: member("000000000004.latents.npy"), "lacks image 000003"),
}


def read(path: Path, names: list[str] | None = None) -> dict[str, dict[str, Tensor]]:
    """The arrays of some images of a tar, or of all."""
    opened = webdataset_layout.Opened(path)
    return opened.read(list(opened.parts) if names is None else names)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("names", [["000003"], None], ids=["one", "all"])
def test_hostile_tars(name: str, names: list[str] | None, tmp_path: Path) -> None:
    make, said = HOSTILE[name]
    path = tmp_path / "a.tar"
    path.write_bytes(make())
    if name == "another image" and names is None:
        assert list(read(path)) == ["000004"]
        return
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=said) as error:
            read(path, names)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 600


def test_an_honest_tar(tmp_path: Path) -> None:
    """A guard: two images with a file of another kind between them, whether or not zeros end it."""
    whole = member() + member("000000000003.json", b"{}") + member("000000000004.latents.npy")
    for end in (b"", bytes(1024), bytes(10240)):
        (tmp_path / "a.tar").write_bytes(whole + end)
        found = read(tmp_path / "a.tar")
        assert list(found) == ["000003", "000004"]
        assert np.array_equal(found["000003"]["latents"].numpy(), LATENTS)
        assert list(read(tmp_path / "a.tar", ["000004"])) == ["000004"]
