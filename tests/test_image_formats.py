"""Which image files are opened, whatever their names end in."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.limits import limits
from PIL import Image

from vae_core import ImageError
from vae_core.datasets import Buckets
from vae_core.datasets.prepare import prepare
from vae_core.datasets.settings import Failure, Settings
from vae_core.datasets.transfer import Raw
from vae_core.image import from_pil, open_image, write_image
from vae_core.image_formats import FORMATS, MOST_PIXELS, PIXELS_PER_BYTE, recognised

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


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match="^a.png is an empty file"):
        open_image(tmp_path / "a.png")
    assert failure(b"").startswith("it is an empty file")


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
    raw = bitmap(*size) + bytes(size[0] * size[1] // PIXELS_PER_BYTE)
    assert recognised(io.BytesIO(raw), "x").size == size


def tiff(width: int, height: int) -> bytes:
    """A header of a TIFF of greyscale, and 20 bytes of its pixels."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 20)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 28) + bytes(20) + struct.pack("<H", len(tags)) + entries + bytes(4)


LARGEST = {
    "png": (32768, 32768),
    "gif": (32767, 32767),
    "bmp": (32768, 32768),
    "tga": (32768, 32767),
    "qoi": (32768, 32768),
    "bmp of one column": (1, 2**30),
    "tiff of one column": (1, 2**30),
}


def lying(name: str) -> bytes:
    """A file of a few hundred bytes whose header says a gigapixel."""
    width, height = LARGEST[name]
    form = name.split()[0]
    if form == "bmp":
        return bitmap(width, height)
    if form == "tiff":
        return tiff(width, height)
    raw = bytearray(saved(form.upper()))
    at, order = {"png": (16, ">II"), "gif": (6, "<HH"), "tga": (12, "<HH"), "qoi": (4, ">II")}[form]
    struct.pack_into(order, raw, at, width, height)
    if form == "png":
        struct.pack_into(">I", raw, 29, zlib.crc32(raw[12:29]))
    return bytes(raw)


@pytest.mark.parametrize("name", LARGEST)
def test_a_header_that_says_more_than_its_file_can_have(name: str, tmp_path: Path) -> None:
    raw = lying(name)
    (tmp_path / "image").write_bytes(raw)
    said = f"its header says {LARGEST[name][0]} x {LARGEST[name][1]} pixels, which {len(raw)} bytes cannot have"
    with limits(len(raw)), pytest.raises(ImageError, match=said):
        open_image(tmp_path / "image")
    assert said in failure(raw)


@pytest.mark.parametrize("more", [1, 8, 1 << 20])
def test_a_tiff_without_its_last_rows(more: int, tmp_path: Path) -> None:
    """Pillow by itself makes the rows that no strip has black, however many they are."""
    buffer = io.BytesIO()
    Image.new("F", (17, 9), 0.5).save(buffer, "TIFF")
    raw = buffer.getvalue()
    assert open_image_of(raw, tmp_path).size == (17, 9)
    (entry,) = (at for at in range(len(raw) - 12) if raw[at : at + 8] == struct.pack("<HHI", 257, 4, 1))
    with pytest.raises(ImageError, match="is damaged"):
        open_image_of(raw[: entry + 8] + struct.pack("<I", 9 + more) + raw[entry + 12 :], tmp_path)


def open_image_of(raw: bytes, folder: Path) -> Image.Image:
    (folder / "image").write_bytes(raw)
    return open_image(folder / "image")


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "WEBP", "TIFF"])
def test_one_colour_in_the_fewest_bytes_is_opened(form: str) -> None:
    buffer = io.BytesIO()
    options = {"TIFF": {"compression": "group4"}, "WEBP": {"lossless": True}, "JPEG": {"quality": 1}}
    Image.new("L" if form in ("JPEG", "WEBP") else "1", (4096, 4096)).save(buffer, form, **options.get(form, {}))
    buffer.seek(0)
    assert recognised(buffer, "x").size == (4096, 4096)


def test_a_photograph_of_108_megapixels_is_encoded(tmp_path: Path) -> None:
    """A JPEG, which is decoded at a fraction of its size."""
    buffer = io.BytesIO()
    Image.new("L", (12032, 9024), 128).save(buffer, "JPEG", quality=30)
    found = prepare(Raw("a.jpg", buffer.getvalue()), 0, Settings(Buckets(64, 64)), 3)
    assert not isinstance(found, Failure), found
    assert found.size == (12032, 9024)


def grey_tiff(words: np.ndarray, bits: int, photometric: int) -> bytes:
    """A TIFF of one strip of greyscale [H, W] with 12 or 16 bits a pixel."""
    height, width = words.shape
    digits = "".join(f"{int(word):012b}" for word in words.flat) if bits == 12 else ""
    pixels = int(digits, 2).to_bytes(len(digits) // 8, "big") if bits == 12 else words.astype("<u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (278, height)]
    tags.append((279, len(pixels)))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    assert len(head) == 122
    return head + pixels


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0), (16, 1)])
def test_grey_tiffs_of_any_depth_and_direction(bits: int, photometric: int, tmp_path: Path) -> None:
    white = (1 << bits) - 1
    words = np.array([[0, white // 4, white // 2, white]] * 2, dtype=np.uint16)
    (tmp_path / "grey.tif").write_bytes(grey_tiff(words, bits, photometric))
    wanted = words / white if photometric else 1 - words / white
    with open_image(tmp_path / "grey.tif") as image:
        assert image.mode.startswith("I;16")
        found = from_pil(image, channels=1, multiple=1).pixels[0, 0]
    np.testing.assert_allclose((found.numpy() + 1) / 2, wanted, atol=1e-5)  # words are of 16 bits


def test_the_transparent_grey_of_16_bits(tmp_path: Path) -> None:
    words = np.array([[0, 7, 65535]], dtype=np.uint16)
    Image.fromarray(words).save(tmp_path / "grey.png", transparency=7)
    with open_image(tmp_path / "grey.png") as image:
        found = from_pil(image, channels=1, multiple=1)
    assert found.alpha is not None and found.alpha[0].tolist() == [[1, 0, 1]]
    np.testing.assert_allclose((found.pixels[0, 0].numpy() + 1) / 2, words / 65535, atol=1e-6)


Image.init()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("ending", sorted(each for each, form in Image.EXTENSION.items() if form in Image.SAVE))
def test_what_is_written_is_the_image_or_refused(ending: str, mode: str, tmp_path: Path) -> None:
    """In any format of Pillow's: of its size, in colours, with its transparency."""
    values = np.random.default_rng(0).integers(0, 256, (70, 300, len(mode)), dtype=np.uint8)
    image = Image.fromarray(values[..., 0] if mode == "L" else values)
    path = tmp_path / f"a{ending}"
    try:
        write_image(image, path)
    except ImageError:
        assert not path.exists()
        return
    if Image.EXTENSION[ending] in ("PDF", "EPS"):  # which Pillow does not read
        return
    with Image.open(path) as written:
        assert written.size == image.size
        assert written.has_transparency_data == ("A" in mode)
        assert written.convert("RGB").getcolors(2) is None, "not of one or two colours"
        if mode.startswith("RGB"):
            spread = np.asarray(written.convert("RGB")).astype(int)
            assert np.abs(spread[..., 0] - spread[..., 1]).max() > 20, "no colours"


@pytest.mark.parametrize("ending", sorted(each for each, form in Image.EXTENSION.items() if form in Image.SAVE))
def test_a_side_that_a_format_cannot_have(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    try:
        write_image(Image.new("RGB", (70000, 1)), path)
    except ImageError:
        assert not path.exists()


def png(depth: int, values: Sequence[Sequence[int]], clear: Sequence[int]) -> bytes:
    """A PNG of one row, grey or RGB, of so many bits a channel, with a colour that is not seen."""
    if depth == 16:
        row = b"".join(struct.pack(">H", each) for pixel in values for each in pixel)
    else:
        bits = "".join(f"{each:0{depth}b}" for pixel in values for each in pixel)
        row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(values), 1, depth, 2 if len(clear) == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(clear)}H", *clear))]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_colour_of_a_png_that_is_not_seen(depth: int, channels: int, tmp_path: Path) -> None:
    if channels == 3 and depth < 8:
        pytest.skip("PNG has none")
    most = 2**depth - 1
    greys = sorted({0, most // 3, most // 2, most})
    for clear in greys:
        (tmp_path / "a.png").write_bytes(png(depth, [[grey] * channels for grey in greys], [clear] * channels))
        fitted = from_pil(open_image(tmp_path / "a.png"), multiple=1)
        assert fitted.alpha is not None
        assert fitted.alpha.flatten().tolist() == [float(grey != clear) for grey in greys]
