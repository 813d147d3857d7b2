"""The layout "kohya": the cache files that the trainers of kohya-ss/sd-scripts look for beside each image.

`NAME_WWWWxHHHH_{sd,sdxl,flux,sd3}.npz`, of the image's own width and height. Arrays, after the classes
`LatentsCachingStrategy` of library/strategy_*.py: `latents` [C, h, w] in float32, `original_size` (width, height),
`crop_ltrb`, and if they are kept `latents_flipped` and `alpha_mask` [H, W] in [0, 1]. FLUX and SD3 add `_{h}x{w}` to
each name, so that one file has several resolutions. SD, SDXL and SD3 have raw z; FLUX has scale * (z - shift).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.families import FAMILIES
from ..config import AutoencoderKLConfig
from ..errors import ConfigError, DatasetError
from ..npz import read_arrays
from .buckets import kohya_crop
from .encode import Encoded, Shard
from .settings import Scale

SUFFIX = ".npz"
MULTIRESOLUTION = ("flux", "sd3")
_NAME = re.compile(r"_(\d{4,})x(\d{4,})_(sd|sdxl|flux|sd3)\.npz$")
_FAMILIES = {"SD 1.x": "sd", "SD 2.x": "sd", "SDXL": "sdxl", "FLUX.1": "flux", "SD3": "sd3"}
_FACTOR = 8  # the downscale factor of all of them
_NAMES = ("latents", "original_size", "crop_ltrb", "latents_flipped", "alpha_mask")


def files(shard: Shard, out: Path) -> dict[str, bytes]:
    """The cache files of the shard's images: path below the collection -> bytes.

    What a file of FLUX or SD3 already has in other resolutions is kept.
    """
    family = shard.settings.kohya
    assert family is not None
    return {
        name: _file(image, family, out / name)
        for image in shard.images
        for name in [file_name(image.image.key, image.image.size, family)]
    }


def file_name(key: str, size: tuple[int, int], family: str) -> str:
    """The cache file of an image by its key and its (width, height)."""
    return f"{os.path.splitext(key)[0]}_{size[0]:04d}x{size[1]:04d}_{family}{SUFFIX}"


def check_family(family: str, config: AutoencoderKLConfig) -> None:
    """Raise ConfigError for a VAE whose latents the trainers of a family cannot take."""
    channels = next(each.latent_channels for each in FAMILIES if _FAMILIES.get(each.name) == family)
    if (config.latent_channels, config.downscale_factor) != (channels, _FACTOR):
        raise ConfigError(
            f"latents of {family} have {channels} channels at 1/{_FACTOR} of the size, and those of this VAE have "
            f"{config.latent_channels} at 1/{config.downscale_factor}. Use the VAE of that model, or another family."
        )


def scale_of(family: str | None) -> Scale:
    """How the files of a family are scaled; of one that no file name tells, not at all."""
    if family != "flux":
        return Scale("raw", 1.0)
    fields = next(each.fields for each in FAMILIES if _FAMILIES.get(each.name) == family)
    return Scale("diffusion", fields["scaling_factor"], fields["shift_factor"])


def is_cache_name(name: str) -> bool:
    """Whether a file has the name of a cache file."""
    return _NAME.search(name) is not None


def family_in(name: str) -> str | None:
    """The family in the name of a cache file; None if it has none."""
    match = _NAME.search(name)
    return match[3] if match else None


def image_name(name: str) -> str:
    """The name of a cache file's image, without its ending."""
    return _NAME.sub("", name)


def family_of(name: str | None, config: AutoencoderKLConfig) -> str | None:
    """kohya's name for a family of checkpoints, where it has one for it."""
    return _FAMILIES.get(name or "") if config.downscale_factor == _FACTOR else None


def check_names(keys: Iterable[str], below: Mapping[str, str]) -> None:
    """Raise DatasetError if two images would share one cache file.

    Args:
        below: stem -> key of what was checked before; it is added to.
    """
    seen = below if isinstance(below, dict) else dict(below)
    for key in keys:
        other = seen.setdefault(os.path.splitext(key)[0], key)
        if other != key:
            raise DatasetError(
                f"{other} and {key} would share one cache file, because kohya's files have the name of the image "
                f"without its ending. Rename one of them, or choose the layout shards."
            )


def _file(image: Encoded, family: str, place: Path) -> bytes:
    source = image.image
    h, w = image.latents.shape[-2:]
    ending = f"_{h}x{w}" if family in MULTIRESOLUTION else ""
    arrays: dict[str, np.ndarray] = {
        "latents": image.latents.numpy(),
        "original_size": np.array(source.size),
        "crop_ltrb": np.array(kohya_crop(source.fit.bucket, source.size)),
    }
    if image.flipped is not None:
        arrays["latents_flipped"] = image.flipped.numpy()
    if source.alpha is not None:
        arrays["alpha_mask"] = source.alpha.astype(np.float32) / 255
    arrays = {f"{name}{ending}": array for name, array in arrays.items()}
    if ending and place.is_file():
        kept = {name: array for name, array in _load(place).items() if not name.endswith(ending)}
        arrays = {**dict(sorted(kept.items())), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


@dataclass(frozen=True)
class KohyaLatent:
    """One resolution of a cache file.

    Attributes:
        latents: as the file has them, [C, h, w]; `flipped` likewise.
        original_size: (width, height) of the image.
        crop_ltrb: see `kohya_crop`.
        alpha_mask: [H, W] in [0, 1].
        family: by the file's name; None if it does not say.
    """

    latents: Tensor
    original_size: tuple[int, int]
    crop_ltrb: tuple[float, ...]
    flipped: Tensor | None
    alpha_mask: Tensor | None
    family: str | None


def read_file(file: Path, size: tuple[int, int] | None = None) -> KohyaLatent:
    """Read a cache file of kohya's, ours or its own.

    Args:
        size: (h, w) of the latent, for files with several; None for the largest.

    Raises:
        DatasetError: it cannot be read, or has no latents of this size.
    """
    arrays = _load(file)
    endings = [name.removeprefix("latents") for name in arrays if re.fullmatch(r"latents(_\d+x\d+)?", name)]
    if size is not None:
        endings = [ending for ending in endings if arrays[f"latents{ending}"].shape[-2:] == size]
    if not endings:
        wanted = "" if size is None else f" of {size[0]} by {size[1]} latent pixels"
        raise DatasetError(
            f"{file} has no latents{wanted} ({', '.join(sorted(arrays))}). Give a cache file of kohya's."
        )
    ending = max(endings, key=lambda each: arrays[f"latents{each}"].size)
    found = {name: arrays[f"{name}{ending}"] for name in _NAMES if f"{name}{ending}" in arrays}
    latents = found["latents"]
    if latents.ndim != 3 or "original_size" not in found or "crop_ltrb" not in found:
        raise DatasetError(
            f"{file} has latents of shape {latents.shape} with {', '.join(sorted(found))}; "
            f"give a cache file of kohya's, of an image."
        )
    width, height = (int(side) for side in found["original_size"])
    return KohyaLatent(
        torch.from_numpy(latents),
        (width, height),
        tuple(float(side) for side in found["crop_ltrb"]),
        _tensor(found.get("latents_flipped")),
        _tensor(found.get("alpha_mask")),
        family_in(file.name),
    )


def read(
    file: Path, names: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Tensors of a cache file under the one name that is asked for; see `safetensors_layout.read`."""
    latent = read_file(file, size)
    found = {"latents": latent.latents, "latents_flipped": latent.flipped, "alpha_mask": latent.alpha_mask}
    return {(names or [""])[0]: {name: tensor for name, tensor in found.items() if tensor is not None}}


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(file)
    except ValueError as error:
        raise DatasetError(f"cannot read {file}: {error}. Encode the image again.") from None


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
