"""What JAX is used for: jit, grad, vmap, and several devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from given.inputs import image, latent
from given.pairs import narrow
from given.twins import Model, Params, same_tree

from vae_core import ConfigError
from vae_core.flax import FlaxAutoencoderKL

SMALL = narrow(8, norm_num_groups=4)
KEY = jax.random.PRNGKey(0)


@pytest.fixture(scope="module")
def model() -> Model:
    return FlaxAutoencoderKL.from_config(SMALL)


@pytest.fixture(scope="module")
def params(model: Model) -> Params:
    return model.init_weights(KEY)


def test_fresh_parameters(model: Model, params: Params) -> None:
    assert same_tree(model.init_weights(KEY), params)
    one, other = (model.init_weights(key)["encoder"]["conv_in"]["kernel"] for key in jax.random.split(KEY))
    assert not np.array_equal(one, other)
    tiled = model.clone(sample_size=1024).enable_tiling().enable_slicing()
    assert same_tree(tiled.init_weights(KEY), params)
    cut = model.clone(tile_sample_min_size=4, tile_latent_min_size=2).enable_tiling().enable_slicing()
    made = jax.eval_shape(cut.init, KEY, jnp.zeros((2, 3, 16, 16)))["params"]  # Linen's own, on a larger batch
    assert jax.tree_util.tree_structure(made) == jax.tree_util.tree_structure(params)


@pytest.mark.thorough
def test_fresh_parameters_are_as_linens_own() -> None:
    model: Any = FlaxAutoencoderKL.from_config(narrow(16, 64, patch_size=(2, 2)))
    ours: Any = flatten_dict(model.init_weights(KEY))
    theirs: Any = flatten_dict(jax.eval_shape(model.init, KEY, jnp.zeros((1, 3, 8, 8)))["params"])
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in ours.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in theirs.items()
    }
    for path, leaf in ours.items():
        if path[-1] != "kernel":
            assert float(leaf.mean()) == (path[-1] in ("scale", "running_var")) and leaf.std() == 0
        elif leaf.size > 4000:
            usual = jax.nn.initializers.lecun_normal()(KEY, leaf.shape)
            assert float(leaf.std()) == pytest.approx(float(usual.std()), rel=0.05)
            assert float(abs(leaf).max()) == pytest.approx(float(abs(usual).max()), rel=0.05)


@pytest.mark.thorough
def test_jit_traces_once_per_shape(model: Model, params: Params) -> None:
    traced = []

    @jax.jit
    def roundtrip(params: Any, x: Any) -> Any:
        traced.append(x.shape)
        return model.apply({"params": params}, x)

    for seed in range(3):
        x = image(1, 8, 8, seed=seed).numpy()
        result = roundtrip(params, x)
        np.testing.assert_allclose(result.sample, model.apply({"params": params}, x).sample, atol=1e-5)
    roundtrip(jax.tree_util.tree_map(lambda leaf: leaf * 0.5, params), x)
    assert traced == [(1, 3, 8, 8)]
    roundtrip(params, image(1, 8, 12).numpy())
    assert traced == [(1, 3, 8, 8), (1, 3, 8, 12)]


def test_the_module_is_a_static_argument(model: Model, params: Params) -> None:
    traced = []

    def encode(model: Model, params: Any, x: Any) -> Any:
        traced.append(model)
        return model.apply({"params": params}, x, method=model.encode, return_dict=False)

    compiled = jax.jit(encode, static_argnums=0)
    x = image(1, 8, 8).numpy()
    for each in (model, FlaxAutoencoderKL.from_config(SMALL), model.enable_tiling().disable_tiling()):
        assert len(compiled(each, params, x)) == 1
    assert len(traced) == 1


@pytest.mark.thorough
def test_a_training_step_lowers_the_loss(model: Model, params: Params) -> None:
    x = image(4, 8, 8).numpy()

    def loss(params: Any, key: Any) -> Any:
        variables = {"params": params}
        posterior = model.apply(variables, x, method=model.encode).latent_dist
        decoded = model.apply(variables, posterior.sample(key), method=model.decode).sample
        return ((decoded - x) ** 2).mean() + 1e-4 * posterior.kl().mean()

    @jax.jit
    def step(params: Any, key: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, key)
        return value, gradients, jax.tree_util.tree_map(lambda p, g: p - 0.05 * g, params, gradients)

    losses = []
    for key in jax.random.split(KEY, 8):
        value, gradients, params = step(params, key)
        losses.append(float(value))
    # That of keys, alone, is zero: softmax does not see what all scores of a query have in common.
    zero = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if float(jnp.abs(leaf).max()) < 1e-9
    ]
    assert all("['key']['bias']" in path for path in zero), zero
    assert losses[-1] < 0.9 * losses[0]


def test_vmap(model: Model, params: Params) -> None:
    x = image(6, 8, 8).numpy()

    @jax.jit
    def both(x: Any) -> Any:
        def encode(x: Any) -> Any:
            return model.apply({"params": params}, x, method=model.encode)

        return encode(x), jax.vmap(encode)(x.reshape(3, 2, *x.shape[1:]))

    whole, mapped = both(x)
    mean, kl = mapped.latent_dist.mode(), mapped.latent_dist.kl()
    assert mean.shape == (3, 2, 4, 8, 8) and kl.shape == (3, 2)
    np.testing.assert_allclose(mean.reshape(whole.latent_dist.mode().shape), whole.latent_dist.mode(), atol=1e-5)
    np.testing.assert_allclose(kl.reshape(6), whole.latent_dist.kl(), rtol=1e-4)


def test_draws_take_their_key(model: Model, params: Params) -> None:
    x = image(1, 8, 8).numpy()

    @jax.jit
    def draw(key: Any) -> Any:
        return model.apply({"params": params}, x, sample_posterior=True, rngs={"gaussian": key}).sample

    first, again, other = draw(KEY), draw(KEY), draw(jax.random.PRNGKey(1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    with pytest.raises(ConfigError, match='sample_posterior=True needs a key. Pass rngs={"gaussian"'):
        model.apply({"params": params}, x, sample_posterior=True)
    (as_tuple,) = model.apply({"params": params}, x, sample_posterior=True, return_dict=False, rngs={"gaussian": KEY})
    np.testing.assert_allclose(as_tuple, first, atol=1e-5)


def test_dropout(model: Model, params: Params) -> None:
    """Only if asked for by both the rate and the flag; then by its key."""
    z = latent(1, 4, 4).numpy()

    def decode(model: Model, seed: int | None, deterministic: bool = False) -> np.ndarray:
        rngs = None if seed is None else {"dropout": jax.random.PRNGKey(seed)}
        options = {"method": model.decode, "deterministic": deterministic, "rngs": rngs}
        return np.asarray(model.apply({"params": params}, z, **options).sample)

    plain, dropping = decode(model, None, True), model.clone(dropout=0.3)
    assert np.array_equal(decode(model, None), plain)
    assert np.array_equal(decode(dropping, None, True), plain)
    assert np.array_equal(decode(dropping, 0), decode(dropping, 0))
    for one, other in ((decode(dropping, 0), plain), (decode(dropping, 0), decode(dropping, 1))):
        assert np.abs(one - other).max() > 1e-2


@pytest.fixture(scope="module")
def on_four_devices() -> dict[str, Any]:
    """What `devices.py` measures in a process that takes the CPU for four devices."""
    root = Path(__file__).resolve().parents[2]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}"}
    script = str(Path(__file__).with_name("devices.py"))
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=root, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.thorough
def test_sharding_over_devices(on_four_devices: dict[str, Any]) -> None:
    assert on_four_devices["devices"] == on_four_devices["shards"] == 4
    assert on_four_devices["sharded difference"] < 1e-5


def test_pmap_over_devices(on_four_devices: dict[str, Any]) -> None:
    assert on_four_devices["pmapped difference"] < 1e-5
    assert on_four_devices["gradient difference"] < 1e-5
    assert on_four_devices["replicas differ"] == 0
