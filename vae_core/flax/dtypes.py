"""Number types, of the computation and of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..errors import ConfigError

SHORT_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
COMPUTABLE = ("float32", "bfloat16", "float16", "float64")


def floating_type(dtype: Any, what: str = "dtype") -> Any:
    """A type that a model can work in or keep its parameters in, from itself or its name.

    Args:
        dtype: float32, bfloat16, float16, or float64 where `jax_enable_x64` is set.
        what: the argument's name, for the error.

    Raises:
        ConfigError: anything else, None included (numpy takes it for float64).
    """
    try:
        found = None if dtype is None else jnp.dtype(SHORT_NAMES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    except TypeError:
        found = None
    if found is None or found.name not in COMPUTABLE:
        raise ConfigError(f"{what} is {dtype!r}; give jnp.float32, jnp.bfloat16, jnp.float16 or one of their names.")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise ConfigError(
            f"{what} is {dtype!r}, which JAX turns into float32 by default. Call "
            f'jax.config.update("jax_enable_x64", True) first, or give jnp.float32.'
        )
    return found
