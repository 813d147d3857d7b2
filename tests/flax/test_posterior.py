"""FlaxDiagonalGaussianDistribution and the outputs, against the torch class and the formulas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given.inputs import latent

from vae_core import DiagonalGaussianDistribution, ShapeError
from vae_core.flax import FlaxAutoencoderKLOutput, FlaxDecoderOutput, FlaxDiagonalGaussianDistribution

KEY = jax.random.PRNGKey(3)


def both(
    scale: float = 1.0, seed: int = 2, deterministic: bool = False
) -> tuple[FlaxDiagonalGaussianDistribution, DiagonalGaussianDistribution]:
    moments = latent(2, 5, 3, channels=8, seed=seed) * scale
    ours = FlaxDiagonalGaussianDistribution(jnp.asarray(moments.numpy()), deterministic)
    return ours, DiagonalGaussianDistribution(moments, deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
def test_attributes(deterministic: bool) -> None:
    ours, theirs = both(scale=20, deterministic=deterministic)  # far enough for both ends of the clamp
    assert ours.logvar.min() == -30 and ours.logvar.max() == 20
    for name in ("parameters", "mean", "logvar", "std", "var"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name).numpy(), rtol=2e-6, atol=0)
    assert np.array_equal(ours.mode(), theirs.mode().numpy())


def test_divergence_and_likelihood() -> None:
    (ours, theirs), (our_other, their_other) = both(scale=20), both(seed=9)
    sample = latent(2, 5, 3, seed=4)
    array = jnp.asarray(sample.numpy())
    for mine, other in (
        (ours.kl(), theirs.kl()),
        (ours.kl(our_other), theirs.kl(their_other)),
        (our_other.nll(array), their_other.nll(sample)),
        (our_other.nll(array, axis=[1]), their_other.nll(sample, [1])),
    ):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-5, atol=1e-5)
    ours, _ = both(deterministic=True)
    assert ours.kl() == 0 and ours.nll(array) == 0


def test_samples() -> None:
    ours, _ = both()
    noise = jax.random.normal(KEY, ours.mean.shape)
    np.testing.assert_allclose(ours.sample(KEY), ours.mean + ours.std * noise, rtol=1e-6, atol=1e-6)
    assert np.array_equal(ours.sample(KEY), ours.sample(KEY))
    assert not np.array_equal(ours.sample(KEY), ours.sample(jax.random.PRNGKey(4)))
    exact, _ = both(deterministic=True)
    assert np.array_equal(exact.sample(KEY), exact.mean)
    half = FlaxDiagonalGaussianDistribution(ours.parameters.astype(jnp.bfloat16))
    assert half.sample(KEY).dtype == jnp.bfloat16


def test_it_crosses_transformations() -> None:
    ours, _ = both()
    doubled = jax.jit(lambda d: d.replace(parameters=2 * d.parameters))(ours)
    assert isinstance(doubled, FlaxDiagonalGaussianDistribution)
    np.testing.assert_allclose(doubled.mean, 2 * ours.mean)
    assert jax.jit(lambda d: d)(both(deterministic=True)[0]).deterministic
    stacked = jax.vmap(lambda m: FlaxDiagonalGaussianDistribution(m))(jnp.stack([ours.parameters] * 3))
    assert stacked.mean.shape == (3, 2, 4, 5, 3) and stacked.kl().shape == (3, 2)
    np.testing.assert_allclose(stacked.kl()[1], ours.kl(), rtol=1e-5)


def test_what_are_no_moments() -> None:
    for shape in ((2, 3, 4, 4), (8, 4)):
        moments = FlaxDiagonalGaussianDistribution(jnp.zeros(shape))
        for read in (moments.mode, moments.kl, lambda moments=moments: moments.sample(KEY)):
            with pytest.raises(ShapeError, match="even number of channels"):
                read()


def test_trees_of_it_with_other_things_in_place_of_moments() -> None:
    """Derivatives have the axes of what they are by after their own; a tree can be flattened into vectors."""
    ours, _ = both()

    def halved(x: Any) -> Any:
        return FlaxDiagonalGaussianDistribution(ours.parameters * x.mean())

    jacobian = jax.jacrev(halved)(jnp.ones((1, 3, 2, 2)))
    assert jacobian.parameters.shape == (*ours.parameters.shape, 1, 3, 2, 2)
    np.testing.assert_allclose(jacobian.parameters[..., 0, 0, 0, 0], ours.parameters / 12, rtol=1e-6)
    flat = jax.tree_util.tree_map(lambda leaf: leaf.reshape(-1), ours)
    assert flat.parameters.shape == (ours.parameters.size,)


def test_outputs() -> None:
    ours, _ = both()
    output = FlaxAutoencoderKLOutput(latent_dist=ours)
    assert output.latent_dist is output["latent_dist"] is output[0] is output.to_tuple()[0]
    decoded: Any = FlaxDecoderOutput(sample=jnp.ones(2))
    (sample,) = decoded
    assert sample is decoded.sample
    other = decoded.replace(sample=jnp.zeros(2))
    assert other.sample.sum() == 0 and decoded.sample.sum() == 2
    assert torch.equal(torch.tensor(np.asarray(jax.jit(lambda o: o)(other).sample)), torch.zeros(2))
