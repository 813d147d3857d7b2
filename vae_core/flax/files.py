"""Parameters read from checkpoints and from Flax's msgpack, and written as either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import unflatten_dict

from ..checkpoints.build import dtype_of, parse_dtype, read_weights
from ..checkpoints.plan import CheckpointPlan
from ..checkpoints.pretrained import CONFIG_NAME, WEIGHTS_STEM, write_folder
from ..checkpoints.weight_names import FLAX_WEIGHTS
from ..checkpoints.write import raw, text, write_in_folder
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, in_one_line
from ..regular_files import open_regular
from .convert import as_dicts, check_params, counts_steps, flat, from_torch, to_torch, torch_shapes
from .dtypes import floating_type
from .network import parameter_shapes


def params_of_plan(plan: CheckpointPlan, param_dtype: Any) -> dict[str, Any]:
    """The parameters in a checkpoint.

    Args:
        param_dtype: their type; None keeps the file's. (8-bit floats become bfloat16, which represents them exactly.)

    Raises:
        CheckpointError: a weight has the wrong shape or type, or weights are not finite.
        ConfigError: a `param_dtype` that is not a floating-point type.
    """
    found = dtype_of(plan)  # raises for quantised weights
    wanted = found if param_dtype is None else parse_dtype(floating_type(param_dtype, "param_dtype").name)
    if wanted is None or wanted.itemsize == 1:
        wanted = torch.bfloat16
    weights = read_weights(plan, torch_shapes(plan.config))
    return from_torch({key: w.to(wanted) if w.is_floating_point() else w for key, w in weights.items()}, plan.config)


def has_torch_weights(folder: Path) -> bool:
    """Whether a diffusers folder has weights in a PyTorch format."""
    return any(path.name.startswith(f"{WEIGHTS_STEM}.") for path in folder.iterdir())


def read_msgpack(file: Path, config: AutoencoderKLConfig, param_dtype: Any) -> dict[str, Any]:
    """The parameters in a file that Flax wrote, for a model of this config. `param_dtype` as for `params_of_plan`.

    Raises:
        CheckpointError: no such file, or it has other parameters.
        ConfigError: a `param_dtype` that is not a floating-point type.
    """
    wanted = None if param_dtype is None else floating_type(param_dtype, "param_dtype")
    try:
        with open_regular(file) as opened:
            found = opened.read()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {in_one_line(error)}. Check the path.") from None
    try:
        content: Any = msgpack_restore(found)
        arrays = {path: jnp.asarray(value) for path, value in flat(content).items()}
    except Exception as error:  # msgpack has many, and other files raise still others
        raise CheckpointError(
            f"{file.name} does not contain Flax parameters ({type(error).__name__}: {in_one_line(error)}). If it is a "
            f"git-lfs pointer, run `git lfs pull`; else download it again."
        ) from None
    optional = {path for path in parameter_shapes(config) if counts_steps(path)} - arrays.keys()
    arrays.update({path: jnp.zeros((), jnp.float32) for path in optional})
    check_params(unflatten_dict(arrays), config, file.name)
    for path, array in arrays.items():
        if array.ndim == 1 and not bool(jnp.isfinite(array).all()):
            raise CheckpointError(f"{file.name} has weights that are not finite ({'/'.join(path)}).")
    if wanted is not None:
        arrays = {path: array if counts_steps(path) else array.astype(wanted) for path, array in arrays.items()}
    return unflatten_dict(arrays)


def write_params(
    folder: Path,
    params: Mapping[str, Any],
    config: AutoencoderKLConfig,
    *,
    torch_weights: bool,
    flax_weights: bool,
    max_shard_size: int | str = "10GB",
    variant: str | None = None,
) -> None:
    """Write `config.json` and the parameters, as safetensors as AutoencoderKL does, as Flax's msgpack, or as both.

    What is there is replaced only when everything has been written.
    """
    content = {FLAX_WEIGHTS: raw(msgpack_serialize(jax.device_get(as_dicts(params))))} if flax_weights else {}
    if torch_weights or not flax_weights:
        weights = to_torch(params, config)
        write_folder(folder, weights, config, max_shard_size=max_shard_size, variant=variant, others=content)
        return
    config_json = text(json.dumps(config.to_dict(), indent=2) + "\n")
    write_in_folder(folder, {CONFIG_NAME: config_json, **content})
