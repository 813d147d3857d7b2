"""Masks: scaled, widened, faded; and images put together by them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from einops import repeat

from vae_core.errors import ImageError
from vae_core.masks import composite, extend_mask, fit_mask, grow_mask, paste


def dot(size: int = 9) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, size // 2, size // 2] = 1
    return mask


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (2, 4, 6), (2, 1, 4, 6)])
def test_fit_takes_every_layout(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape)
    assert torch.equal(fit_mask(mask, (4, 6)), mask.reshape(-1, 4, 6))
    assert fit_mask(mask, (8, 12)).shape == (2 if shape[0] == 2 else 1, 8, 12)


def test_fit_scales_and_limits() -> None:
    assert torch.equal(fit_mask(torch.tensor([[0.0, 1.0]]), (1, 4)), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))
    assert torch.equal(fit_mask(torch.tensor([[-1.0, 3.0]]), (1, 2)), torch.tensor([[[0.0, 1.0]]]))
    with pytest.raises(ImageError, match="shape"):
        fit_mask(torch.zeros(3), (4, 4))


LAYOUTS = {  # einops' words for where a batch of 2, or of 1, and the channels are
    "h w": {},
    "h w c": {"c": 1},
    "b h w": {"b": 2},
    "b h w c": {"b": 2, "c": 1},
    "b c h w": {"b": 2, "c": 1},
    "1 h w c": {"c": 3},
    "1 c h w": {"c": 3},
    "b h w c ": {"b": 3, "c": 3},
    "b c h w ": {"b": 3, "c": 3},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(20, 24), (20, 1), (1, 24), (3, 24), (20, 3)])
def test_every_shape_and_type(layout: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    plane = torch.zeros(size)
    plane[: (size[0] + 1) // 2, : (size[1] + 1) // 2] = 1
    mask = repeat(plane, f"h w -> {layout}", **LAYOUTS[layout])
    white = 255 if dtype in (torch.uint8, torch.int64) else 1
    expected = plane.expand(LAYOUTS[layout].get("b", 1), *size)
    assert torch.equal(fit_mask((mask * white).to(dtype), size), expected)


@pytest.mark.parametrize("shape", [(20, 24, 3), (10, 12, 3), (20, 24, 1), (10, 12, 1)])
def test_one_mask_with_its_channels_last_is_one(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape)
    mask[:, : shape[1] // 2] = 1
    found = fit_mask(mask, (20, 24))
    assert found.shape == (1, 20, 24) and found[0, :, :11].eq(1).all() and found[0, :, 13:].eq(0).all()
    assert fit_mask(torch.rand(1, 5, 1), (20, 24))[0, :, 0].unique().numel() > 5  # an item, 5 rows, 1 column


@pytest.mark.parametrize("shape", [(20, 24, 4), (2, 20, 24, 4), (10, 12, 4)])
def test_an_image_with_alpha_is_not_a_mask(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=rf"{re.escape(str(shape))} has 4 channels"):
        fit_mask(torch.zeros(shape), (20, 24))


def test_one_mask_of_another_size_is_one() -> None:
    for shape in ((1, 20, 24, 1), (1, 1, 20, 24), (1, 20, 24, 3), (20, 24)):
        assert fit_mask(torch.zeros(shape), (40, 48)).shape == (1, 40, 48)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.full((4, 4), 255.0), "from 255 to 255; 0 to 1 are taken"),
        (torch.full((4, 4), float("nan")), "has NaN or infinity in it"),
        (torch.full((4, 4), float("inf")), "has NaN or infinity in it"),
        (torch.full((4, 4), 256), "give 0 to 255"),
        (torch.full((4, 4), -1), "give 0 to 255"),
        (torch.rand(1, 4, 4, 3), "channels that differ"),
        (torch.rand(1, 3, 4, 4), "channels that differ"),
        (torch.rand(1, 4, 5, 4), "4 channels"),
        (torch.rand(1, 1, 1, 4, 4), r"\(1, 1, 1, 4, 4\)"),
        (torch.zeros(0, 4, 4), r"\(0, 4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.complex64), "complex64"),
        (torch.zeros(4, 4).to_sparse(), "sparse"),
        (torch.zeros(4, 4, device="meta"), "on meta"),
        ([torch.zeros(4, 4)], "a list"),
        (None, "NoneType"),
        (np.zeros((4, 4)), "ndarray"),
    ],
)
def test_what_is_not_a_mask(mask: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        fit_mask(mask, (4, 4))


def test_white_of_16_bits() -> None:
    mask = torch.tensor([[0, 65535]], dtype=torch.int32).to(torch.uint16)
    assert fit_mask(mask, (1, 2)).tolist() == [[[0.0, 1.0]]]


def test_bytes_of_zero_and_one_are_black_and_white() -> None:
    assert torch.equal(fit_mask(torch.eye(4, dtype=torch.uint8), (4, 4)), torch.eye(4)[None])


@pytest.mark.parametrize("grow", [0, 1, 3, 100])
def test_growing_covers_a_square(grow: int) -> None:
    expected = torch.zeros(1, 9, 9)
    expected[:, max(0, 4 - grow) : 5 + grow, max(0, 4 - grow) : 5 + grow] = 1
    assert torch.equal(grow_mask(dot(), grow), expected)


@pytest.mark.parametrize("feather", [1, 2, 3, 8])
def test_fading_goes_outwards(feather: int) -> None:
    hard, soft = grow_mask(dot(41), 3), grow_mask(dot(41), 3, feather)
    assert torch.equal(soft[hard == 1], torch.ones(49)), "what was covered stays covered"
    row = soft[0, 20, 20:]
    assert bool((row.diff() <= 0).all()) and 0 < float(row[4]) < 1
    reach = 2 * ((feather + 1) // 2)
    assert not row[4 + reach :].any(), "exactly 0 beyond"


def test_extension_reflects() -> None:
    assert torch.equal(
        extend_mask(torch.tensor([[[0.0, 0.5, 1.0]]]), 1, 5), torch.tensor([[[0.0, 0.5, 1.0, 0.5, 0.0]]])
    )


def test_composite_is_exact_at_both_ends() -> None:
    original, painted = torch.rand(2, 5, 7, 3), torch.rand(2, 5, 7, 3)
    mask = torch.tensor([0.0, 1.0, 0.25, 0.0, 1.0, 1.0, 0.0]).expand(2, 5, 7)
    result = composite(original, painted, mask)
    assert torch.equal(result[mask == 0], original[mask == 0]) and torch.equal(result[mask == 1], painted[mask == 1])
    torch.testing.assert_close(result[:, :, 2], 0.75 * original[:, :, 2] + 0.25 * painted[:, :, 2])
    painted[:] = float("nan")
    assert torch.equal(composite(original, painted, mask)[mask == 0], original[mask == 0])


def test_paste_of_a_cropped_image() -> None:
    original, painted = torch.rand(1, 19, 17, 4), torch.rand(3, 16, 16, 3)
    result = paste(original, painted, torch.ones(1, 19, 17), factor=8)
    assert result.shape == (3, 19, 17, 4)
    assert torch.equal(result[:, 1:17, 0:16, :3], painted)
    assert torch.equal(result[..., 3], original[..., 3].expand(3, -1, -1))
    assert torch.equal(result[:, 17:], original[:, 17:].expand(3, -1, -1, -1))


@pytest.mark.parametrize("shape", [(1, 11, 16, 3), (1, 20, 16, 3), (1, 16, 16, 1)])
def test_paste_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="Connect"):
        paste(torch.rand(1, 19, 17, 3), torch.rand(shape), torch.ones(1, 19, 17), factor=8)
