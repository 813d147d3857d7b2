"""The latents of a folder by index, of any origin: a collection, or cache files of kohya's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from ..errors import DatasetError
from . import kohya
from .collection import find_manifests
from .listing import list_files
from .reader import LatentDataset
from .settings import Scale
from .writing import folder_name


class KohyaFiles:
    """Cache files of kohya's trainers, in a folder and below it, in the order of their names.

    Items are those of LatentDataset, without what only its records have; of a file with several resolutions, the
    largest.

    Raises:
        DatasetError: there are none, or a folder cannot be listed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(os.path.abspath(folder_name(folder)))
        found = [Path(name) for name in list_files(fsspec.filesystem("file"), str(self.folder), False)]
        self.paths = sorted(path for path in found if kohya.is_cache_name(path.name))
        if not self.paths:
            others = {kohya.other_model(path.name) for path in found} - {None}
            if others:
                raise DatasetError(
                    f"{folder} has cache files of {' and '.join(sorted(map(str, others)))}, whose VAE is not an "
                    f"AutoencoderKL. Give a folder with latents of another model."
                )
            raise DatasetError(
                f"{folder} has no latents: neither a collection that `seamless-vae encode-dataset` wrote, nor cache "
                f"files of kohya's trainers such as photo_0512x0768_sdxl.npz. Give a folder that has."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int | None) -> None:
        """These files have no moments: every epoch is the same."""

    def files(self, index: int) -> list[Path]:
        """The file that an image's latents are read from."""
        return [self.paths[index]]

    def scale(self, index: int) -> Scale:
        """How the latents in an image's file are scaled."""
        return kohya.scale_of(kohya.family_in(self.paths[index].name))

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        scale = self.scale(index)
        found = kohya.read_file(path)
        item: dict[str, Any] = {
            "latents": scale.undo(found.latents.float()),
            "key": kohya.image_name(path.relative_to(self.folder).as_posix()),
            "size": found.original_size,
            "crop": found.crop_ltrb,
        }
        if found.flipped is not None:
            item["latents_flipped"] = scale.undo(found.flipped.float())
        if found.alpha_mask is not None:
            item["alpha_mask"] = found.alpha_mask
        return item


def open_folder(folder: str | os.PathLike[str]) -> LatentDataset | KohyaFiles:
    """The latents of a folder.

    Raises:
        DatasetError: it has none, or a collection that is not finished.
    """
    return LatentDataset(folder) if len(find_manifests(Path(folder_name(folder)))) == 1 else KohyaFiles(folder)


def has_latents(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder with these files in it is one for `open_folder`."""
    return bool(find_manifests(folder)) or any(kohya.is_cache_name(name) for name in names)
