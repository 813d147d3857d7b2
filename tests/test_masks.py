"""Masks: scaled, widened, faded; and images put together by them."""

from __future__ import annotations

import pytest
import torch

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
    with pytest.raises(ImageError, match="mask of shape"):
        fit_mask(torch.zeros(3), (4, 4))


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
    result = paste(original, painted, torch.ones(1, 19, 17), ratio=8)
    assert result.shape == (3, 19, 17, 4)
    assert torch.equal(result[:, 1:17, 0:16, :3], painted)
    assert torch.equal(result[..., 3], original[..., 3].expand(3, -1, -1))
    assert torch.equal(result[:, 17:], original[:, 17:].expand(3, -1, -1, -1))


@pytest.mark.parametrize("shape", [(1, 11, 16, 3), (1, 20, 16, 3), (1, 16, 16, 1)])
def test_paste_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="Connect"):
        paste(torch.rand(1, 19, 17, 3), torch.rand(shape), torch.ones(1, 19, 17), ratio=8)
