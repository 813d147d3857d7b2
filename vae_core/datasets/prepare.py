"""One raw image to the pixels that are encoded: read, turned upright, resized, cropped. What readers do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ..errors import DatasetError, ImageError, VAEError, in_one_line
from ..image import from_pil, to_pil
from ..image_formats import recognised, usual_words
from .buckets import Fit
from .cache_names import check_file_name
from .settings import Failure, Settings
from .transfer import Raw

# A JPEG is decoded at no less than so many times the size that is needed of it, as Pillow's `thumbnail` does.
_JPEG_MARGIN = 2
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Prepared:
    """An image ready to be encoded.

    Attributes:
        key: its name in the source.
        position: its place in its split.
        sha256: of the bytes of its file.
        size: (width, height) as it came, after turning it upright.
        fit: its bucket, and how it was brought to it.
        pixels: [H, W, channels] of bytes, of the bucket's size.
        alpha: opacity [H, W] of bytes; None if it is not kept.
    """

    key: str
    position: int
    sha256: str
    size: tuple[int, int]
    fit: Fit
    pixels: np.ndarray
    alpha: np.ndarray | None


Result = Prepared | Failure


def prepare_all(raws: Iterable[Raw], settings: Settings, channels: int, first: int = 0) -> Iterator[Result]:
    """Prepare images in order; what cannot be prepared becomes a Failure with the reason."""
    for position, raw in enumerate(raws, start=first):
        yield prepare(raw, position, settings, channels)


def prepare(raw: Raw, position: int, settings: Settings, channels: int) -> Result:
    """Prepare one image for a model of so many channels.

    Raises:
        DatasetError: memory ran out, which is not the image's fault.
    """
    if raw.data is None:
        return Failure(raw.key, position, raw.problem)
    try:
        image, size = _open(raw.data, settings, channels)
        if settings.layout == "kohya":
            check_file_name(raw.key, size, str(settings.kohya))
        fit = settings.buckets.fit(size)
        pixels, alpha = _pixels(image, fit, channels, settings.alpha_mask)
    except VAEError as error:
        return Failure(raw.key, position, str(error))
    except MemoryError as error:
        raise DatasetError(
            f"memory ran out while {raw.key} was read. What was finished stays valid: run the same command with "
            f"--resume, and with fewer --workers."
        ) from error
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        return Failure(
            raw.key, position, f"it is damaged, or not an image that Pillow reads ({_stable(in_one_line(error))})"
        )
    return Prepared(raw.key, position, hashlib.sha256(raw.data).hexdigest(), size, fit, pixels, alpha)


def _open(data: bytes, settings: Settings, channels: int) -> tuple[Image.Image, tuple[int, int]]:
    """The image upright, perhaps decoded at a fraction of its size, and its whole size (width, height).

    kohya's trainers know nothing of orientations, so that for them images stay as they are stored.
    """
    with recognised(io.BytesIO(data), "it") as image:
        turn = settings.layout != "kohya"
        size = None
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            turned = turn and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            size = (image.height, image.width) if turned else (image.width, image.height)
            width, height = settings.buckets.fit(size).resized
            wanted = (height, width) if turned else (width, height)
            image.draft(None, (wanted[0] * _JPEG_MARGIN, wanted[1] * _JPEG_MARGIN))
        image.load()  # which turns the image, in some of Pillow's readers
        upright = usual_words(ImageOps.exif_transpose(image) if turn else image.copy(), image)
        return upright, size or upright.size


_ORIENTATION = 0x0112


def _pixels(image: Image.Image, fit: Fit, channels: int, keep_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours [H, W, channels] and, if it is kept, opacity [H, W], of the bucket's size."""
    if channels not in _MODES:
        raise ImageError(
            f"an image cannot be converted to {channels} channels; only models with 1, 3 or 4 take images."
        )
    opacity = None
    if image.has_transparency_data and (keep_alpha or channels == 4):
        opacity = image.convert("RGBA").getchannel("A")
    colours = _colours(image, min(channels, 3))
    values = np.asarray(_resize(colours, fit))
    values = values[..., None] if values.ndim == 2 else values
    alpha = None
    if keep_alpha or channels == 4:
        opaque = np.full(values.shape[:2], 255, np.uint8)
        alpha = opaque if opacity is None else np.asarray(_resize(opacity, fit))
    if channels == 4:
        values = np.dstack([values, alpha])  # type: ignore[list-item]
    return np.ascontiguousarray(values), alpha if keep_alpha else None


def _colours(image: Image.Image, channels: int) -> Image.Image:
    """Mode L or RGB, whatever the mode was."""
    mode = _MODES[channels]
    if image.mode in ("RGB", "L"):
        return image.convert(mode)
    if image.mode in ("RGBA", "RGBX", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "PA"):
        return (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB").convert(mode)
    return to_pil(from_pil(image, channels=channels, multiple=1).pixels)[0]


def _resize(image: Image.Image, fit: Fit) -> Image.Image:
    if image.size != fit.resized:
        image = image.resize(fit.resized, Image.Resampling.LANCZOS)
    return image if image.size == fit.bucket else image.crop(fit.box)


def _stable(reason: str) -> str:
    """A reason without the address of the object that Pillow names in it."""
    return reason.partition(" <_io.")[0].partition(" <")[0]
