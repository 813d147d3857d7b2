"""Images that are stored turned, in modes of their own, or tiny: the pixels that are encoded, in every format."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from given.collection import settings
from PIL import Image, ImageOps, features

from vae_core import AutoencoderKL
from vae_core.datasets import Buckets
from vae_core.datasets.prepare import Prepared, prepare
from vae_core.datasets.settings import Failure
from vae_core.datasets.transfer import Raw

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
WIDE = Image.fromarray(COLOURS).resize((160, 80), Image.Resampling.BICUBIC)
FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {"quality": 95}}
MEAN_ERROR = {"JPEG": 2, "AVIF": 2}  # levels of 255: they lose something, and a JPEG is scaled by itself


def stored(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMATS)
def test_orientation(form: str, orientation: int, vae: AutoencoderKL) -> None:
    """Upright as Pillow turns it, with the size of the image that is seen, whether its reader turns it or not."""
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = prepare(Raw("a", stored(WIDE, form, exif=exif, **FORMATS[form])), 0, settings(vae), 3)
    assert isinstance(result, Prepared)
    turned = WIDE.copy()
    turned.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(turned)
    assert result.size == expected.size == ((80, 160) if orientation > 4 else (160, 80))
    fitted = expected.resize(result.fit.resized, Image.Resampling.LANCZOS).crop(result.fit.box)
    error = np.abs(result.pixels.astype(int) - np.asarray(fitted, dtype=int)).mean()
    assert error <= MEAN_ERROR.get(form, 0)


RGBA = Image.fromarray(np.dstack([COLOURS, np.arange(32, dtype=np.uint8).reshape(4, 8) * 8])).resize((160, 80), 0)
OTHERS = [Image.new("RGB", (160, 80), "red"), Image.new("RGB", (160, 80), "blue")]
GREY16 = Image.fromarray(np.asarray(WIDE.convert("L")).astype(np.uint16) * 257)
# A file, the image whose pixels are expected, and how far off they may be: a level, where 16 bits become 8.
MODES: dict[str, tuple[bytes, Image.Image, float]] = {
    "16 bits of grey": (stored(GREY16, "PNG"), WIDE.convert("L").convert("RGB"), 1),
    "16 bits of grey, white first": (
        *(stored(GREY16, "TIFF", tiffinfo={262: 0}), ImageOps.invert(WIDE.convert("L")).convert("RGB"), 1),
    ),
    "1 bit": (stored(WIDE.convert("1"), "PNG"), WIDE.convert("1").convert("RGB"), 0),
    "a palette": (stored(WIDE.quantize(16), "PNG"), WIDE.quantize(16).convert("RGB"), 0),
    "grey and opacity": (stored(RGBA.convert("LA"), "PNG"), RGBA.convert("RGB").convert("L").convert("RGB"), 1),
    "opacity": (stored(RGBA, "PNG"), RGBA.convert("RGB"), 0),
    "CMYK": (stored(WIDE.convert("CMYK"), "TIFF"), WIDE.convert("CMYK").convert("RGB"), 0),
    "the first of a GIF": (stored(WIDE.quantize(16), "GIF", save_all=True, append_images=OTHERS),
                           WIDE.quantize(16).convert("RGB"), 0),
    "the first of a WebP": (stored(WIDE, "WEBP", lossless=True, save_all=True, append_images=OTHERS), WIDE, 0),
    "the first of a PNG": (stored(WIDE, "PNG", save_all=True, append_images=OTHERS), WIDE, 0),
    "the first of a TIFF": (stored(WIDE, "TIFF", save_all=True, append_images=OTHERS), WIDE, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_modes(name: str, vae: AutoencoderKL) -> None:
    data, expected, most = MODES[name]
    result = prepare(Raw("a", data), 0, settings(vae, buckets=Buckets(160, 80)), 3)
    assert isinstance(result, Prepared) and result.fit.resized == expected.size
    assert np.abs(result.pixels.astype(int) - np.asarray(expected, dtype=int)).max() <= most


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (15, 15), (16, 16)])
@pytest.mark.parametrize("upscale", [True, False])
def test_tiny(size: tuple[int, int], upscale: bool, vae: AutoencoderKL) -> None:
    """Enlarged to the bucket; without enlarging, what is smaller than one step is listed."""
    chosen = settings(vae, buckets=Buckets.parse("64x64:16:32:128", upscale))
    result = prepare(Raw("a", stored(Image.new("RGB", size), "PNG")), 0, chosen, 3)
    if upscale or size == (16, 16):
        assert isinstance(result, Prepared) and result.pixels.shape[:2] == result.fit.bucket[::-1]
    else:
        assert isinstance(result, Failure) and "smaller than one step" in result.reason
