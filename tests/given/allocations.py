"""What torch's allocator is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestAllocation(TorchDispatchMode):
    """The largest number of bytes that an operation has taken of torch, for its results."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage.data_ptr() not in given:
                self.bytes = max(self.bytes, storage.nbytes())
        return result


def _storages(tree: Any) -> list[Any]:
    """Of all tensors but packed weights, which have none."""
    tensors = [each for each in tree_leaves(tree) if isinstance(each, Tensor)]
    return [each.untyped_storage() for each in tensors if each.layout == torch.strided]
