"""The same numbers as diffusers v0.26.3's own FlaxAutoencoderKL.

It needs an old huggingface_hub, and so runs in an environment of its own:

    python -m venv old && old/bin/pip install "diffusers==0.26.3" "huggingface_hub<0.26" jax flax
    SEAMLESS_VAE_DIFFUSERS_FLAX=old/bin/python pytest tests/flax/test_diffusers_flax.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from given.inputs import image, latent
from given.twins import same_tree, twins

from vae_core.flax import FlaxAutoencoderKL

PYTHON = os.environ.get("SEAMLESS_VAE_DIFFUSERS_FLAX")


@pytest.mark.skipif(
    not PYTHON, reason="SEAMLESS_VAE_DIFFUSERS_FLAX names no Python that has diffusers==0.26.3 and flax"
)
@pytest.mark.parametrize("name", ["sd", "f4"])
def test_their_class_on_our_parameters(name: str, tmp_path: Path) -> None:
    _, model, params = twins(name)
    model.save_pretrained(tmp_path / "ours", params, safe_serialization=False)
    factor = model.config.downscale_factor
    x, z = image(2, 3 * factor, 5 * factor).numpy(), latent(2, 3, 5).numpy()
    np.savez(tmp_path / "inputs.npz", image=x, z=z)
    script = Path(__file__).with_name("diffusers_flax.py")
    arguments = (tmp_path / "ours", tmp_path / "inputs.npz", tmp_path / "results.npz", tmp_path / "theirs")
    command = [str(PYTHON), str(script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]

    @jax.jit
    def run(params, x, z):
        posterior = model.apply({"params": params}, x, method=model.encode).latent_dist
        return {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "kl": posterior.kl(),
            "decoded": model.apply({"params": params}, z, method=model.decode).sample,
            "forward": model.apply({"params": params}, x).sample,
        }

    theirs = np.load(tmp_path / "results.npz")
    for key, ours in run(params, x, z).items():
        assert ours.shape == theirs[key].shape and ours.std() > 0.01
        np.testing.assert_allclose(ours, theirs[key], rtol=1e-5, atol=3e-5, err_msg=key)
    loaded, again = FlaxAutoencoderKL.from_pretrained(tmp_path / "theirs", from_pt=False)
    assert loaded.config == model.config and same_tree(again, params)
