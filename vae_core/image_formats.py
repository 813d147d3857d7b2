"""Which image files are opened: the formats, and how many pixels an image may have."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from .errors import OPEN_FILES, ImageError, in_one_line

# What is opened: formats of pixels that people have. Pillow has readers for others: that of PostScript starts another
# program on the file, whatever its name ends in. HEIF and JXL are those of packages that register theirs. TGA has no
# first bytes of its own, and is tried last.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "ICO", "PPM", "JPEG2000", "QOI", "DDS", "PCX", "SGI"),
    *("PSD", "HEIF", "JXL", "TGA"),
)
MOST_PIXELS = 1 << 30  # of an image that is opened: 32768 x 32768
# A header can say any size. In most formats a byte can say no more than so many pixels: 8256 in a PNG of one
# bit a pixel, by deflate. The others can have areas of one colour in a few bytes, but no more rows than that, each of
# which costs Pillow a pointer.
PIXELS_PER_BYTE = 1 << 14
ROWS_ALONE = ("WEBP", "AVIF", "TIFF", "JPEG2000", "HEIF", "JXL")
_IMAGE_LENGTH = 257  # this and the next two: TIFF's tags
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
WORD_MAX = 65535
# What Pillow writes without a word: of an image, what a file of these formats would have; and formats in which an image
# becomes opaque.
NOT_AS_IT_IS = {"ICO": "another size", "ICNS": "another size", "SPIDER": "no colours"}
WRITERS_ERRORS = (ValueError, KeyError, OverflowError, RuntimeError, struct.error)  # that Pillow's raise
_STEPS_OF_BITS = {"L;2": 85, "L;4": 17}  # between two greys of so few bits, as bytes
WITHOUT_ALPHA = ("BMP", "DIB", "GIF", "PPM")


def load_formats() -> None:
    """Have Pillow know all its formats; the first time it reads files of its own.

    Raises:
        ImageError: they cannot be read.
    """
    try:
        Image.init()
    except OSError as error:
        raise ImageError(f"formats of images cannot be loaded: {in_one_line(error)}. {OPEN_FILES}") from None


def format_for(image: Image.Image, name: str) -> str:
    """The format that a file's ending asks for.

    Raises:
        ImageError: none, or one that would lose something of the image; what `load_formats` raises.
    """
    load_formats()
    form = Image.EXTENSION.get(os.path.splitext(name)[1].lower())
    if form not in Image.SAVE:
        folder = f" For a folder, write {name}/ with a slash at the end." if name and "." not in name else ""
        raise ImageError(
            f"{name or repr(name)} does not have the ending of an image format. Name it .png, .jpg or .webp.{folder}"
        )
    if form in NOT_AS_IT_IS:
        raise ImageError(f"{name}: a {form} file would have {NOT_AS_IT_IS[form]}. Save it as PNG.")
    if form in WITHOUT_ALPHA and image.has_transparency_data:
        raise ImageError(f"{name}: a {form} file would lose the image's transparency. Save it as PNG.")
    return str(form)


def words_of(image: Image.Image) -> np.ndarray:
    """The values of 16-bit greyscale, in whatever order the bytes of its mode are."""
    return np.asarray(image if image.mode == "I;16" else image.convert("I"))


def usual_words(image: Image.Image, opened: Image.Image) -> Image.Image:
    """16-bit greyscale from 0, black, to 65535, white: in the TIFF that was opened bits may be fewer, and white 0."""
    tags = getattr(opened, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    turned = tags.get(_PHOTOMETRIC) == 0
    if not image.mode.startswith("I;16") or (bits == 16 and not turned):
        return image
    words = np.clip(np.rint(words_of(image) * (WORD_MAX / ((1 << bits) - 1))), 0, WORD_MAX)
    return Image.fromarray((WORD_MAX - words if turned else words).astype(np.uint16))


def _scale_transparency(image: Image.Image) -> None:
    """Bring the colour of a PNG that is not seen to the bytes that its pixels will have, as Pillow does not.

    Of one of 16 bits a channel Pillow keeps the upper bytes, so those are compared.
    """
    clear = image.info.get("transparency")
    pieces = getattr(image, "tile", [])
    raw = pieces[0][3] if image.format == "PNG" and pieces else None
    if isinstance(clear, int) and raw in _STEPS_OF_BITS:
        image.info["transparency"] = clear * _STEPS_OF_BITS[raw]
    elif isinstance(clear, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def recognised(file: BinaryIO, name: str) -> Image.Image:
    """The image in an open file, by its first bytes, its pixels not read yet: see `FORMATS` and `MOST_PIXELS`.

    As `PIL.Image.open`, without its limit of 179 million pixels, which is the whole process's, and less than some
    telephones' photographs have.

    Raises:
        ImageError: empty, not one of the formats, of too many pixels, or of more than a file of its size can have; what
            `load_formats` raises.
        Exception: whatever Pillow's readers raise on damaged files.
    """
    load_formats()
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ImageError(f"{name} is an empty file. Download or export it again.")
    file.seek(0)
    start = file.read(16)
    for form in (form for form in FORMATS if form in Image.OPEN):
        factory, accepts = Image.OPEN[form]
        accepted = accepts is None or accepts(start)
        if not accepted or isinstance(accepted, str):  # a text says what is missing here
            continue
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # Pillow's way to say that it is another format
            continue
        if image.width * image.height > MOST_PIXELS:
            raise ImageError(
                f"{name} has {image.width} x {image.height} pixels; images of up to {MOST_PIXELS} pixels are opened. "
                f"Make it smaller, or cut it into parts."
            )
        pieces = [(each[0], each[1]) for each in getattr(image, "tile", [])]  # (codec, box) of what is to be read
        rows = getattr(image, "tag_v2", {}).get(_IMAGE_LENGTH, 0)  # of a TIFF, before it is turned
        if pieces and rows and max(box[3] for _, box in pieces if box) < rows:
            raise ImageError(f"{name} is damaged: some of its rows are missing. Download or export it again.")
        if image.height * (1 if form in ROWS_ALONE else image.width) > size * PIXELS_PER_BYTE:
            raise ImageError(
                f"{name} is damaged: its header says {image.width} x {image.height} pixels, which {size} bytes cannot "
                f"have. Download or export it again."
            )
        _scale_transparency(image)
        return image
    raise ImageError(
        f"{name} is not an image of a known format ({', '.join(FORMATS[:6])}, ...). Convert it to PNG or JPEG."
    )
