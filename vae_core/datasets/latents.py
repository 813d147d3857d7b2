"""A collection of latents that are there already, instead of images: what `encode_dataset` writes, without encoding."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL
from ..errors import DatasetError, in_one_line
from ..file_names import safe_path
from . import kohya
from .buckets import Buckets, Fit
from .collection import Collection
from .encode import EncodedImage, Shard
from .prepare import Prepared
from .settings import STORED, Settings, automatic_shard
from .sources import Split
from .writing import local_folder

SOURCE = "latents"


@dataclass(frozen=True)
class NamedLatent:
    """A latent on its way into a collection.

    Attributes:
        name: of its image; `portraits/0001` is in a folder.
        z: raw z [C, h, w], or moments [2C, h, w].
        size: (width, height) of its image, if that is smaller than the latent's; None for the latent's.
    """

    name: str
    z: Tensor
    size: tuple[int, int] | None = None


def save_latents(
    out: str | os.PathLike[str], latents: Sequence[NamedLatent], vae: AutoencoderKL, **options: Any
) -> Collection:
    """Write latents as a finished collection.

    Args:
        out: a folder that does not exist.
        vae: the one that they were encoded with.
        options: `layout`, `stored`, `kohya`, `keep` of Settings.

    Raises:
        DatasetError: the folder exists, names that are equal, a file that cannot be written.
        ConfigError: options that contradict each other, or that the VAE does not fit.
    """
    out = local_folder(out)
    factor = vae.config.downscale_factor
    sides = [(each.z.shape[-1] * factor, each.z.shape[-2] * factor) for each in latents]
    buckets = Buckets(max(width for width, _ in sides), max(height for _, height in sides))
    settings = Settings(buckets, shard_images=automatic_shard(buckets), **options)
    if settings.layout == "kohya":
        kohya.check_family(str(settings.kohya), vae.config)
    _check_names([each.name for each in latents], settings.layout)
    splits = [
        Split(number, "files", names, names)
        for number, start in enumerate(range(0, len(latents), settings.shard_images))
        if (names := tuple(each.name for each in latents[start : start + settings.shard_images]))
    ]
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise DatasetError(f"cannot make {out}: {in_one_line(error)}. Use another name.") from error
    try:
        collection = Collection.begin(out, SOURCE, splits, settings, vae)
        todo = iter(zip(latents, sides, strict=True))
        for split in splits:
            shard = Shard(split.number, 0, settings, last=True)
            for position in range(len(split.keys)):
                shard.done[position] = _encoded(position, *next(todo), collection)
            collection.commit(shard)
        collection.finish()
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return collection


def _encoded(position: int, latent: NamedLatent, side: tuple[int, int], collection: Collection) -> EncodedImage:
    z = latent.z.detach().float().cpu()
    sha256 = hashlib.sha256(z.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
    image = Prepared(
        latent.name,
        position,
        sha256,
        latent.size or side,
        Fit(side, latent.size or side, (0, 0)),  # smaller than the latent: it was padded
        np.empty((0, 0, 0), np.uint8),
        None,
    )
    settings = collection.settings
    kept = z if settings.keep == "moments" else collection.scale.apply(z)
    return EncodedImage(image, kept.to(STORED[settings.stored]), None)


def _check_names(names: Sequence[str], layout: str) -> None:
    seen = set()
    for name in names:
        if not name or safe_path(name) != name:
            raise DatasetError(f"{name!r} cannot be the name of an image's file. Use one such as photos/0001.")
        if name in seen:
            raise DatasetError(f"two latents have the name {name}. Give each a name of its own.")
        seen.add(name)
    if layout == "kohya":
        kohya.check_names(names, {})
