"""How diffusers' pipelines recognise our model as an AutoencoderKL, without diffusers being imported for it.

Pipelines save, load, exchange and fuse only what `issubclass(..., ModelMixin)` or `isinstance(..., AutoencoderKL)`
lets through. So as soon as diffusers' class is there, imported by other code, ours gets it as a base class. Ours
comes first and defines everything itself: nothing of theirs is called but what is delegated by name.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from .config import CLASS_NAME, FLUX2_CLASS_NAME
from .optional import optional_import

_MODULE = "diffusers.models.autoencoders.autoencoder_kl"
_MODULES = {CLASS_NAME: _MODULE, FLUX2_CLASS_NAME: f"{_MODULE}_flux2"}


def diffusers_class(name: str = CLASS_NAME) -> type[nn.Module] | None:
    """diffusers' AutoencoderKL, or its class for FLUX.2, if diffusers has been imported."""
    found = getattr(sys.modules.get(_MODULES.get(name, _MODULE)), name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


class LikenessMeta(type):
    """Class of a model class that takes the place of diffusers' AutoencoderKL.

    It compares equal to diffusers' class of its name, because `DiffusionPipeline.from_pipe` asks whether the type of a
    component is among the types that a pipeline declares. As keys of a dictionary the two stay apart.
    """

    def __eq__(cls, other: object) -> bool:
        theirs = diffusers_class(cls.__name__)
        base = diffusers_class()
        return cls is other or (theirs is not None and other is theirs and base is not None and issubclass(cls, base))

    __hash__ = type.__hash__


def join_diffusers(cls: type) -> None:
    """Make diffusers' AutoencoderKL a base of the class that our model's class is made of, once it is there."""
    theirs = diffusers_class()
    if theirs is None or issubclass(cls, theirs) or isinstance(theirs, LikenessMeta):
        return
    root = next(base for base in cls.__mro__ if nn.Module in base.__bases__ and isinstance(base, LikenessMeta))
    root.__bases__ = tuple(theirs if base is nn.Module else base for base in root.__bases__)


def theirs_for(model: object, purpose: str, extra: str = "diffusers") -> Any:
    """diffusers' class, imported if need be, for a method of it that is called with our model.

    Args:
        purpose: what it is needed for, as the start of a sentence: "Group offloading".

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    optional_import(_MODULE, purpose, extra)
    join_diffusers(type(model))
    return diffusers_class()


class LikenessMixin:
    """Looks again for diffusers whenever the class of a model is asked for: it may be imported after the model."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        join_diffusers(type(self))
        return type(self)

    @__class__.setter
    def __class__(self, value: type) -> None:  # FSDP gives a module a class of its own
        object.__dict__["__class__"].__set__(self, value)
