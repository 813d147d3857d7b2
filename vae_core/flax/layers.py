"""The layers that have weights, on maps [B, H, W, C], and their initial values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import DTypeLike

from ..config import NORM_EPS

ParameterPath = tuple[str, ...]  # of a parameter
CUT_OFF_DEVIATION = 0.87962566103423978  # of a standard normal that is cut off at -2 and 2


def conv(channels: int, kernel_size: int, dtype: DTypeLike, stride: int = 1, padding: int = 0) -> nn.Conv:
    """A square convolution with as much padding on every side."""
    sides = ((padding, padding), (padding, padding))
    return nn.Conv(channels, (kernel_size, kernel_size), (stride, stride), padding=sides, dtype=dtype)


def group_norm(num_groups: int, dtype: DTypeLike) -> nn.GroupNorm:
    """A norm whose statistics are taken in float32 at least, the variance from the deviations.

    Linen's default, mean(x^2) - mean(x)^2, loses the digits that a map far from zero needs.
    """
    return nn.GroupNorm(num_groups, epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False)


def initial_values(rng: Array, like: Any) -> dict[str, Any]:
    """Parameters of the shapes that a tree has, from the distributions that Linen's own `init` takes by default.

    Kernels are LeCun's normal, cut off at two deviations; scales and variances are one, everything else is zero. All
    numbers are sampled at once: compiling a sampler for each of the many shapes takes a minute on a slow machine.
    """
    leaves: dict[ParameterPath, Any] = flatten_dict(like)  # type: ignore[assignment]
    return unflatten_dict(_draw(rng, tuple((path, tuple(leaf.shape)) for path, leaf in leaves.items())))


@partial(jax.jit, static_argnums=1)
def _draw(rng: Array, shapes: tuple[tuple[ParameterPath, tuple[int, ...]], ...]) -> dict[ParameterPath, Array]:
    sizes = {path: math.prod(shape) for path, shape in shapes if path[-1] == "kernel"}
    drawn = jax.random.truncated_normal(rng, -2.0, 2.0, (sum(sizes.values()),), jnp.float32)
    values: dict[ParameterPath, Array] = {}
    start = 0
    for path, shape in shapes:
        if path in sizes:
            deviation = math.prod(shape[:-1]) ** -0.5 / CUT_OFF_DEVIATION
            values[path] = drawn[start : start + sizes[path]].reshape(shape) * deviation
            start += sizes[path]
        else:
            values[path] = jnp.full(shape, path[-1] in ("scale", "running_var"), jnp.float32)
    return values
