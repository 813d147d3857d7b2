"""Tars as sources: what is odd in one costs an image at most, and a tar that breaks off is never taken for whole."""

from __future__ import annotations

import io
import logging
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_core.datasets import tars
from vae_core.datasets.tars import read_tar
from vae_core.datasets.transfer import Raw

pytest.importorskip("webdataset")


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


ONE, TWO = png(0), png(1)
Member = tuple[str, bytes] | tuple[str, bytes, dict[str, object]]


def tar_of(*members: Member, form: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        for name, data, *fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in dict(*fields).items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


A, B, C = ("a.png", ONE), ("b.png", TWO), ("c.png", ONE)
TEXT = ("a.txt", b"a cat")
WHOLE = tar_of(A, B, C)
IN_B = WHOLE.index(b"b.png")


def changed(at: int, data: bytes) -> bytes:
    return WHOLE[:at] + data + WHOLE[at + len(data) :]


def large_record(kind: bytes) -> bytes:
    """A header that says that the name of the next member has 8 GB, behind an image."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 8 << 30
    return WHOLE[:IN_B] + info.tobuf(tarfile.GNU_FORMAT)


LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
LONG = "x" * 300 + ".png"
DAMAGED = "the tar is damaged from here on"
# The tar -> its images, or why there are none.
TARS: dict[str, tuple[Callable[[], bytes], dict[str, bytes | str]]] = {
    "a name twice": (lambda: tar_of(A, ("a.png", TWO), B), {"a.png": ONE, "a.png ": "the same name", "b.png": TWO}),
    "a caption twice": (lambda: tar_of(A, TEXT, TEXT, B), {"a.png": ONE, "b.png": TWO}),
    "a name again": (lambda: tar_of(A, B, ("a.png", TWO)), {"a.png": ONE, "b.png": TWO, "a.png ": TWO}),
    "names of webdataset's own": (
        lambda: tar_of(A, ("a.__key__", b""), ("a.__url__", b""), ("__x__/d.png", ONE), B),
        {"a.png": ONE, "b.png": TWO}),
    "links": (
        lambda: tar_of(A, ("b.png", b"", {"type": tarfile.SYMTYPE, "linkname": "a.png"}),
                       ("c.png", b"", {"type": tarfile.LNKTYPE, "linkname": "a.png"})),
        {"a.png": ONE, "b.png": "a link to a.png", "c.png": "a link to a.png"}),
    "folders, pipes and devices": (
        lambda: tar_of(("d/", b"", {"type": tarfile.DIRTYPE}), ("x.png", b"", {"type": tarfile.FIFOTYPE}),
                       ("y.png", b"", {"type": tarfile.CHRTYPE}), ("d/a.png", ONE)), {"d/a.png": ONE}),
    "an image without a name": (lambda: tar_of(A, ("x/.png", ONE), (".png", ONE), B),
                                {"a.png": ONE, "x/.png": ONE, "b.png": TWO}),
    "captions alone": (lambda: tar_of(TEXT, B), {"a": "no image, only txt", "b.png": TWO}),
    "capitals": (lambda: tar_of(("A.PNG", ONE)), {"A.png": ONE}),
    "long names": (lambda: tar_of((LONG, ONE), ("\u00e9.png", TWO)), {LONG: ONE, "\u00e9.png": TWO}),
    "long names of GNU": (lambda: tar_of((LONG, ONE), B, form=tarfile.GNU_FORMAT), {LONG: ONE, "b.png": TWO}),
    "gzip": (lambda: tar_of(A, B, mode="w:gz"), {"a.png": ONE, "b.png": TWO}),
    "no end": (lambda: WHOLE[: 3 * IN_B], {"a.png": ONE, "b.png": TWO, "c.png": ONE}),
    "a wrong sum": (lambda: changed(IN_B, b"B"), {"a.png": ONE, "": DAMAGED}),
    "a wrong size": (lambda: changed(IN_B + 124, b"77777777777"), {"a.png": ONE, "": DAMAGED}),
    "cut in a header": (lambda: WHOLE[: IN_B + 100], {"a.png": ONE, "": DAMAGED}),
    "cut in an image": (lambda: WHOLE[: IN_B + 600], {"a.png": ONE, "": DAMAGED}),
    "gzip, cut": (lambda: tar_of(A, B, mode="w:gz")[:-4000], {"a.png": ONE, "": DAMAGED}),
    "not a tar": (lambda: b"hello" * 1000, {"": DAMAGED}),
    "nothing": (lambda: b"", {"": DAMAGED}),
    **{f"a name of 8 GB ({kind!r})":
       (lambda kind=kind: large_record(kind), {"a.png": ONE, "": "a name of 8589934592 bytes"}) for kind in LONG_NAMES},
}  # fmt: skip


def read_in_little_memory(place: Path) -> list[Raw]:
    """The images of a tar, read in less than 4 MiB at once."""
    tracemalloc.start()
    try:
        found = list(read_tar(str(place)))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    return found


@pytest.mark.parametrize("name", TARS)
def test_tars(name: str, tmp_path: Path) -> None:
    make, expected = TARS[name]
    (tmp_path / "a.tar").write_bytes(make())
    found = read_in_little_memory(tmp_path / "a.tar")
    for raw, (key, what) in zip(found, expected.items(), strict=True):
        assert raw.key == (key.strip() or f"{tmp_path}/a.tar: what follows")
        assert raw.data == what if isinstance(what, bytes) else (raw.data is None and what in raw.problem)
        assert " at 0x" not in raw.problem, "a report is the same each time"


def test_several_images_in_a_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As webdataset divides names at their first point: one is read, and the others are said to be left."""
    (tmp_path / "a.tar").write_bytes(tar_of(("a.0.png", ONE), ("a.1.png", TWO), B, ("b.jpg", ONE)))
    with caplog.at_level(logging.WARNING, logger="seamless_vae"):
        assert [raw.key for raw in read_tar(str(tmp_path / "a.tar"))] == ["a.0.png", "b.png"]
    assert "2 samples of" in caplog.text and "(a: 0.png, 1.png)" in caplog.text


def test_what_is_not_an_image_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Films beside the images, and an image of more bytes than are opened."""
    monkeypatch.setattr(tars, "MOST_BYTES", 2**20)
    (tmp_path / "a.tar").write_bytes(tar_of(A, ("a.mp4", bytes(2**24)), ("b.png", bytes(2**24)), C))
    found = read_in_little_memory(tmp_path / "a.tar")
    assert [raw.data for raw in found] == [ONE, None, ONE] and "more than 1048576 bytes" in found[1].problem
