"""What the model's methods return: mappings with attributes that are also read by place, like diffusers' outputs."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .posterior import DiagonalGaussianDistribution
from .streaming.internals import register_container


class ModelOutput(OrderedDict[str, Any]):
    """Base of the outputs: `output.sample`, `output["sample"]`, `output[0]` and `output.to_tuple()[0]` are the same.

    A loop over it gives its keys, as over any mapping; a field that is None is not one of them. Fields can be set
    again, and neither added nor removed.
    """

    def __init_subclass__(cls) -> None:
        """Let torch look into outputs for tensors, as distributed training and export do."""
        register_container(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),  # type: ignore[arg-type]
        )

    def __post_init__(self) -> None:
        first, *others = (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]
        given = getattr(self, first)
        if isinstance(given, Mapping) and given.keys() <= {first, *others}:
            for name in (first, *others):  # `type(output)(dict)`, as accelerate makes one that it has gone through
                super().__setattr__(name, given.get(name))
        for name in (first, *others):
            if getattr(self, name) is not None:
                super().__setitem__(name, getattr(self, name))

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __delitem__(self, key: str) -> None:
        self._refuse()

    def pop(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse()

    def popitem(self, last: bool = True) -> Any:
        self._refuse()

    def setdefault(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse()

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._refuse()

    def clear(self) -> None:
        self._refuse()

    def _refuse(self) -> None:
        raise TypeError(f"the fields of {type(self).__name__} are fixed: {', '.join(self)}. Make a dict of it first.")

    def __reduce__(self) -> Any:
        return type(self), self.to_tuple()

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, in their order."""
        return tuple(self.values())


@dataclass(eq=False, repr=False)
class AutoencoderKLOutput(ModelOutput):
    """The result of `encode`."""

    latent_dist: DiagonalGaussianDistribution


@dataclass(eq=False, repr=False)
class DecoderOutput(ModelOutput):
    """The result of `decode`: images [B, C, H, W].

    Attributes:
        commit_loss: always None; diffusers' class has it for models of another kind.
    """

    sample: Tensor
    commit_loss: Tensor | None = dataclasses.field(default=None)
