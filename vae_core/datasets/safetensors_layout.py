"""The layout "shards": one safetensors file a shard, with everything that is known of its images in its header.

Tensors: `PPPPPP.latents` [C, h, w] or `PPPPPP.moments` [2C, h, w] (mean, then log-variance), where PPPPPP is the
position of the image in its split; `.latents_flipped` or `.moments_flipped` of the mirrored image; `.alpha_mask`
[H, W] of bytes. The metadata's one key `seamless_vae` is JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..checkpoints.safetensors_file import open_safetensors
from ..errors import DatasetError, in_one_line
from ..latent import METADATA_KEY
from .encode import EncodedImage, Shard

SUFFIX = ".safetensors"


def files(shard: Shard, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The shard's file: its path below the collection -> its bytes. Nothing without images."""
    if not shard.images:
        return {}
    tensors: dict[str, Tensor] = {}
    for image in shard.images:
        tensors |= {f"{prefix(image)}.{name}": tensor for name, tensor in parts(image, shard.settings.keep).items()}
    # One key alone: safetensors writes several in no certain order.
    return {f"{path(shard.split, shard.chunk)}{SUFFIX}": save(tensors, {METADATA_KEY: json.dumps(about)})}


def parts(image: EncodedImage, keep: str) -> dict[str, Tensor]:
    """What is kept of one image, by name."""
    name = "moments" if keep == "moments" else "latents"
    tensors = {name: image.latents.contiguous()}
    if image.flipped is not None:
        tensors[f"{name}_flipped"] = image.flipped.contiguous()
    if image.image.alpha is not None:
        tensors["alpha_mask"] = torch.from_numpy(image.image.alpha.copy())
    return tensors


def path(split: int, chunk: int) -> str:
    """Where a shard's files are below the collection, without their endings; a thousand splits a folder."""
    return f"shards/{split // 1000:03d}/{split:06d}-{chunk:04d}"


def prefix(image: EncodedImage) -> str:
    """What the names of an image's tensors begin with."""
    return f"{image.image.position:06d}"


class Opened:
    """A shard's file, with the names of its tensors by image.

    Raises:
        DatasetError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parts: dict[str, list[str]] = {}
        try:
            self._state = _state_of(file)
            self._tensors = open_safetensors(file)
        except OSError as error:
            raise unreadable(file, error) from None
        for name in self._tensors.tensors:
            image, _, part = name.partition(".")
            self.parts.setdefault(image, []).append(part)

    def read(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Tensors by image, in the order of the names: {prefix: {"latents": ..., ...}}.

        They are copies: what is done to them is not seen by the next who reads, and a file that shrinks meanwhile ends
        no process.

        Raises:
            DatasetError: they cannot be read, the file lacks an image, or has changed since it was opened.
        """
        check_names(self.file, names, self.parts)
        try:
            if _state_of(self.file) != self._state:
                raise DatasetError(f"{self.file} has changed since it was opened. Open the collection again.")
            full = self._tensors.read((f"{name}.{part}" for name in names for part in self.parts[name]), mapped=False)
        except OSError as error:
            raise unreadable(self.file, error) from None
        return {name: {part: full[f"{name}.{part}"] for part in self.parts[name]} for name in names}


def _state_of(file: Path) -> tuple[int, int, int]:
    """What differs for a file that was written again."""
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def unreadable(file: Path, error: Exception) -> DatasetError:
    """The sentence for a shard's file that cannot be read."""
    return DatasetError(
        f"cannot read {file}: {in_one_line(error).rstrip('.')}. Check it with `seamless-vae verify-dataset`."
    )


def check_names(file: Path, names: Sequence[str], found: Collection[str]) -> None:
    """Raise DatasetError for an image that a shard's file lacks."""
    missing = sorted(set(names) - set(found))
    if missing:
        raise DatasetError(f"{file} lacks image {missing[0]}. Check it with `seamless-vae verify-dataset`.")
