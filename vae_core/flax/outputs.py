"""What the model's methods return: flax structs, readable by name, by key and as a tuple, like diffusers' outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from flax import struct
from jax import Array

from .posterior import FlaxDiagonalGaussianDistribution


class ModelOutput:
    """Base of the outputs: `output.sample`, `output["sample"]`, `output[0]` and `tuple(output)` are the same."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@struct.dataclass
class FlaxAutoencoderKLOutput(ModelOutput):
    """The result of `encode`."""

    latent_dist: FlaxDiagonalGaussianDistribution


@struct.dataclass
class FlaxDecoderOutput(ModelOutput):
    """The result of `decode`: images [B, C, H, W]."""

    sample: Array
