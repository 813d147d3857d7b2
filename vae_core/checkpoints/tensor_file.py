"""Named tensors in a file: listed from the header, read from a private memory map of just the bytes asked for."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .generation import check_one_save

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


class TensorInfo(NamedTuple):
    """Where one tensor lies. `start` is its first byte in the file, `stride` in elements, None if contiguous."""

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


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one checkpoint, which may be spread over several files (shards).

    Attributes:
        path: what the caller gave, for messages.
        container: "safetensors" or "pickle".
        tensors: name -> where it lies.
        files: name -> the file that holds it.
        metadata: the strings of a safetensors header; empty for a pickle.
    """

    path: Path
    container: str
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, Path]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_size(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in set(self.files.values()))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names. They are copy-on-write views of the file: nothing is read before it is used.

        Each has a storage of its own, so that saving one does not save its neighbours.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        return {
            name: tensor
            for file, group in by_file.items()
            for name, tensor in read_mapped(file, {name: self.tensors[name] for name in group}).items()
        }


def read_mapped(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Views of the given tensors in a private map of the smallest range of the file that holds them all."""
    for name, info in tensors.items():
        if info.dtype is None:
            raise CheckpointError(f"{path.name}: {name} has a number type that torch lacks. Convert the file first.")
    starts, ends = [], []
    for info in tensors.values():
        if size := info.size:
            starts.append(info.start)
            ends.append(info.start + size)
    first = min(starts, default=0) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = max(ends, default=0) - first
    with open(path, "rb") as file:
        if length and os.fstat(file.fileno()).st_size < first + length:
            raise CheckpointError(f"{path.name} ends before its last tensor: truncated. Download or copy it again.")
        try:
            buffer = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first) if length else b""
        except OSError:  # a file system that cannot map
            file.seek(first)
            buffer = bytearray(file.read(length))
    return {name: _view(buffer, info, info.start - first) for name, info in tensors.items()}


def _view(buffer: mmap.mmap | bytearray | bytes, info: TensorInfo, offset: int) -> Tensor:
    dtype, count = info.dtype, info.elements
    assert dtype is not None
    if count == 0:
        return torch.empty(info.shape, dtype=dtype)
    if offset % dtype.itemsize:  # torch must not be given misaligned memory
        flat = torch.frombuffer(bytearray(buffer[offset : offset + count * dtype.itemsize]), dtype=dtype)
    else:
        flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)
    if info.stride is not None:
        return flat.as_strided(info.shape, info.stride)
    return flat if len(info.shape) == 1 else flat.view(info.shape)


def open_safetensors(path: Path) -> TensorFile:
    """List a safetensors file from its header.

    Raises:
        CheckpointError: the header is not one, or the file is shorter than it says.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path.name} has {size} bytes, but its safetensors header alone is to have {header_size}. "
                f"The file is truncated or no safetensors file. Download or copy it again."
            )
        raw = file.read(header_size)
    try:
        header = json.loads(raw)
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        tensors = {name: _safetensors_entry(entry, base=8 + header_size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} has a broken safetensors header ({type(error).__name__}: {error}). Download or copy it again."
        ) from None
    needed = max((entry["data_offsets"][1] for entry in header.values()), default=0) + 8 + header_size
    if needed > size:
        raise CheckpointError(
            f"{path.name} has {size} bytes, but its header describes {needed}: it is truncated. "
            f"Download or copy it again."
        )
    return TensorFile(path, "safetensors", tensors, dict.fromkeys(tensors, path), metadata)


def _safetensors_entry(entry: Mapping, base: int) -> TensorInfo:
    start, end = entry["data_offsets"]
    shape = tuple(map(int, entry["shape"]))
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if start < 0 or end < start or (shape and min(shape) < 0):
        raise ValueError(f"a tensor of shape {shape} at bytes {start} to {end}")
    if dtype is not None and math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"a tensor of shape {shape} and type {entry['dtype']} in {end - start} bytes")
    return TensorInfo(dtype, shape, base + start)


def open_tensor_file(path: Path) -> TensorFile:
    """List the tensors of a file, whatever its name says it is, without reading them.

    Raises:
        CheckpointError: not a checkpoint, or a damaged one.
        UnsafeCheckpointError: a pickle that asks for code to be run.
    """
    from .pickled import open_pickle

    if not path.exists():
        raise CheckpointError(f"there is no {path}. Check the path; nothing is downloaded.")
    if path.suffix == ".json":
        return open_shards(path)
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from None
    complaint = _not_a_checkpoint(start)
    if complaint:
        raise CheckpointError(f"{path.name} {complaint}")
    if start[8:9] == b"{":
        return open_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return open_pickle(path)
    if start.lstrip()[:1] == b"{":
        raise CheckpointError(f"{path.name} is JSON text, not weights. Give the weights, or the folder they lie in.")
    raise CheckpointError(
        f"{path.name} is neither safetensors nor a torch file (it starts with {start[:8].hex(' ')}). "
        f"Download it again, or convert it to safetensors."
    )


def _not_a_checkpoint(start: bytes) -> str | None:
    """What a file is whose first bytes are those of a well-known other format."""
    text = start.lstrip()[:64].lower()
    if not start:
        return "is empty (0 bytes). Download or copy it again."
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights themselves. Run `git lfs pull` in its repository."
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the download was answered with an error or login page. Download it again."
    if start.startswith(b"GGUF"):
        return "is a GGUF file, whose weights are quantised. Get the VAE as safetensors."
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 (Keras) file. Get the VAE as safetensors."
    if len(start) < 10:
        return f"has {len(start)} bytes, too few for a checkpoint. Download or copy it again."
    return None


def open_shards(index: Path) -> TensorFile:
    """List the tensors of a sharded checkpoint from its index (`*.index.json`).

    Raises:
        CheckpointError: the index is broken, or a shard is missing or lacks a tensor.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index.name} is no index of shards ({type(error).__name__}: {error}). "
            f"It needs a `weight_map` from weights to files."
        ) from None
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    container, metadata = "safetensors", {}
    for file_name in sorted(set(names.values())):
        path = index.parent / file_name
        if Path(file_name).name != file_name:
            raise CheckpointError(f"{index.name} names {file_name!r}, which is outside of its folder. Do not trust it.")
        if not path.exists():
            raise CheckpointError(f"{index.name} names {file_name}, which is not there. Download all shards.")
        shard = open_tensor_file(path)
        container = shard.container
        check_one_save(index, metadata, path, shard.metadata)
        metadata = {**metadata, **shard.metadata}
        tensors.update(shard.tensors)
        files.update(shard.files)
    absent = sorted(set(names) - set(tensors))
    if absent:
        raise CheckpointError(
            f"{index.name} promises {absent[0]}{_and_more(len(absent) - 1)}, which no shard has. Download all shards."
        )
    return TensorFile(index, container, tensors, files, metadata)


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
