"""The layout "webdataset": one tar a shard, as the package webdataset reads it.

A sample's key is the number of its split and its position; its files are `latents.npy` (or `moments.npy`),
`latents_flipped.npy`, `alpha_mask.npy` and `json`, which has the image's name, hash, size and crop, and the scale.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..npz import read_array
from ..regular_files import open_regular
from .encode import Shard
from .safetensors_layout import check_names, parts, path, prefix, unreadable

SUFFIX = ".tar"


def files(shard: Shard, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The shard's tar: its path below the collection -> its bytes. Nothing without images."""
    if not shard.images:
        return {}
    buffer = io.BytesIO()
    general = {name: value for name, value in about.items() if name != "images"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image, record in zip(shard.images, about["images"], strict=True):
            key = f"{shard.split:06d}{prefix(image)}"
            for name, tensor in parts(image, shard.settings.keep).items():
                data = io.BytesIO()
                np.save(data, tensor.numpy(), allow_pickle=False)
                _add(tar, f"{key}.{name}.npy", data.getvalue())
            _add(tar, f"{key}.json", json.dumps({**general, **record}).encode())
    return {f"{path(shard.split, shard.chunk)}{SUFFIX}": buffer.getvalue()}


class Opened:
    """A shard's tar, with the places of its arrays by image: its headers are read once.

    Raises:
        DatasetError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parts: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with open_regular(file) as opened:
                for member in _members(opened, file.stat().st_size):
                    key, _, part = member.name.partition(".")
                    if part.endswith(".npy"):
                        self.parts.setdefault(key[-6:], {})[part.removesuffix(".npy")] = member
        except (OSError, tarfile.TarError, ValueError, TypeError) as error:
            raise unreadable(file, error) from None

    def read(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Tensors by image; see `safetensors_layout.Opened.read`."""
        check_names(self.file, names, self.parts)
        try:
            with open_regular(self.file) as tar:
                return {name: {part: _array(tar, at) for part, at in self.parts[name].items()} for name in names}
        except (OSError, ValueError, TypeError) as error:
            raise unreadable(self.file, error) from None


def _array(tar: BinaryIO, member: tarfile.TarInfo) -> Tensor:
    tar.seek(member.offset_data)
    return torch.from_numpy(read_array(tar, member.size, member.name))


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar as `files` writes it: plain files one after another, not compressed, in a file of a size.

    `tarfile` by itself unpacks what is compressed, and takes as much memory as a member, or a record before it,
    says that it needs.

    Raises:
        ValueError, tarfile.TarError: it is another kind of tar, or damaged.
    """
    at = 0
    while True:
        file.seek(at)
        block = file.read(tarfile.BLOCKSIZE)
        if at and not block.strip(b"\0"):
            return
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        member.offset_data = at + tarfile.BLOCKSIZE
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{member.name[:80]!r} is of the type {member.type!r}, not a regular file")
        if not 0 <= member.size <= size - member.offset_data:
            raise ValueError(f"{member.name[:80]!r} has {member.size} bytes, more than are left in the tar")
        yield member
        at = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of time 0 and no owner: equal contents, equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
