"""What torch's allocator is asked for, and what is alive of it."""

from __future__ import annotations

import weakref
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


class Living(TorchDispatchMode):
    """The most bytes of tensors alive at once that were made within the block, each storage counted once."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in given:
                storage = each.untyped_storage()
                self.storages[id(storage)] = (weakref.ref(each), storage.nbytes())
        self.storages = {key: found for key, found in self.storages.items() if found[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return result


class Alive(TorchDispatchMode):
    """How many tensors of one size in bytes are alive at once, at most."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.most = size, 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if _is_dense(each) and each.untyped_storage().nbytes() == self.size:
                self._alive[each.untyped_storage().data_ptr()] = weakref.ref(each.untyped_storage())
        found = {key for key, storage in self._alive.items() if storage() is not None}
        self._alive = {key: self._alive[key] for key in found}
        self.most = max(self.most, len(found))
        return result


def _storages(tree: Any) -> list[Any]:
    """Of all tensors but packed weights, which have none."""
    tensors = [each for each in tree_leaves(tree) if isinstance(each, Tensor)]
    return [each.untyped_storage() for each in tensors if each.layout == torch.strided]


def _is_dense(each: Any) -> bool:
    return isinstance(each, torch.Tensor) and each.layout == torch.strided and not each.is_meta
