"""Tensors that cannot be computed with as they are, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def freed(x: Tensor) -> Tensor:
    x = x if x._is_view() else x.clone()
    x.untyped_storage().resize_(0)
    return x


def cut(x: Tensor) -> Tensor:
    """Its memory ends before its last value."""
    x = x.clone()
    x.untyped_storage().resize_(x.untyped_storage().nbytes() - x.element_size())
    return x


def masked(x: Tensor) -> Tensor:
    return torch.masked.masked_tensor(x, torch.ones_like(x, dtype=torch.bool))


KINDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a list": (Tensor.tolist, "is a list, not a tensor"),
    "numpy": (Tensor.numpy, "is a ndarray, not a tensor. Use from_numpy"),
    "nothing": (lambda x: None, "is a NoneType, not a tensor"),
    "freed": (freed, "has given its memory back"),
    "cut": (cut, "has given its memory back"),
    "a view of freed memory": (lambda x: freed(x.clone()[:]), "has given its memory back"),
    "masked": (masked, "is a masked tensor. Fill what is masked"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "is nested"),
    "jagged": (lambda x: torch.nested.nested_tensor([x[0, 0], x[0, 0]], layout=torch.jagged), "is nested"),
    "sparse": (Tensor.to_sparse, "is a tensor of the layout sparse_coo. Make it dense"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "is a quantised tensor"),
    "not initialised": (lambda x: torch.nn.UninitializedParameter(), "is a parameter that is not initialised"),
    "a buffer not initialised": (lambda x: torch.nn.UninitializedBuffer(), "is a parameter that is not initialised"),
}

# What has no values cannot be read, though its shape can be computed with.
WITHOUT_VALUES = {**KINDS, "meta": (lambda x: x.to("meta"), "is on the meta device, where tensors have no values")}
