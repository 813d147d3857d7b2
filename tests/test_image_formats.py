"""Which image files are opened, whatever their names end in."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_core import ImageError
from vae_core.datasets import Buckets
from vae_core.datasets.prepare import prepare
from vae_core.datasets.settings import Failure, Settings
from vae_core.datasets.transfer import Raw
from vae_core.image import open_image
from vae_core.image_formats import FORMATS, MOST_PIXELS, recognised

Image.init()
ENDINGS = ("png", "jpg", "jpeg", "webp", "tif", "bmp", "gif", "tga", "eps", "ps")
POSTSCRIPT = {
    "%!PS-Adobe": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
    "of DOS": struct.pack("<IIIIIII", 0xC6D3D0C5, 30, 60, 0, 0, 0, 0)
    + b"\xff\xff"
    + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "a Windows metafile": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(80),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "GRIB": b"GRIB" + bytes(3) + b"\x01" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
}


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a program is started: {args}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)


def failure(data: bytes) -> str:
    """Why an image of a dataset's source is not encoded."""
    found = prepare(Raw("a.png", data), 0, Settings(Buckets(64, 64)), 3)
    assert isinstance(found, Failure)
    return found.reason


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("name", POSTSCRIPT)
@pytest.mark.parametrize("ending", ENDINGS)
def test_formats_whose_readers_start_programs_or_libraries_are_not_opened(
    name: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"image.{ending}"
    path.write_bytes(POSTSCRIPT[name])
    with pytest.raises(ImageError, match=f"image.{ending} is not an image of a known format"):
        open_image(path)
    assert "it is not an image of a known format" in failure(POSTSCRIPT[name])


def saved(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", [form for form in FORMATS if form in Image.OPEN and form in Image.SAVE])
def test_formats_that_people_have_are_opened_whatever_their_name(form: str, tmp_path: Path) -> None:
    raw = saved(form)
    for ending in ("png", "what"):
        (tmp_path / f"image.{ending}").write_bytes(raw)
        assert open_image(tmp_path / f"image.{ending}").convert("RGB").size == (16, 16)
    assert recognised(io.BytesIO(raw), "x").format == form


def bitmap(width: int, height: int) -> bytes:
    head = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("size", [(60000, 60000), (32768, 32769)], ids=str)
def test_more_pixels_than_are_opened(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.bmp").write_bytes(bitmap(*size))
    said = f"has {size[0]} x {size[1]} pixels; images of up to {MOST_PIXELS} pixels are opened. Make it smaller"
    with pytest.raises(ImageError, match=f"bomb.bmp {said}"):
        open_image(tmp_path / "bomb.bmp")
    assert f"it {said}" in failure(bitmap(*size))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(12032, 9024), (16320, 12240), (32768, 32768)], ids=["108 MP", "200 MP", "the most"])
def test_photographs_of_large_sensors_are_opened(size: tuple[int, int]) -> None:
    """Of 108 and 200 megapixels, which Pillow by itself warns of or refuses. Their pixels are not read here."""
    assert recognised(io.BytesIO(bitmap(*size)), "x").size == size


def test_a_photograph_of_108_megapixels_is_encoded(tmp_path: Path) -> None:
    """A JPEG, which is decoded at a fraction of its size."""
    buffer = io.BytesIO()
    Image.new("L", (12032, 9024), 128).save(buffer, "JPEG", quality=30)
    found = prepare(Raw("a.jpg", buffer.getvalue()), 0, Settings(Buckets(64, 64)), 3)
    assert not isinstance(found, Failure), found
    assert found.size == (12032, 9024)
