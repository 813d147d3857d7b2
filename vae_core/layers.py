"""The layers that have weights: torch's own classes, made with random weights, or quickly without any for loading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)

# Under `without_values`: the first layer made of each class and arguments.
_made: ContextVar[dict[tuple[type[nn.Module], tuple[Any, ...]], nn.Module] | None] = ContextVar(
    "seamless_vae_layers", default=None
)


@contextmanager
def without_values() -> Iterator[None]:
    """Layers made in this `with` block are on the meta device, as places for weights to be loaded.

    They cost a tenth of what torch takes for them. Layers of the same arguments share their parameters, so every
    parameter is to be replaced.
    """
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def conv2d(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """nn.Conv2d of these arguments."""
    return _make(nn.Conv2d, in_channels, out_channels, kernel_size, stride, padding)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """nn.Linear of these arguments."""
    return _make(nn.Linear, in_features, out_features)


def group_norm(num_groups: int, num_channels: int, eps: float) -> nn.GroupNorm:
    """nn.GroupNorm of these arguments."""
    return _make(nn.GroupNorm, num_groups, num_channels, eps)


def _make(cls: type[Layer], *args: Any) -> Layer:
    made = _made.get()
    if made is None:
        return cls(*args)
    first = made.get((cls, args))
    if first is None:
        first = made[cls, args] = cls.__new__(cls)
        first.__dict__["reset_parameters"] = _do_nothing  # found before the method of the class
        first.__init__(*args, device="meta")
        del first.__dict__["reset_parameters"]
    twin = cls.__new__(cls)
    twin.__dict__.update(  # its dictionaries of parameters and hooks are its own
        {name: value.copy() if isinstance(value, _CONTAINERS) else value for name, value in first.__dict__.items()}
    )
    return twin


_CONTAINERS = (dict, set)


def _do_nothing() -> None:
    pass
