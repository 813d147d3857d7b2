"""PyTorch weights to Flax parameters and back, and through them every loader of `checkpoints`.

Exact both ways: layouts and names change, values and number types do not. Convolutions are [out, in, h, w] in torch
and [h, w, in, out] in Flax, projections [out, in] and [in, out]. Names are those of diffusers' Flax classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from torch import Tensor

from ..checkpoints.build import dtype_of, parse_dtype, read_weights
from ..checkpoints.key_map import OPTIONAL, is_attention_projection, ldm_names, spellings
from ..checkpoints.plan import Plan
from ..checkpoints.pretrained import CONFIG_NAME, WEIGHTS_STEM, find_folder, plan_folder, read_config, write_folder
from ..checkpoints.write import write_files, write_text
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from ..loading import plan_checkpoint
from ..pretrained_mixin import IGNORED_ARGUMENTS

__all__ = [
    "FLAX_WEIGHTS",
    "IGNORED_ARGUMENTS",
    "Plan",
    "find_folder",
    "from_torch",
    "has_torch_weights",
    "params_of_plan",
    "plan_checkpoint",
    "plan_folder",
    "read_config",
    "read_msgpack",
    "to_shapes",
    "to_torch",
    "write_msgpack",
    "write_torch_folder",
]

FLAX_WEIGHTS = "diffusion_flax_model.msgpack"
NORMS = ("norm1", "norm2", "group_norm", "conv_norm_out")
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
FUSED = ".to_qkv."  # made of three others by `fuse_qkv_projections`

FlaxPath = tuple[str, ...]


def flax_paths(config: AutoencoderKLConfig) -> dict[str, FlaxPath]:
    """Key of a weight in AutoencoderKL's state dict -> its path in the parameters of FlaxAutoencoderKL."""
    return {key: _flax_path(key) for key in ldm_names(config)}


def _flax_path(key: str) -> FlaxPath:
    *modules, part = key.split(".")
    if modules == ["bn"]:
        return ("bn", part)
    path: list[str] = []
    for name in modules:
        if name.isdigit():
            path[-1] += f"_{name}"
        else:
            path.append(name)
    module = path.pop()
    leaf = part if part == "bias" else "scale" if module in NORMS else "kernel"
    return (*path, ATTENTION.get(module, module), leaf)


def from_torch(state_dict: Mapping[str, Tensor], config: AutoencoderKLConfig) -> dict[str, Any]:
    """AutoencoderKL's state dict to the parameters of FlaxAutoencoderKL, on JAX's default device.

    Keys may be in any of the spellings that checkpoints have. Number types stay, but for float64, which JAX has only
    where `jax_enable_x64` is set, and for FLUX.2's count of training steps, which becomes a float.

    Raises:
        CheckpointError: weights are missing, or there are some that no model of this config has.
    """
    known, paths = spellings(config), flax_paths(config)
    weights = {known.get(key, key): weight for key, weight in state_dict.items() if FUSED not in key}
    for key in OPTIONAL & paths.keys() - weights.keys():
        weights[key] = torch.zeros((), dtype=torch.int64)
    _check_names("the state dict", set(weights), set(paths))
    return unflatten_dict({paths[key]: _to_flax(weight, key) for key, weight in weights.items()})


def to_torch(params: Mapping[str, Any], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Parameters of FlaxAutoencoderKL to AutoencoderKL's state dict, on the CPU; the inverse of `from_torch`.

    Raises:
        CheckpointError: parameters are missing, or there are some that no model of this config has.
    """
    found = _flat(params)
    paths = flax_paths(config)
    _check_names("params", {"/".join(path) for path in found}, {"/".join(path) for path in paths.values()})
    return {key: _to_torch(found[path], key) for key, path in paths.items()}


def to_shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name of a parameter, as a path with slashes -> its shape."""
    return {"/".join(path): tuple(leaf.shape) for path, leaf in _flat(params).items()}


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in torch of a parameter's shape in Flax."""
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)
    return shape[::-1]


def _to_flax(weight: Tensor, key: str) -> Array:
    weight = weight.detach().cpu()
    if is_attention_projection(key) and weight.ndim == 4:
        weight = weight[:, :, 0, 0]  # LDM's 1x1 kernels: matrices
    if not weight.is_floating_point():
        weight = weight.float()
    is_bfloat16 = weight.dtype == torch.bfloat16  # numpy has it from JAX alone
    array = weight.view(torch.int16).numpy().view(jnp.bfloat16) if is_bfloat16 else weight.numpy()
    return jnp.array(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def _to_torch(parameter: Array, key: str) -> Tensor:
    array = np.asarray(parameter)
    array = np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T, order="C")
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array).to(torch.int64) if key in OPTIONAL else torch.from_numpy(array)


def _check_names(what: str, found: set[str], needed: set[str]) -> None:
    missing, unknown = sorted(needed - found), sorted(found - needed)
    if missing or unknown:
        parts = [f"lacks {len(missing)} of {len(needed)} weights ({_some(missing)})"] if missing else []
        parts += [f"has {len(unknown)} that the model has not ({_some(unknown)})"] if unknown else []
        raise CheckpointError(f"{what} {' and '.join(parts)}. Use the config that belongs to these weights.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, whatever mappings (a FrozenDict) they were."""
    return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in params.items()}


def _flat(params: Mapping[str, Any]) -> dict[FlaxPath, Any]:
    return flatten_dict(_plain(params))  # type: ignore[return-value]


# Reading.


def params_of_plan(plan: Plan, expected: Mapping[str, Any], param_dtype: Any) -> dict[str, Any]:
    """The parameters that a checkpoint holds.

    Args:
        expected: the parameters' tree, of anything with a shape.
        param_dtype: their type; None keeps the file's. (8-bit floats become bfloat16, which holds them exactly.)

    Raises:
        CheckpointError: a weight has the wrong shape or type, or weights are not finite.
    """
    found = dtype_of(plan)  # raises for quantised weights
    wanted = found if param_dtype is None else parse_dtype(str(jnp.dtype(param_dtype)))
    if wanted is None or wanted.itemsize == 1:
        wanted = torch.bfloat16
    leaves = _flat(expected)
    shapes = {key: torch_shape(leaves[path].shape) for key, path in flax_paths(plan.config).items()}
    weights = read_weights(plan, shapes)
    return from_torch({key: w.to(wanted) if w.is_floating_point() else w for key, w in weights.items()}, plan.config)


def has_torch_weights(folder: Path) -> bool:
    """Whether a diffusers folder has weights in a PyTorch format."""
    return any(path.name.startswith(f"{WEIGHTS_STEM}.") for path in folder.iterdir())


def read_msgpack(file: Path, expected: Mapping[str, Any], param_dtype: Any) -> dict[str, Any]:
    """The parameters in a file that Flax wrote. Arguments as for `params_of_plan`.

    Raises:
        CheckpointError: no such file, or it holds other parameters.
    """
    try:
        content: Any = msgpack_restore(file.read_bytes())
        arrays = {path: jnp.asarray(value) for path, value in _flat(content).items()}
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}. Check the path.") from None
    except Exception as error:  # msgpack has many, and so has what is no msgpack
        raise CheckpointError(
            f"{file.name} holds no Flax parameters ({type(error).__name__}: {error}). If it is a git-lfs pointer, "
            f"run `git lfs pull`; else download it again."
        ) from None
    leaves = _flat(expected)
    optional = {path: leaf for path, leaf in leaves.items() if ".".join(path) in OPTIONAL and path not in arrays}
    arrays.update({path: jnp.zeros(leaf.shape) for path, leaf in optional.items()})
    _check_names(file.name, {"/".join(path) for path in arrays}, {"/".join(path) for path in leaves})
    for path, array in arrays.items():
        if array.shape != leaves[path].shape:
            raise CheckpointError(
                f"{file.name}: {'/'.join(path)} has the shape {array.shape} where {leaves[path].shape} is needed. "
                f"Use the config that belongs to these weights."
            )
        if array.ndim == 1 and not bool(jnp.isfinite(array).all()):
            raise CheckpointError(f"{file.name} has weights that are no finite numbers ({'/'.join(path)}).")
    return unflatten_dict({p: a if param_dtype is None else a.astype(param_dtype) for p, a in arrays.items()})


# Writing.


def write_msgpack(folder: Path, params: Mapping[str, Any], config: AutoencoderKLConfig) -> None:
    """Write `config.json` and the parameters as Flax does."""
    content = msgpack_serialize(jax.device_get(_plain(params)))
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_files({folder / CONFIG_NAME: write_text(text), folder / FLAX_WEIGHTS: lambda path: path.write_bytes(content)})


def write_torch_folder(
    folder: Path,
    params: Mapping[str, Any],
    config: AutoencoderKLConfig,
    max_shard_size: int | str,
    variant: str | None,
) -> None:
    """Write `config.json` and safetensors as AutoencoderKL does."""
    write_folder(folder, to_torch(params, config), config, max_shard_size=max_shard_size, variant=variant)
