"""The layout "kohya": the cache files that the trainers of kohya-ss/sd-scripts look for beside each image.

`NAME_WWWWxHHHH_{sd,sdxl,flux,sd3,lumina}.npz`, of the image's own width and height. Arrays, after the classes
`LatentsCachingStrategy` of library/strategy_*.py: `latents` [C, h, w] in float32, `original_size` (width, height),
`crop_ltrb`, and if they are kept `latents_flipped` and `alpha_mask` [H, W] in [0, 1]. All but SD and SDXL add
`_{h}x{w}` to each name, so that one file has several resolutions. SD, SDXL and SD3 have raw z; FLUX and Lumina, which
share a VAE, have scale * (z - shift).
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.families import FAMILIES, Family
from ..config import AutoencoderKLConfig
from ..errors import ConfigError, DatasetError, in_one_line
from ..npz import read_arrays
from ..regular_files import open_regular
from ..units import MIB
from .buckets import kohya_crop
from .cache_names import SUFFIX, file_name
from .encode import EncodedImage, Shard
from .settings import KOHYA_SCALED, KohyaFamily, Scale

logger = logging.getLogger("seamless_vae")

MULTIRESOLUTION = ("flux", "sd3", "lumina")
_NAME = re.compile(rf"_(\d{{4,}})x(\d{{4,}})_({'|'.join(get_args(KohyaFamily))})\.npz$")
_OTHER_NAME = re.compile(r"_\d{4,}x\d{4,}_(hi|anima)\.npz$")
_OTHERS = {"hi": "HunyuanImage", "anima": "Anima"}  # whose VAEs are not AutoencoderKL
# Each of kohya's families -> the families of checkpoints whose VAE it trains with.
_FAMILIES = {
    "sd": ("SD 1.x", "SD 2.x"), "sdxl": ("SDXL",), "flux": ("FLUX.1",), "sd3": ("SD3",), "lumina": ("FLUX.1",)
}  # fmt: skip
_FACTOR = 8  # the downscale factor of all of them
_NAMES = ("latents", "original_size", "crop_ltrb", "latents_flipped", "alpha_mask")
_ENDING = re.compile(rf"({'|'.join(_NAMES)})(_\d+x\d+)?")


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


def entries(shard: Shard) -> dict[str, dict[str, Any]]:
    """What records say of files that the shard has only a part of, its resolution: see `measure`."""
    family = str(shard.settings.kohya)
    if family not in MULTIRESOLUTION:
        return {}
    found = {}
    for image in shard.images:
        arrays, ending = _arrays(image, family)
        name = file_name(image.image.key, image.image.size, family)
        found[name] = {**dict(zip(("bytes", "sha256"), _measured(arrays), strict=True)), "ending": ending}
    return found


def measure(file: Path, ending: str) -> tuple[int, str]:
    """(bytes, SHA-256) of the arrays of one resolution in a file of several.

    Raises:
        DatasetError: the file cannot be read.
    """
    return _measured({name: array for name, array in _load(file).items() if _ending(name) == ending})


def check_family(family: str, config: AutoencoderKLConfig) -> None:
    """Raise ConfigError for a VAE whose latents the trainers of a family cannot take."""
    known = _checkpoints(family)
    channels = known.latent_channels
    fields = known.fields
    if (config.latent_channels, config.downscale_factor) != (channels, _FACTOR):
        raise ConfigError(
            f"latents of {family} have {channels} channels at 1/{_FACTOR} of the size, and those of this VAE have "
            f"{config.latent_channels} at 1/{config.downscale_factor}. Use the VAE of that model, or another family."
        )
    expected = (fields["scaling_factor"], fields.get("shift_factor", 0.0))
    given = (config.scaling_factor, config.shift_factor or 0.0)
    # Only those of 16 channels: the files of SD and SDXL are not scaled, and nothing else distinguishes their VAEs.
    if family in MULTIRESOLUTION and not all(map(math.isclose, given, expected)):
        raise ConfigError(
            f"latents of {family} have the scale {expected[0]} and the shift {expected[1]}, and this VAE has "
            f"{given[0]} and {given[1]}. Use the VAE of that model, or another family; of a file that does not say "
            f"what it is, name its family."
        )


def scale_of(family: str | None) -> Scale:
    """How the files of a family are scaled; of one that no file name tells, not at all."""
    if family not in KOHYA_SCALED:
        return Scale("raw", 1.0)
    fields = _checkpoints(family).fields
    return Scale("diffusion", fields["scaling_factor"], fields["shift_factor"])


def is_cache_name(name: str) -> bool:
    """Whether a file has the name of a cache file."""
    return _NAME.search(name) is not None


def other_model(name: str) -> str | None:
    """The model in the name of a cache file that has latents of another kind of VAE; None if it has none."""
    match = _OTHER_NAME.search(name)
    return _OTHERS[match[1]] if match else None


def family_in(name: str) -> str | None:
    """The family in the name of a cache file; None if it has none."""
    match = _NAME.search(name)
    return match[3] if match else None


def image_name(name: str) -> str:
    """The name of a cache file's image, without its ending."""
    return _NAME.sub("", name)


def family_of(name: str | None, config: AutoencoderKLConfig) -> str | None:
    """kohya's name for a family of checkpoints, where it has one for it."""
    if config.downscale_factor != _FACTOR:
        return None
    return next((family for family, names in _FAMILIES.items() if name in names), None)


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


def warn_of_old_files(keys: Iterable[str], out: Path, family: str) -> None:
    """Say which images have a cache file of kohya's older form beside them, `NAME.npz`."""
    if family not in ("sd", "sdxl"):
        return
    old = [name for key in keys if os.path.exists(out / (name := f"{os.path.splitext(key)[0]}{SUFFIX}"))]
    if old:
        logger.warning(
            "%d images have a cache file of an older format (%s%s), which kohya's trainers prefer to the new ones. "
            "Move them elsewhere if the trainers are to use the new ones.",
            len(old), old[0], ", ..." if len(old) > 1 else "",
        )  # fmt: skip


def _checkpoints(family: str | None) -> Family:
    return next(each for each in FAMILIES if each.name in _FAMILIES[str(family)])


def _ending(name: str) -> str | None:
    """The `_HxW` of an array's name, which may be empty; None for one that kohya's files do not have."""
    match = _ENDING.fullmatch(name)
    return (match[2] or "") if match else None


def _measured(arrays: Mapping[str, np.ndarray]) -> tuple[int, str]:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return sum(array.nbytes for array in arrays.values()), digest.hexdigest()


def _file(image: EncodedImage, family: str, place: Path) -> bytes:
    arrays, ending = _arrays(image, family)
    if ending and os.path.lexists(place):
        arrays = {**_others(place, ending), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def _others(place: Path, ending: str) -> dict[str, np.ndarray]:
    """The other resolutions that a file has. Nothing of one that is damaged, as a trainer that was killed leaves it."""
    try:
        with open_regular(place) as file:  # what the disk raises is not damage
            while file.read(MIB):
                pass
        found = read_arrays(place)
    except OSError as error:
        raise DatasetError(
            f"cannot read {place}, which has other resolutions: {in_one_line(error)}. Check the folder, and run "
            f"the same command with --resume."
        ) from error
    except ValueError as error:
        logger.warning(
            "%s is damaged (%s); it is replaced by one with this resolution alone.", place, in_one_line(error)
        )
        return {}
    return {name: array for name, array in sorted(found.items()) if _ending(name) not in (None, "", ending)}


def _arrays(image: EncodedImage, family: str) -> tuple[dict[str, np.ndarray], str]:
    """An image's arrays by their names in the file, and what the names end with."""
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
    return {f"{name}{ending}": array for name, array in arrays.items()}, ending


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
        DatasetError: it cannot be read, or has no latents of this size, or latents of another kind of VAE.
    """
    if other := other_model(file.name):
        raise DatasetError(
            f"{file} has latents of {other}, whose VAE is not an AutoencoderKL. Give a cache file of one of "
            f"{', '.join(get_args(KohyaFamily))}."
        )
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
        raise DatasetError(f"cannot read {file}: {in_one_line(error)}. Encode the image again.") from None


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
