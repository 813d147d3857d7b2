"""Buckets, against kohya's arithmetic written out with numpy, and against literals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_core import ConfigError
from vae_core.datasets import Buckets
from vae_core.datasets.buckets import kohya_crop

SIDES = st.integers(1, 5000)


def test_shapes_of_kohyas_defaults() -> None:
    """512x512 in steps of 64 from 256 to 1024, as its trainers list them."""
    half = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)]
    expected = (*half, (512, 512), *sorted((height, width) for width, height in half))
    assert Buckets.parse("512x512:64").shapes() == expected


@given(SIDES, SIDES)
def test_enlarging(width: int, height: int) -> None:
    """The bucket of the nearest aspect, the first of equals, and a scale that covers it."""
    buckets = Buckets.parse("512x512:64")
    shapes = buckets.shapes()
    aspects = np.array([w / h for w, h in shapes])
    exact = (width, height) in shapes
    expected = (width, height) if exact else shapes[int(np.abs(aspects - width / height).argmin())]
    fit = buckets.fit((width, height))
    assert fit.bucket == expected
    wide = width / height > expected[0] / expected[1]
    scale = expected[1] / height if wide else expected[0] / width
    assert fit.resized[1 if wide else 0] == expected[1 if wide else 0]
    assert abs(fit.resized[0 if wide else 1] - (width, height)[0 if wide else 1] * scale) <= 1
    check_covers(fit)


@given(SIDES, SIDES)
def test_without_enlarging(width: int, height: int) -> None:
    buckets = Buckets.parse("512x512:64", upscale=False)
    try:
        fit = buckets.fit((width, height))
    except ConfigError:
        ideal = min(1.0, math.sqrt(512 * 512 / (width * height)))
        assert min(width, height) * ideal < 64 + 32, "only images that are narrower than a step are refused"
        return
    check_covers(fit)
    assert fit.bucket[0] % 64 == fit.bucket[1] % 64 == 0
    if width * height <= 512 * 512:
        assert fit.resized == (width, height)


def check_covers(fit) -> None:
    left, top, right, bottom = fit.box
    assert 0 <= left < right <= fit.resized[0]
    assert 0 <= top < bottom <= fit.resized[1]
    assert (right - left, bottom - top) == fit.bucket
    assert abs(left - (fit.resized[0] - right)) <= 1, "the crop is the centre"


def test_one_size() -> None:
    fit = Buckets.parse("512").fit((1000, 500))
    assert (fit.bucket, fit.resized, fit.crop) == ((512, 512), (1024, 512), (256, 0))
    assert Buckets.parse("512x768") == Buckets(512, 768)
    assert str(Buckets.parse("1024x1024:64:256:2048")) == "1024x1024:64:256:2048"


@pytest.mark.parametrize(
    ("bucket", "size", "expected"),
    [
        ((512, 512), (512, 512), (0, 0, 512, 512)),
        ((512, 512), (1000, 500), (0, 128, 512, 384)),
        ((512, 512), (500, 1000), (128, 0, 384, 512)),
        ((1024, 768), (1000, 1000), (128, 0, 896, 768)),
    ],
)
def test_kohyas_crop(bucket: tuple[int, int], size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert kohya_crop(bucket, size) == expected


@pytest.mark.parametrize(
    "text",
    ["", "big", "512x", "x512", "512:0", "0", "512x512:64:600:700", "512:64:1:2:3", "-5", "1e9", "\u0665\u0661\u0662x"],
)
def test_what_makes_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        Buckets.parse(text)


def test_sizes_that_do_not_suit_the_vae() -> None:
    with pytest.raises(ConfigError, match="multiple of 8.*96 or 104"):
        Buckets.parse("100").check(8)
    with pytest.raises(ConfigError, match="multiple of 16"):
        Buckets.parse("512x512:8").check(16)
    Buckets.parse("512x512:64").check(16)
