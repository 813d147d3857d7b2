"""Twins: our model in torch, and the same in Flax with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from given.pairs import model as torch_model
from vae_core import AutoencoderKL
from vae_core.flax import FlaxAutoencoderKL, from_torch

Params = dict[str, Any]
Model = Any  # FlaxAutoencoderKL, whose `apply` has a type that fits no call


def twin_of(vae: AutoencoderKL, **fields: Any) -> tuple[Model, Params]:
    """The Flax module, with some fields of its own, and the parameters of a model."""
    return FlaxAutoencoderKL.from_config(vae.config).clone(**fields), from_torch(vae.state_dict(), vae.config)


def twins(name: str = "sd", **fields: Any) -> tuple[AutoencoderKL, Model, Params]:
    """(torch, Flax, its parameters) for an entry of `pairs.CONFIGS`, some fields changed."""
    vae = torch_model(name, **fields)
    return (vae, *twin_of(vae))


def jitted(model: Model, method: str, **arguments: Any) -> Callable[[Params, Any], Any]:
    """(params, x) -> result of a method, compiled: moments of `encode`, images of `decode` and of a call."""

    def run(params: Params, x: Any) -> Any:
        result = model.apply({"params": params}, x, method=getattr(model, method), **arguments)
        return result.latent_dist.parameters if method == "encode" else result.sample

    return jax.jit(run)


def difference(ours: Any, expected: torch.Tensor) -> float:
    """The largest difference of a JAX array to a tensor of the same shape and type."""
    ours = np.asarray(ours)
    assert ours.shape == tuple(expected.shape) and str(ours.dtype) == str(expected.dtype).removeprefix("torch.")
    assert expected.float().std() > 0.01, "a flat result proves nothing"
    return float(np.abs(ours.astype(np.float64) - expected.double().numpy()).max())


def same_tree(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are equal bit for bit, types included."""
    if jax.tree_util.tree_structure(a) != jax.tree_util.tree_structure(b):
        return False
    pairs = zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
