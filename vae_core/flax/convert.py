"""PyTorch weights to Flax parameters and back.

Exact both ways: layouts and names change, values and number types do not. Convolutions are [out, in, h, w] in torch
and [h, w, in, out] in Flax, projections [out, in] and [in, out]. Names are those of diffusers' Flax classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from torch import Tensor

from ..checkpoints.key_map import FUSED, OPTIONAL, is_attention_projection, ldm_names, spellings, with_counters
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from .layers import ParameterPath
from .network import parameter_shapes

NORMS = ("norm1", "norm2", "group_norm", "conv_norm_out")
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
_Shape = tuple[int, ...]


def flax_paths(config: AutoencoderKLConfig) -> dict[str, ParameterPath]:
    """Key of a weight in AutoencoderKL's state dict -> its path in the parameters of FlaxAutoencoderKL."""
    return {key: _flax_path(key) for key in ldm_names(config)}


def _flax_path(key: str) -> ParameterPath:
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
    known = spellings(config)
    paths = flax_paths(config)
    weights = {known.get(key, key): weight for key, weight in state_dict.items() if FUSED not in key}
    weights = with_counters(weights, paths)
    _check_names("the state dict", set(weights), set(paths))
    absent = [key for key, weight in weights.items() if weight.is_meta]
    if absent:
        raise CheckpointError(
            f"{len(absent)} weights, such as {absent[0]}, have no values here: they are offloaded, or were never "
            f"loaded. Bring the model onto a device first."
        )
    arrays = {key: _to_flax(weight, key) for key, weight in weights.items()}
    found = {key: torch_shape(array.shape) for key, array in arrays.items()}
    _check_shapes("the state dict", found, torch_shapes(config))
    return unflatten_dict({paths[key]: array for key, array in arrays.items()})


def to_torch(params: Mapping[str, Any], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Parameters of FlaxAutoencoderKL to AutoencoderKL's state dict, on the CPU; the inverse of `from_torch`.

    Raises:
        CheckpointError: parameters are missing or of other shapes, or there are some that no model of this config has.
    """
    check_params(params, config)
    found = flat(params)
    return {key: _to_torch(found[path], key) for key, path in flax_paths(config).items()}


def check_params(params: Mapping[str, Any], config: AutoencoderKLConfig, what: str = "params") -> None:
    """Raise CheckpointError unless these are the parameters of a model of this config: names, shapes, floats."""
    found = _shapes(params)
    needed = {"/".join(path): shape for path, shape in parameter_shapes(config).items()}
    _check_names(what, set(found), set(needed))
    _check_shapes(what, found, needed)
    for path, leaf in flat(params).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise CheckpointError(f"{what}: {'/'.join(path)} has the type {dtype}. Give floating-point weights.")


def torch_shapes(config: AutoencoderKLConfig) -> dict[str, tuple[int, ...]]:
    """Key of a weight in AutoencoderKL's state dict -> its shape in torch, for every weight of this config."""
    shapes = parameter_shapes(config)
    return {key: torch_shape(shapes[path]) for key, path in flax_paths(config).items()}


def _shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name of a parameter, as a path with slashes -> its shape."""
    return {"/".join(path): tuple(np.shape(leaf)) for path, leaf in flat(params).items()}


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
    missing = sorted(needed - found)
    unknown = sorted(found - needed)
    if missing or unknown:
        parts = [f"lacks {len(missing)} of {len(needed)} weights ({_some(missing)})"] if missing else []
        parts += [f"has {len(unknown)} that the model does not have ({_some(unknown)})"] if unknown else []
        raise CheckpointError(f"{what} {' and '.join(parts)}. Use the config that belongs to these weights.")


def _check_shapes(what: str, found: Mapping[str, _Shape], needed: Mapping[str, _Shape]) -> None:
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


def as_dicts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, whatever mappings (a FrozenDict) they were."""
    return {name: as_dicts(value) if isinstance(value, Mapping) else value for name, value in params.items()}


def flat(params: Mapping[str, Any]) -> dict[ParameterPath, Any]:
    """ParameterPath of a parameter -> the parameter.

    Raises:
        CheckpointError: `params` is not a mapping.
    """
    if not isinstance(params, Mapping):
        raise CheckpointError(f"params are a {type(params).__name__}; give the nested dictionary that the model takes.")
    return flatten_dict(as_dicts(params))  # type: ignore[return-value]


def counts_steps(path: ParameterPath) -> bool:
    """Whether a parameter is FLUX.2's count of training steps, too large for 16 bits: it stays in float32."""
    return ".".join(path) in OPTIONAL


def cast(params: Mapping[str, Any], dtype: Any, mask: Any = None) -> dict[str, Any]:
    """A copy of the parameters in another type; where `mask`, a tree of booleans, is False they stay as they are."""

    def convert(path: Any, parameter: Array, wanted: bool = True) -> Array:
        keep = not wanted or counts_steps(tuple(entry.key for entry in path))
        return parameter if keep else jnp.asarray(parameter, dtype)

    return jax.tree_util.tree_map_with_path(convert, params, *([] if mask is None else [mask]))
