"""Tensors that are not weights as they are: without values of their own, or of a class that computes in its own way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Obstacle(NamedTuple):
    """Why weights cannot be taken or saved as they are, and what to do: "4 weights, such as x, {what}. {remedy}"."""

    what: str
    remedy: str


NO_VALUES = Obstacle(
    "have no values here: they are offloaded, or were never loaded", "Bring the model onto a device first."
)
SAVED_WITHOUT_VALUES = Obstacle(
    "were saved without values: they were on torch's meta device, so they were offloaded or never loaded, and the file "
    "has nothing but their shapes",
    "Save them again where the model has its weights, or get another copy.",
)
SPREAD = Obstacle(
    "are spread over processes (DTensor)",
    "Gather them first, in all of the processes: torch.distributed.checkpoint.state_dict.get_model_state_dict with "
    "StateDictOptions(full_state_dict=True) gives plain weights, to be saved, or loaded into a model that is not "
    "spread.",
)
_PLAIN = (Tensor, nn.Parameter)
_STAND_INS = "torch._subclasses."  # FakeTensor and its like, with which others find out what would be computed
_DISPATCH = "__torch_dispatch__"  # by which a class of tensors computes in its own way


def obstacle(tensor: Tensor) -> Obstacle | None:
    """Why a tensor in memory is not a weight as it is; None for one of torch's own, with its numbers row after row."""
    name = foreign_class(tensor)
    if name is not None:
        return of_class(name)
    if tensor.is_meta:
        return NO_VALUES
    if tensor.layout != torch.strided:
        return of_layout(str(tensor.layout))
    return None


def foreign_class(tensor: Tensor) -> str | None:
    """The class of a tensor whose operations are not torch's own; None for torch's, and for those that keep to them."""
    kind = type(tensor)
    stands_for_one = kind.__module__.startswith(_STAND_INS)
    is_torchs = kind in _PLAIN or stands_for_one or getattr(kind, _DISPATCH) is getattr(Tensor, _DISPATCH)
    return None if is_torchs else kind.__name__


def of_class(name: str) -> Obstacle:
    """What is the matter with weights of a class of tensors that computes in its own way."""
    if name == "DTensor":
        return SPREAD
    return Obstacle(
        f"are of the class {name[:60]}: quantised or packed, and not torch's own tensors",
        "Dequantise the model first, or get the one that it was made from, in float16, bfloat16 or float32.",
    )


def of_layout(name: str) -> Obstacle:
    """What is the matter with weights that are not dense."""
    return Obstacle(f"are of the layout {name.removeprefix('torch.')}", "Make them dense first: weight.to_dense().")
