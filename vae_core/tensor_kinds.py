"""Tensors that cannot be taken as they are: without values of their own, or of a class that computes in its own way."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Obstacle(NamedTuple):
    """Why weights cannot be taken or saved as they are, and what to do: "4 weights, such as x, {what}. {remedy}"."""

    what: str
    remedy: str


NOT_INITIALISED = Obstacle(
    "are not initialised: they are of a lazy module that never ran", "Run the model once, or load its weights."
)
FREED = Obstacle(
    "have given their memory back, as those of a model that is sharded by FSDP, or offloaded, do",
    "Bring the model onto a device first, or gather its weights (FSDP.summon_full_params).",
)
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
    if is_lazy(tensor):
        return NOT_INITIALISED
    name = foreign_class(tensor)
    if name is not None:
        return of_class(name)
    if tensor.is_meta:
        return NO_VALUES
    if tensor.layout != torch.strided:
        return of_layout(_layout(tensor))
    return FREED if is_freed(tensor) else None


def given_obstacle(given: Any) -> Obstacle | None:
    """Why what a caller gave is not a tensor to compute with: "this image {what}. {remedy}"; None for a dense one.

    One on the meta device has a shape to compute with; `is_meta` says where that is not enough.
    """
    if not isinstance(given, Tensor):
        remedy = "Use from_numpy." if isinstance(given, np.ndarray) else "Give a torch tensor."
        return Obstacle(f"is a {type(given).__name__}, not a tensor", remedy)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # which know tensors of these kinds themselves
        return None
    if is_lazy(given):
        return Obstacle("is a parameter that is not initialised", "Give a tensor with values.")
    if given.is_quantized:
        return Obstacle("is a quantised tensor", "Give its values: dequantize().")
    if given.is_nested:
        return Obstacle("is nested: it has tensors of several shapes", "Give these one by one.")
    if foreign_class(given) == "MaskedTensor":  # other classes, such as those of collectives, compute what is asked
        return Obstacle("is a masked tensor", "Fill what is masked: to_tensor(0).")
    if given.layout != torch.strided:
        return Obstacle(f"is a tensor of the layout {_layout(given)}", "Make it dense first: to_dense().")
    if is_freed(given):
        return Obstacle("has given its memory back (its storage was resized)", "Give a tensor with values.")
    return None


def value_obstacle(given: Any) -> Obstacle | None:
    """Why what a caller gave is not a tensor whose values can be read, as `given_obstacle` says it."""
    why = given_obstacle(given)
    if why is None and given.is_meta:
        return Obstacle("is on the meta device, where tensors have no values", "Give a tensor with values.")
    return why


def check_given(given: Any, what: str, error: type[Exception]) -> None:
    """Raise an error of this class unless what a caller gave, in words, is a tensor to compute with."""
    why = given_obstacle(given)
    if why is not None:
        raise error(f"{what} {why.what}. {why.remedy}")


def is_freed(tensor: Tensor) -> bool:
    """Whether the memory of a tensor is smaller than the tensor: reading it would end the process.

    Not of classes that compute in their own way, whose values are elsewhere.
    """
    if tensor.numel() == 0 or foreign_class(tensor) is not None:
        return False
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    try:
        return tensor.untyped_storage().nbytes() < needed
    except (NotImplementedError, RuntimeError):  # it stands for one, as under torch.func, and has no memory to ask for
        return False


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
    return Obstacle(f"are of the layout {name}", "Make them dense first: weight.to_dense().")


def _layout(tensor: Tensor) -> str:
    return str(tensor.layout).removeprefix("torch.")
