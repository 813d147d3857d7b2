"""Named tensors in a file: listed from the header, then mapped into memory privately, or copied.

A map is of just the bytes asked for, and reads nothing before it is used. It is a view of the file as it is then: a
file that is cut short meanwhile ends the process (SIGBUS), and one that is written over changes the tensors. A copy
depends on nothing.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError, in_one_line
from ..regular_files import open_regular


class TensorInfo(NamedTuple):
    """Where one tensor is. `start` is its first byte in the file, `stride` in elements, None if contiguous."""

    dtype: torch.dtype | None  # None: a type that torch has no name for
    shape: tuple[int, ...]
    start: int
    stride: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """How many elements from the first to the last, gaps included."""
        if self.stride is None:
            return math.prod(self.shape)
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def size(self) -> int:
        """Bytes from the first element to the last."""
        return self.elements * (self.dtype.itemsize if self.dtype else 0)


class Kept(Protocol):
    """Numbers in memory of which a tensor is made when it is read."""

    @property
    def nbytes(self) -> int: ...

    def tensor(self) -> Tensor: ...


@dataclass(frozen=True)
class KeptPart:
    """One of several equal parts, along the first dimension, of numbers in memory."""

    whole: Tensor | Kept
    index: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes // self.count

    def tensor(self) -> Tensor:
        return as_tensor(self.whole).chunk(self.count)[self.index]


def as_tensor(value: Tensor | Kept) -> Tensor:
    return value if isinstance(value, Tensor) else value.tensor()


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one checkpoint, which may be spread over several files (shards).

    Attributes:
        path: what the caller gave, for messages.
        container: "safetensors", "pickle" or "memory".
        tensors: name -> what it is, and where in its file.
        files: name -> its file.
        metadata: the strings of a safetensors header, or those beside the weights of a pickle.
        values: name -> the tensor itself, or its numbers, of those that are in memory and not in a file.
        remarks: sentences on what was chosen or passed over.
    """

    path: Path
    container: str
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, Path]
    metadata: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Tensor | Kept] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def file_size(self) -> int:
        """Bytes of all files together, or of all tensors in memory."""
        in_memory = 0 if self.files else sum(value.nbytes for value in self.values.values())
        return in_memory + sum(file.stat().st_size for file in set(self.files.values()))

    def read(self, names: Iterable[str], mapped: bool = True) -> dict[str, Tensor]:
        """The tensors of these names: copy-on-write views of the file, of which nothing is read before it is used.

        Each has a storage of its own, so that saving one does not save its neighbours.

        Args:
            mapped: False for copies.

        Raises:
            CheckpointError: a file is shorter than its header says, or is gone.
        """
        by_file: dict[Path, list[str]] = {}
        read: dict[str, Tensor] = {}
        for name in names:
            if name in self.values:
                read[name] = _arranged(as_tensor(self.values[name]), self.tensors[name])
            else:
                by_file.setdefault(self.files[name], []).append(name)
        for file, group in by_file.items():
            infos = {name: self.tensors[name] for name in group}
            read.update(read_mapped(file, infos) if mapped else read_copies(file, infos))
        return read


def in_memory(tensors: Mapping[str, Tensor], name: str, remarks: tuple[str, ...] = ()) -> TensorFile:
    """Tensors that are in memory already, such as a state dict, as if they were a file of this name."""
    infos = {key: TensorInfo(tensor.dtype, tuple(tensor.shape), 0) for key, tensor in tensors.items()}
    return TensorFile(Path(name), "memory", infos, {}, remarks=remarks, values=dict(tensors))


def _arranged(tensor: Tensor, info: TensorInfo) -> Tensor:
    """A tensor of memory, as its info describes it: channels first, where it came with its channels last."""
    if tuple(tensor.shape) == info.shape and info.stride is None:
        return tensor
    return tensor.contiguous().flatten().as_strided(info.shape, info.stride or ())


def _check_types(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if info.dtype is None:
            raise CheckpointError(
                f"{path.name}: {name} has a number type that torch does not have. Convert the file to float16 first."
            )


def read_copies(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """The given tensors in memory of their own, read from the file in its order."""
    _check_types(path, tensors)
    read: dict[str, Tensor] = {}
    try:
        with open_regular(path) as file:
            for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
                buffer = bytearray(info.size)
                done = 0
                file.seek(info.start)
                while done < len(buffer):
                    count = file.readinto(memoryview(buffer)[done:])
                    if not count:
                        raise CheckpointError(
                            f"{path.name} ends before its last tensor: truncated. Download or copy it again."
                        )
                    done += count
                read[name] = _view(buffer, info, 0)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {in_one_line(error)}. Check it and its disk.") from None
    return read


def read_mapped(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Views of the given tensors in a private map of the smallest range of the file with all of them."""
    _check_types(path, tensors)
    starts = []
    ends = []
    for info in tensors.values():
        if size := info.size:
            starts.append(info.start)
            ends.append(info.start + size)
    first = min(starts, default=0) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = max(ends, default=0) - first
    try:
        with open_regular(path) as file:
            if length and os.fstat(file.fileno()).st_size < first + length:
                raise CheckpointError(f"{path.name} ends before its last tensor: truncated. Download or copy it again.")
            try:
                buffer = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first) if length else b""
            except OSError:  # a file system that cannot map
                file.seek(first)
                buffer = bytearray(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {in_one_line(error)}. Check it and its disk.") from None
    return {name: _view(buffer, info, info.start - first) for name, info in tensors.items()}


def _view(buffer: mmap.mmap | bytearray | bytes, info: TensorInfo, offset: int) -> Tensor:
    dtype = info.dtype
    count = info.elements
    assert dtype is not None
    if count == 0:
        return torch.empty(info.shape, dtype=dtype, device="cpu")
    if offset % dtype.itemsize:  # torch must not be given misaligned memory
        flat = torch.frombuffer(bytearray(buffer[offset : offset + count * dtype.itemsize]), dtype=dtype)
    else:
        flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)
    if info.stride is not None:
        return flat.as_strided(info.shape, info.stride)
    return flat if len(info.shape) == 1 else flat.view(info.shape)
