"""Checkpoints to FlaxAutoencoderKL: one function for every format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..loading import plan_checkpoint
from ..pretrained_mixin import GivenConfig
from .autoencoder_kl import FlaxAutoencoderKL


def load_vae(
    path: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    variant: str | None = None,
    config: GivenConfig = None,
    **overrides: Any,
) -> tuple[FlaxAutoencoderKL, dict[str, Any]]:
    """Load the module and its parameters from any checkpoint that `vae_core.load_vae` takes, or from Flax's msgpack.

    Args:
        path: a diffusers folder, a pipeline's folder, a single file, an index of shards, or a `.msgpack` of Flax
            beside its `config.json` or with `config`.
        dtype: of the computation.
        param_dtype: of the parameters; None keeps the file's.
        variant, config, overrides: as for `vae_core.load_vae`.

    Raises:
        CheckpointError: no whole AutoencoderKL there; says what it seems to be and what to do.
        UnsafeCheckpointError: a pickle that asks for code to be run.
        ConfigError: an override, a config or a dtype that no AutoencoderKL has.
    """
    path = Path(path)
    types = {"dtype": dtype, "param_dtype": param_dtype}
    if path.suffix == ".msgpack":
        return FlaxAutoencoderKL.from_single_file(path, config=config, **types, **overrides)
    if path.is_dir() and config is None:
        return FlaxAutoencoderKL.from_pretrained(path, variant=variant, **types, **overrides)
    return FlaxAutoencoderKL.load_plan(plan_checkpoint(path, variant, config, overrides), **types)
