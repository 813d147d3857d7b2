"""Raw z to diffusion latents and back, as `vae_core.latent` does it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given.inputs import latent

import vae_core.latent
from vae_core import AutoencoderKLConfig, ConfigError, ShapeError
from vae_core.flax import from_diffusion, to_diffusion

FAMILIES: dict[str, dict[str, Any]] = {
    "SD": {"scaling_factor": 0.18215},
    "SD3": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "Playground": {"scaling_factor": 0.5, "latents_mean": (0.1, -0.2, 0.3, 1.0), "latents_std": (1.0, 2.0, 0.5, 3.0)},
    "FLUX.2": {"patch_size": (2, 2)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways(family: str) -> None:
    config = AutoencoderKLConfig(**FAMILIES[family])
    z = latent(2, 4, 6)
    mean, variance = torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16)
    params = {"bn": {"running_mean": jnp.asarray(mean.numpy()), "running_var": jnp.asarray(variance.numpy())}}
    ours, expected = (
        to_diffusion(jnp.asarray(z.numpy()), config, params),
        vae_core.latent.to_diffusion(z, config, mean, variance),
    )
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(from_diffusion(ours, config, params), z.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_types_stay(family: str) -> None:
    """As in torch: z in bfloat16 is not widened by constants or statistics in float32."""
    config = AutoencoderKLConfig(**FAMILIES[family])
    params = {"bn": {"running_mean": jnp.zeros(16), "running_var": jnp.ones(16)}}
    scaled = to_diffusion(jnp.asarray(latent(2, 4, 6).numpy(), jnp.bfloat16), config, params)
    assert scaled.dtype == from_diffusion(scaled, config, params).dtype == jnp.bfloat16


def test_what_does_not_fit() -> None:
    plain, flux2 = AutoencoderKLConfig(), AutoencoderKLConfig(patch_size=(2, 2))
    for call, error, says in (
        (lambda: to_diffusion(jnp.zeros((1, 16, 4, 4)), plain), ShapeError, r"\[B, 4, h, w\]"),
        (lambda: from_diffusion(jnp.zeros((1, 4, 4, 4)), flux2), ShapeError, r"\[B, 16, h, w\]"),
        (lambda: to_diffusion(jnp.zeros((1, 4, 4, 4)), flux2), ConfigError, "Pass the model's params"),
        (lambda: to_diffusion(jnp.zeros((1, 4, 4, 4)), flux2, {"encoder": {}}), ConfigError, "Pass the model's params"),
        (
            lambda: to_diffusion(
                jnp.zeros((1, 4, 3, 4)), flux2, {"bn": dict.fromkeys(("running_mean", "running_var"), jnp.ones(16))}
            ),
            ShapeError,
            "cannot be packed by 2x2",
        ),
    ):
        with pytest.raises(error, match=says):
            call()
