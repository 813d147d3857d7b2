"""Image files: honest ones of every common format, of which bytes are changed, cut, doubled or swapped."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fuzz.limits import limits, put
from vae_core import ImageError
from vae_core.image import from_pil, open_image
from vae_core.image_formats import recognised

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "F"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "RGB"),
    "ICO": ("RGBA",),
    "TGA": ("RGB", "RGBA"),
    "PPM": ("L", "RGB"),
}
KINDS = [(form, mode) for form, modes in FORMATS.items() for mode in modes]
SECONDS_PER_PIXEL = 1e-7
NUMBERS = [0, 1, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]


@cache
def honest(form: str, mode: str) -> bytes:
    """A file of 17x9 pixels, with an orientation where the format has EXIF."""
    grey = np.arange(17 * 9, dtype=np.uint8).reshape(9, 17)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 300)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    elif mode == "LAB":
        image = Image.merge("LAB", [Image.fromarray(grey)] * 3)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif.tobytes()} if form in ("PNG", "JPEG", "WEBP") else {}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@given(data=st.data())
def images(data: st.DataObject) -> None:
    """An ImageError, or pixels from -1 to 1 of the size that the file says."""
    raw = bytearray(honest(*data.draw(st.sampled_from(KINDS))))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(raw) - 1)) if raw else 0
        match data.draw(st.sampled_from(["byte", "number", "cut", "insert", "swap", "double"])):
            case "byte":
                raw[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "number":
                number, width = data.draw(st.sampled_from(NUMBERS)), data.draw(st.sampled_from([2, 4]))
                order = data.draw(st.sampled_from(["little", "big"]))
                raw[at : at + width] = (number % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
            case "cut":
                del raw[at:]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "swap":
                raw[at:] = honest(*data.draw(st.sampled_from(KINDS)))[at:]
            case _:
                raw += raw[at:]
    image(put("image", raw))


def image(path: Path) -> None:
    # A few hundred bytes can say several megapixels, and some formats have gigapixels of one colour in them. Each step
    # makes a copy of them as floats.
    pixels = _pixels(path)
    with limits(pixels * 4 * 4 * 4, pixels * SECONDS_PER_PIXEL):
        try:
            found = from_pil(open_image(path))
        except ImageError as error:
            assert len(str(error)) < 900
            return
    assert found.pixels.shape[1] == 3 and found.pixels.abs().max() <= 1


def _pixels(path: Path) -> int:
    """How many pixels an image has by its header, if it is opened at all."""
    try:
        with open(path, "rb") as file, recognised(file, path.name) as image:
            return image.width * image.height
    except Exception:  # the point of this target
        return 0
