"""Raw z to diffusion latents and back, against literals and diffusers' own steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import Flux2Pipeline
from given.inputs import latent

from vae_core import AutoencoderKLConfig, ConfigError, ShapeError
from vae_core.latent import from_diffusion, logvar_to_diffusion, pack, to_diffusion, unpack

SD = AutoencoderKLConfig()
SD3 = AutoencoderKLConfig(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
PLAYGROUND = AutoencoderKLConfig(
    scaling_factor=0.5, latents_mean=(-1.6574, 1.886, -1.383, 2.5155), latents_std=(8.4927, 5.9022, 6.5498, 5.2299)
)
FLUX2 = AutoencoderKLConfig(latent_channels=3, patch_size=(2, 2))


def statistics() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "running_mean": torch.randn(12, generator=generator),
        "running_var": torch.rand(12, generator=generator) + 0.1,
    }


def test_scale() -> None:
    assert torch.equal(to_diffusion(torch.full((1, 4, 1, 1), 2.0), SD), torch.full((1, 4, 1, 1), 0.3643))
    z = latent(2, 3, 5)
    assert torch.equal(to_diffusion(z, SD), z * 0.18215)
    assert torch.equal(from_diffusion(z, SD), z / 0.18215)


def test_shift_comes_off_before_scaling() -> None:
    z = latent(2, 3, 5, 16)
    assert torch.equal(to_diffusion(z, SD3), (z - 0.0609) * 1.5305)
    assert torch.equal(from_diffusion(z, SD3), z / 1.5305 + 0.0609)


def test_playground_normalises_each_channel() -> None:
    z = torch.tensor([-1.6574, 1.886 + 5.9022, -1.383 - 6.5498, 2.5155 + 2 * 5.2299]).view(1, 4, 1, 1)
    expected = torch.tensor([0.0, 0.5, -0.5, 1.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(to_diffusion(z, PLAYGROUND), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(from_diffusion(expected, PLAYGROUND), z, rtol=0, atol=1e-6)


def test_packing_order() -> None:
    z = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    packed = pack(z)
    assert packed.shape == (1, 8, 2, 2)
    # channel c, then the row's parity, then the column's
    assert packed[0, :, 0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert packed[0, :, 1, 0].tolist() == [8, 9, 12, 13, 24, 25, 28, 29]
    assert torch.equal(unpack(packed), z)
    assert torch.equal(unpack(pack(latent(2, 6, 9, 5), (3, 1)), (3, 1)), latent(2, 6, 9, 5))


def test_flux2_is_diffusers() -> None:
    z, stats = latent(2, 6, 10, 3), statistics()
    assert torch.equal(pack(z), Flux2Pipeline._patchify_latents(z))
    assert torch.equal(unpack(pack(z)), Flux2Pipeline._unpatchify_latents(pack(z)))
    std = torch.sqrt(stats["running_var"].view(1, -1, 1, 1) + 1e-4)
    mean = stats["running_mean"].view(1, -1, 1, 1)
    assert torch.equal(to_diffusion(z, FLUX2, **stats), (pack(z) - mean) / std)
    assert torch.equal(from_diffusion(pack(z), FLUX2, **stats), unpack(pack(z) * std + mean))


def test_flux2_epsilon_matters() -> None:
    stats = {"running_mean": torch.zeros(12), "running_var": torch.zeros(12)}
    assert to_diffusion(torch.ones(1, 3, 2, 2), FLUX2, **stats).flatten().tolist() == pytest.approx([100.0] * 12)


def test_flux2_is_what_the_batch_norm_of_the_model_does() -> None:
    from given.pairs import model

    vae: Any = model("flux2")
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    z = latent(1, 4, 6, 8)
    result = to_diffusion(z, vae.config, vae.bn.running_mean, vae.bn.running_var)
    torch.testing.assert_close(result, vae.bn(pack(z)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [SD, SD3, PLAYGROUND, FLUX2], ids=["sd", "sd3", "playground", "flux2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_there_and_back(config: AutoencoderKLConfig, dtype: torch.dtype) -> None:
    z = latent(2, 4, 6, config.latent_channels).to(dtype)
    stats = statistics() if config.patch_size else {}
    scaled = to_diffusion(z, config, **stats)
    again = from_diffusion(scaled, config, **stats)
    assert scaled.dtype == again.dtype == dtype
    largest = max(float(z.abs().max()), *(abs(mean) for mean in config.latents_mean or (0.0,)))
    assert (again - z).abs().max() <= 4 * torch.finfo(dtype).eps * largest  # four roundings
    assert torch.equal(z, latent(2, 4, 6, config.latent_channels).to(dtype)), "the argument is left as it was"


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 16, 8, 8\).*\[B, 4, h, w\]"):
        to_diffusion(latent(channels=16), SD)
    with pytest.raises(ShapeError, match=r"\[B, 12, h, w\]"):
        from_diffusion(latent(channels=3), FLUX2, **statistics())
    with pytest.raises(ShapeError, match="7 by 8 pixels cannot be packed by 2x2"):
        pack(latent(1, 7, 8))
    with pytest.raises(ShapeError, match="6 channels, which is not a multiple of 4"):
        unpack(latent(channels=6))
    with pytest.raises(ConfigError, match=r"vae\.bn\.running_mean"):
        to_diffusion(latent(1, 4, 4, 3), FLUX2)


@pytest.mark.parametrize("config", [SD, SD3, PLAYGROUND, FLUX2], ids=["SD", "SD3", "Playground", "FLUX.2"])
def test_log_variance_goes_with_its_latent(config: AutoencoderKLConfig) -> None:
    """Deviations scale as differences of latents do."""
    given = statistics() if config.has_batch_norm else {}
    mean, logvar = (latent(channels=config.latent_channels, seed=seed) for seed in (1, 2))
    moved = to_diffusion(mean + torch.exp(0.5 * logvar), config, **given) - to_diffusion(mean, config, **given)
    found = logvar_to_diffusion(logvar, config, given.get("running_var"))
    torch.testing.assert_close(torch.exp(0.5 * found), moved, rtol=1e-4, atol=1e-5)
