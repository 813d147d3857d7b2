"""PyTorch weights to Flax parameters and back, and through them every loader of `checkpoints`.

Exact both ways: layouts and names change, values and number types do not. Convolutions are [out, in, h, w] in torch
and [h, w, in, out] in Flax, projections [out, in] and [in, out]. Names are those of diffusers' Flax classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
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
from ..checkpoints.write import raw, text, write_in_folder
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from ..loading import plan_checkpoint
from ..pretrained_mixin import IGNORED_ARGUMENTS, given_config
from .dtypes import floating_type

__all__ = [
    "FLAX_WEIGHTS",
    "IGNORED_ARGUMENTS",
    "Plan",
    "cast",
    "check_params",
    "find_folder",
    "from_torch",
    "given_config",
    "has_torch_weights",
    "params_of_plan",
    "plan_checkpoint",
    "plan_folder",
    "read_config",
    "read_msgpack",
    "to_torch",
    "write_params",
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
    where `jax_enable_x64` is set, for 8-bit floats, which become bfloat16, and for FLUX.2's count of training steps,
    which becomes a float.

    Raises:
        CheckpointError: weights are missing, of other shapes or without values, or there are some that no model of
            this config has.
    """
    known, paths = spellings(config), flax_paths(config)
    weights = {known.get(key, key): weight for key, weight in state_dict.items() if FUSED not in key}
    for key in OPTIONAL & paths.keys() - weights.keys():
        weights[key] = torch.zeros((), dtype=torch.int64)
    _check_names("the state dict", set(weights), set(paths))
    absent = [key for key, weight in weights.items() if weight.is_meta]
    if absent:
        raise CheckpointError(
            f"{len(absent)} weights, such as {absent[0]}, have no values here: they are offloaded, or were never "
            f"loaded. Bring the model onto a device first."
        )
    arrays = {key: _to_flax(weight, key) for key, weight in weights.items()}
    shapes = {key: torch_shape(shape) for key, shape in _shapes_by_key(config).items()}
    _check_shapes("the state dict", {key: torch_shape(array.shape) for key, array in arrays.items()}, shapes)
    return unflatten_dict({paths[key]: array for key, array in arrays.items()})


def to_torch(params: Mapping[str, Any], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Parameters of FlaxAutoencoderKL to AutoencoderKL's state dict, on the CPU; the inverse of `from_torch`.

    Raises:
        CheckpointError: parameters are missing or of other shapes, or there are some that no model of this config has.
    """
    check_params(params, config)
    found = _flat(params)
    return {key: _to_torch(found[path], key) for key, path in flax_paths(config).items()}


def check_params(params: Mapping[str, Any], config: AutoencoderKLConfig, what: str = "params") -> None:
    """Raise CheckpointError unless these are the parameters of a model of this config: names, shapes, floats."""
    found = _shapes(params)
    needed = {"/".join(path): shape for path, shape in parameter_shapes(config).items()}
    _check_names(what, set(found), set(needed))
    _check_shapes(what, found, needed)
    for path, leaf in _flat(params).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise CheckpointError(f"{what}: {'/'.join(path)} has the type {dtype}. Give weights in floating point.")


@lru_cache(maxsize=16)
def parameter_shapes(config: AutoencoderKLConfig) -> Mapping[FlaxPath, tuple[int, ...]]:
    """Path of a parameter -> its shape, for every parameter of a model of this config."""
    from .autoencoder_kl import FlaxAutoencoderKL

    tree = jax.eval_shape(FlaxAutoencoderKL.from_config(config).init_weights, jax.random.PRNGKey(0))
    return {path: tuple(leaf.shape) for path, leaf in _flat(tree).items()}


def _shapes_by_key(config: AutoencoderKLConfig) -> dict[str, tuple[int, ...]]:
    shapes = parameter_shapes(config)
    return {key: shapes[path] for key, path in flax_paths(config).items()}


def _shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name of a parameter, as a path with slashes -> its shape."""
    return {"/".join(path): tuple(np.shape(leaf)) for path, leaf in _flat(params).items()}


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
    if weight.itemsize == 1:
        weight = weight.bfloat16()
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


def _check_shapes(what: str, found: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    wrong = sorted(name for name, shape in needed.items() if found[name] != shape)
    if wrong:
        name = wrong[0]
        replicated = all(found[name][1:] == needed[name] for name in wrong) and len(wrong) == len(needed)
        remedy = (
            "They have the axis of devices that replication adds: give those of one device."
            if replicated
            else "Use the config that belongs to these weights."
        )
        raise CheckpointError(
            f"{what}: {name} has the shape {found[name]} where {needed[name]} is needed ({len(wrong)} of "
            f"{len(needed)} differ). {remedy}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, whatever mappings (a FrozenDict) they were."""
    return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in params.items()}


def _flat(params: Mapping[str, Any]) -> dict[FlaxPath, Any]:
    if not isinstance(params, Mapping):
        raise CheckpointError(f"params are a {type(params).__name__}; give the nested dictionary that the model takes.")
    return flatten_dict(_plain(params))  # type: ignore[return-value]


def _counts(path: FlaxPath) -> bool:
    """Whether a parameter is FLUX.2's count of training steps, which 16 bits do not hold: it stays in float32."""
    return ".".join(path) in OPTIONAL


def cast(params: Mapping[str, Any], dtype: Any, mask: Any = None) -> dict[str, Any]:
    """A copy of the parameters in another type; where `mask`, a tree of booleans, is False they stay as they are."""

    def convert(path: Any, parameter: Array, wanted: bool = True) -> Array:
        keep = not wanted or _counts(tuple(entry.key for entry in path))
        return parameter if keep else jnp.asarray(parameter, dtype)

    return jax.tree_util.tree_map_with_path(convert, params, *([] if mask is None else [mask]))


# Reading.


def params_of_plan(plan: Plan, param_dtype: Any) -> dict[str, Any]:
    """The parameters that a checkpoint holds.

    Args:
        param_dtype: their type; None keeps the file's. (8-bit floats become bfloat16, which holds them exactly.)

    Raises:
        CheckpointError: a weight has the wrong shape or type, or weights are not finite.
        ConfigError: a `param_dtype` that is no floating-point type.
    """
    found = dtype_of(plan)  # raises for quantised weights
    wanted = found if param_dtype is None else parse_dtype(floating_type(param_dtype, "param_dtype").name)
    if wanted is None or wanted.itemsize == 1:
        wanted = torch.bfloat16
    weights = read_weights(plan, {key: torch_shape(shape) for key, shape in _shapes_by_key(plan.config).items()})
    return from_torch({key: w.to(wanted) if w.is_floating_point() else w for key, w in weights.items()}, plan.config)


def has_torch_weights(folder: Path) -> bool:
    """Whether a diffusers folder has weights in a PyTorch format."""
    return any(path.name.startswith(f"{WEIGHTS_STEM}.") for path in folder.iterdir())


def read_msgpack(file: Path, config: AutoencoderKLConfig, param_dtype: Any) -> dict[str, Any]:
    """The parameters in a file that Flax wrote, for a model of this config. `param_dtype` as for `params_of_plan`.

    Raises:
        CheckpointError: no such file, or it holds other parameters.
        ConfigError: a `param_dtype` that is no floating-point type.
    """
    wanted = None if param_dtype is None else floating_type(param_dtype, "param_dtype")
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
    optional = {path for path in parameter_shapes(config) if _counts(path)} - arrays.keys()
    arrays.update({path: jnp.zeros((), jnp.float32) for path in optional})
    check_params(unflatten_dict(arrays), config, file.name)
    for path, array in arrays.items():
        if array.ndim == 1 and not bool(jnp.isfinite(array).all()):
            raise CheckpointError(f"{file.name} has weights that are no finite numbers ({'/'.join(path)}).")
    if wanted is not None:
        arrays = {path: array if _counts(path) else array.astype(wanted) for path, array in arrays.items()}
    return unflatten_dict(arrays)


# Writing.


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
    content = {FLAX_WEIGHTS: raw(msgpack_serialize(jax.device_get(_plain(params))))} if flax_weights else {}
    if torch_weights or not flax_weights:
        weights = to_torch(params, config)
        write_folder(folder, weights, config, max_shard_size=max_shard_size, variant=variant, others=content)
        return
    config_json = text(json.dumps(config.to_dict(), indent=2) + "\n")
    write_in_folder(folder, {CONFIG_NAME: config_json, **content})
