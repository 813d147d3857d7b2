"""The calls that files of weights make, done with descriptions: blocks of numbers, and tensors in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..tensor_kinds import SAVED_WITHOUT_VALUES, Obstacle, of_class, of_layout
from .allowed import PLACEHOLDER, Dummy, Rebuild

NUMPY_DTYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}
MAX_DIMENSIONS = 16
MAX_EXPANDED = 1 << 16  # numbers of a tensor that repeats some, as torch's expand makes: a bias, not a file's worth
# What these make is nothing that a model has for its weights.
PASSED_OVER = frozenset(("device", "_get_layout", "_rebuild_nested_tensor"))


class Storage(NamedTuple):
    """A block of numbers in the file, by its key."""

    key: str
    dtype: torch.dtype
    numel: int
    offset: int = 0  # elements into the block, for views in the legacy format


class StoredTensor(NamedTuple):
    """A tensor that a pickle describes. `offset` is in elements from the beginning of the block."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class UnreadTensor(NamedTuple):
    """A tensor whose numbers are not in the file, or are not read: where it is a weight, that is an error.

    Attributes:
        why: what is the matter with it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    why: Obstacle

    @property
    def nbytes(self) -> int:
        return 0

    def tensor(self) -> Tensor:
        """Raises CheckpointError."""
        raise CheckpointError(f"the tensors of this file {self.why.what}. {self.why.remedy}")


class NumpyType:
    """Stands for a number type of NumPy."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def set_state(self, state: Any) -> None:
        if type(state) is tuple and len(state) > 1 and type(state[1]) is str and len(state[1]) == 1:
            self.order = state[1]

    @property
    def dtype(self) -> torch.dtype:
        dtype = NUMPY_DTYPES.get(self.code.lstrip("<|="))
        if dtype is None or self.order == ">":
            raise ValueError(f"an array of the number type {self.code[:8]!r}")
        return dtype


class Array:
    """Stands for an array of NumPy, whose numbers its state brings.

    Attributes:
        state: (shape as the numbers are stored, type, order of its axes, numbers).
    """

    def __init__(self) -> None:
        self.state: tuple[tuple[int, ...], NumpyType, tuple[int, ...], bytes] | None = None

    @property
    def has_numbers(self) -> bool:
        """Whether it has numbers of a type that torch has."""
        return (
            self.state is not None and self.state[1].code.lstrip("<|=") in NUMPY_DTYPES and self.state[1].order != ">"
        )

    def set_state(self, state: Any) -> None:
        """(version, shape, type, whether columns come first, numbers); others are of arrays that are passed over."""
        if type(state) is not tuple or len(state) != 5:
            return
        _, shape, kind, fortran, raw = state
        if type(shape) is tuple and type(kind) is NumpyType and type(fortran) is bool and type(raw) is bytes:
            axes = tuple(range(len(shape)))
            self.state = _sizes(shape[::-1] if fortran else shape), kind, axes[::-1] if fortran else axes, raw

    def transpose(self, axes: Any) -> None:
        """Give its axes another order. Raises ValueError for what is not one."""
        if self.state is None or type(axes) is not tuple or sorted(axes) != list(range(len(self.state[0]))):
            raise ValueError("an array whose axes have no order")
        self.state = self.state[0], self.state[1], axes, self.state[3]


class InlineTensor:
    """A tensor whose numbers are in the pickle itself, as those of accelerators without storages are.

    Nothing is copied before `tensor` is called, because one array may be a thousand tensors.

    Args:
        array: its numbers.
        dtype: None for the array's own.

    Raises:
        ValueError: the array's shape is not that of its bytes, or has numbers that torch does not have.
    """

    def __init__(self, array: Array, dtype: torch.dtype | None = None) -> None:
        if array.state is None:
            raise ValueError("an array without numbers")
        self._stored_shape, kind, self._axes, self._raw = array.state
        self.shape = tuple(self._stored_shape[axis] for axis in self._axes)
        self._stored = kind.dtype
        self.dtype = dtype or kind.dtype
        if math.prod(self.shape) * kind.dtype.itemsize != len(self._raw):
            raise ValueError(f"an array of shape {self.shape} in {len(self._raw)} bytes")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The numbers, in memory of their own."""
        raw = self._raw
        dtype = self._stored
        flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype, device="cpu")
        return flat.reshape(self._stored_shape).permute(self._axes).to(self.dtype)


def call(name: str, arguments: tuple[Any, ...], copied: Callable[[int], None]) -> Any:
    """What one of the functions of `allowed.REBUILDERS` makes of its arguments.

    Args:
        copied: called with the length of a text before it is copied.

    Raises:
        ValueError: they are not what torch or NumPy gives it.
    """
    short = name.rpartition(".")[2]
    if short == "encode":
        return _encode_latin1(copied, *arguments)
    if name == "builtins.bytes":
        if arguments:
            raise ValueError("bytes that are made of something else")
        return b""
    if short == "defaultdict":
        return {}  # its factory is never called
    if short == "Size":
        return arguments[0] if arguments and type(arguments[0]) is tuple else ()
    if short in PASSED_OVER:
        return PLACEHOLDER
    if short == "_rebuild_meta_tensor_no_storage":
        dtype, shape, *_ = arguments
        return _unread(dtype, shape, SAVED_WITHOUT_VALUES)
    if short in ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"):
        return _sparse(*arguments)
    if short == "_rebuild_wrapper_subclass":
        kind, dtype, shape, *_ = arguments
        return _unread(dtype, shape, of_class(kind.name.rpartition(".")[2] if isinstance(kind, Dummy) else "Tensor"))
    if name == "numpy.dtype":
        if not arguments or type(arguments[0]) is not str or len(arguments[0]) > 8:
            return PLACEHOLDER  # of structures and objects, which no weights are made of
        return NumpyType(arguments[0])
    if short == "_reconstruct":
        return Array()
    if short == "_frombuffer":
        return _array_of(*arguments)
    if short in ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor"):
        return arguments[0] if arguments else PLACEHOLDER
    if short == "_rebuild_xla_tensor":
        return _from_array(arguments[0], None)
    if short == "_rebuild_device_tensor_from_numpy":
        return _from_array(arguments[0], arguments[1])
    if short == "_rebuild_from_type_v2":
        function, _, inner, _ = arguments
        if not isinstance(function, Rebuild) or function.name == name or type(inner) is not tuple:
            raise ValueError("a tensor rebuilt by something that does not rebuild tensors")
        return call(function.name, inner, copied)
    if short == "_rebuild_tensor_v3":
        storage, offset, shape, stride, _, _, dtype, *_ = arguments
        return _tensor(storage, offset, shape, stride, dtype)
    storage, offset, shape, stride, *_ = arguments
    return _tensor(storage, offset, shape, stride, None)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any) -> StoredTensor:
    if type(storage) is not Storage or not (dtype is None or isinstance(dtype, torch.dtype)):
        raise ValueError(f"a tensor in a {type(storage).__name__}")
    dtype = dtype or storage.dtype
    shape = _sizes(shape)
    stride = _sizes(stride)
    (offset,) = _sizes((offset,))
    if len(shape) != len(stride):
        raise ValueError(f"a tensor of shape {shape} with strides {stride}")
    held = storage.numel * storage.dtype.itemsize // dtype.itemsize
    if math.prod(shape) > max(held, MAX_EXPANDED):
        raise ValueError(f"a tensor of shape {shape} reaches beyond the end of its storage of {held} numbers")
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else -1
    if offset + last + 1 > held:
        raise ValueError(f"a tensor of shape {shape} reaches beyond the end of its storage")
    return StoredTensor(storage, storage.offset + offset, shape, stride, dtype)


def _unread(dtype: Any, shape: Any, why: Obstacle) -> UnreadTensor:
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a tensor of the number type {type(dtype).__name__}")
    return UnreadTensor(_sizes(shape), dtype, why)


def _sparse(layout: Any, parts: Any, *_: Any) -> UnreadTensor:
    """COO has the places of its numbers, the numbers and the shape; CSR and its kin two tensors of places."""
    shape = next(part for part in parts if type(part) is tuple)
    values = [part for part in parts if isinstance(part, StoredTensor | InlineTensor)]
    return _unread(values[-1].dtype if values else torch.float32, shape, of_layout("sparse"))


def _sizes(numbers: Any) -> tuple[int, ...]:
    if type(numbers) not in (tuple, list) or len(numbers) > MAX_DIMENSIONS:
        raise ValueError("a shape that is not a list of sizes")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a shape, stride or offset that is not a whole number of at least 0")
    return tuple(numbers)


def _from_array(array: Any, dtype: Any) -> InlineTensor:
    if type(array) is not Array:
        raise ValueError(f"a tensor made of a {type(array).__name__}")
    return InlineTensor(array, dtype if isinstance(dtype, torch.dtype) else None)


def _array_of(raw: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    """An array of NumPy as the fifth protocol writes it; one of numbers that torch does not have is passed over."""
    array = Array()
    array.set_state((1, shape, kind, order == "F", raw))
    if axes is not None and array.state is not None:
        array.transpose(axes)
    return array


def _encode_latin1(copied: Callable[[int], None], text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    copied(len(text))
    return text.encode("latin1")
