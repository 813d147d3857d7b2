"""Images of latents, posteriors and errors."""

from __future__ import annotations

import pytest
import torch

from vae_core.preview import error_map, heat, latent_colours, posterior_image


def test_heat_goes_through_its_colours() -> None:
    values = torch.tensor([[[0.0, 0.375, 0.75, 1.0, 7.0]]])
    colours = heat(values, 1.0)[0, :, 0].T
    expected = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.float32)
    assert torch.equal(colours, expected)


def test_main_directions_become_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    z = 0.01 * torch.randn(2, 8, 6, 5, generator=generator)
    z[:, 6] += 10 * torch.arange(30.0).view(6, 5)  # one channel that says nearly all
    colours = latent_colours(z)
    assert colours.shape == (2, 3, 6, 5) and colours.min() >= 0 and colours.max() <= 1
    red = colours[0, 0].flatten()
    assert bool((red.diff() > 0).all()), "the sign of a direction is that of its largest entry"
    assert torch.equal(latent_colours(z), colours)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20, 3e38])
def test_latents_of_any_size(size: float) -> None:
    z = torch.rand(2, 4, 6, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = latent_colours(z * size)
    assert torch.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    if size >= 1:
        torch.testing.assert_close(found, latent_colours(z), rtol=0, atol=1e-3)


def test_latents_without_three_directions() -> None:
    for z in (torch.zeros(1, 4, 3, 3), torch.randn(1, 1, 4, 4), torch.full((1, 4, 2, 2), float("nan"))):
        colours = latent_colours(z)
        assert colours.shape == (1, 3, *z.shape[2:]) and torch.isfinite(colours).all()


def test_posterior_and_error() -> None:
    shown = posterior_image(torch.randn(2, 4, 5, 6), torch.zeros(2, 4, 5, 6), scale=2)
    assert shown.shape == (2, 3, 10, 24)
    assert torch.equal(shown[..., 12:], torch.ones(2, 3, 10, 12)), "an even deviation is the largest everywhere"
    a = torch.rand(1, 3, 4, 4)
    assert not error_map(a, a).any()
    assert torch.equal(error_map(a, a + 0.2), torch.ones(1, 3, 4, 4))
