"""What the model's methods return: readable by name, by key and as a tuple, like diffusers' outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .posterior import DiagonalGaussianDistribution


class ModelOutput:
    """Base of the outputs: `output.sample`, `output["sample"]`, `output[0]` and `tuple(output)` are the same."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@dataclass
class AutoencoderKLOutput(ModelOutput):
    """The result of `encode`."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(ModelOutput):
    """The result of `decode`: images [B, C, H, W]."""

    sample: Tensor
