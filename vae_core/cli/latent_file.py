"""Files of latents: the one that `encode` writes, and those of others that `decode` reads.

Written: safetensors with `latent_tensor` [B, C, h, w] in float32, raw z, where all images have latents of one size; the
empty `latent_format_version_0` beside it marks them as raw, so that ComfyUI's LoadLatent takes the file as it is.
Images of several sizes are in `latent_tensor.0`, `latent_tensor.1`, ... `alpha.0`, ... [H, W] of bytes is the opacity
of an image that had one. The metadata's `seamless_vae` is JSON: `sizes`, the [height, width] of each image, to which
`decode` cuts; `names`, of their files.

Read, besides:
- ComfyUI's `.latent` without the mark, of early 2023: divided by 0.18215, as its own loader does.
- FLUX.2's latents packed into 128 channels and normalised, as ComfyUI and diffusers have them.
- `samples` and `latents`, also in pickled files. diffusers' `latents` are mostly scaled, which no file says.
- kohya's caches (`.npz`): raw, but FLUX.1's are scaled and shifted.
- latents of one frame, [B, C, 1, h, w].
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL
from ..checkpoints.open_file import open_tensor_file
from ..checkpoints.tensor_file import TensorFile
from ..checkpoints.write import safetensors, write_weights
from ..datasets import kohya
from ..errors import CheckpointError, VAEError
from ..latent import from_diffusion

NAMES = ("latent_tensor", "samples", "latents")
RAW_MARK = "latent_format_version_0"
METADATA_KEY = "seamless_vae"
UNMARKED_SCALE = 0.18215  # of ComfyUI's files without the mark
FLUX1_SCALING = (0.3611, 0.1159)

Form = Literal["raw", "scaled", "unmarked", "unknown", "kohya"]


@dataclass(frozen=True)
class Latent:
    """One image's latent.

    Attributes:
        z: [1, C, h, w], as the file has it.
        size: (height, width) of the image in pixels; None if it is not known.
        name: of the image's file, without its ending; None if it is not known.
        alpha: opacity [1, H, W] in [0, 1]; None if the image had none.
        form: raw; scaled for a diffusion model; ComfyUI's "unmarked"; kohya's; or "unknown", which is taken as raw.
    """

    z: Tensor
    size: tuple[int, int] | None = None
    name: str | None = None
    alpha: Tensor | None = None
    form: Form = "raw"


def write_latents(path: Path, latents: list[Latent], *, overwrite: bool = True) -> None:
    """Write raw latents to one file. Raises CheckpointError if it cannot be written."""
    if len({latent.z.shape for latent in latents}) == 1:
        tensors = {NAMES[0]: torch.cat([latent.z for latent in latents]), RAW_MARK: torch.tensor([])}
    else:
        tensors = {f"{NAMES[0]}.{i}": latent.z for i, latent in enumerate(latents)}
    for i, latent in enumerate(latents):
        if latent.alpha is not None:
            tensors[f"alpha.{i}"] = (latent.alpha[0] * 255).round().to(torch.uint8)
    about = {"sizes": [latent.size for latent in latents], "names": [latent.name for latent in latents]}
    write_weights(path, safetensors(tensors, {METADATA_KEY: json.dumps(about)}), overwrite=overwrite)


def is_latent_file(path: Path) -> bool:
    """Whether a file is one of latents, or not a file of tensors at all."""
    try:
        tensors = open_tensor_file(path).tensors
    except VAEError:
        return True
    return any(name.partition(".")[0] in NAMES for name in tensors)


def raw_latent(latent: Latent, vae: AutoencoderKL, form: Form | None = None) -> Tensor:
    """Raw z of a latent for this VAE, [1, C, h, w] in float32.

    Args:
        form: wins over what the file says.

    Raises:
        ShapeError: it is not a latent of this VAE.
    """
    form = form or latent.form
    config, z = vae.config, latent.z.float()
    is_flux1 = (config.scaling_factor, config.shift_factor) == FLUX1_SCALING
    is_packed = config.patch_size is not None and z.shape[1] == config.latent_channels * (
        config.patch_size[0] * config.patch_size[1]
    )
    if form == "unmarked" and not is_packed:  # ComfyUI's FLUX.2 is younger than the mark
        z = z / UNMARKED_SCALE
    if is_packed or form == "scaled" or (form == "kohya" and is_flux1):
        z = from_diffusion(z, config, *_statistics(vae))
    vae.check_latent(z)
    return z


def _statistics(vae: AutoencoderKL) -> tuple[Tensor | None, Tensor | None]:
    norm = getattr(vae, "bn", None)
    return (None, None) if norm is None else (norm.running_mean.cpu(), norm.running_var.cpu())


# Reading.


def read_latents(path: Path) -> list[Latent]:
    """Read a file of latents.

    Raises:
        CheckpointError: no such file, or not one of latents of images.
    """
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "it does not exist"
        raise CheckpointError(f"cannot read {path}: {what}. Give a file of latents.")
    if _is_npz(path):
        return [_kohya_latent(path)]
    try:
        file = open_tensor_file(path)
    except VAEError as error:
        raise CheckpointError(
            f"cannot read {path} as latents: {error} Give a file that `seamless-vae encode`, ComfyUI or diffusers "
            f"wrote."
        ) from None
    name, keys = _latent_keys(path, file)
    alphas = [key for key in file.tensors if re.fullmatch(r"alpha\.\d{1,6}", key)]
    try:
        tensors = file.read([*keys, *alphas])
    except (VAEError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"cannot read {path} as latents: {error}") from None
    form = _form(name, keys, file)
    samples = [item for key in keys for item in _images(path, key, tensors[key], name)]
    sizes, names = _about(path, file.metadata, len(samples))
    return [
        Latent(z[None].float(), sizes[i], names[i], _alpha(path, tensors.get(f"alpha.{i}")), form)
        for i, z in enumerate(samples)
    ]


def _latent_keys(path: Path, file: TensorFile) -> tuple[str, list[str]]:
    """Which of NAMES a file has, and the keys of its latents in their order."""
    for name in NAMES:
        if name in file.tensors:
            return name, [name]
        numbered = [key for key in file.tensors if re.fullmatch(rf"{name}\.\d{{1,6}}", key)]
        if numbered:
            return name, sorted(numbered, key=lambda key: int(key.rpartition(".")[2]))
    others = [key[:80] for key in file.tensors if key != RAW_MARK]
    found = f"it has {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else "it is empty"
    raise CheckpointError(f"{path.name} has no {', '.join(NAMES)}: {found}. Give a file of latents.")


def _form(name: str, keys: Sequence[str], file: TensorFile) -> Form:
    if METADATA_KEY in file.metadata or RAW_MARK in file.tensors or keys != [name]:
        return "raw"
    return {"latent_tensor": "unmarked", "latents": "unknown"}.get(name, "raw")  # type: ignore[return-value]


def _images(path: Path, key: str, z: Tensor, name: str) -> list[Tensor]:
    """The latents [C, h, w] of one tensor."""
    shape = tuple(z.shape)
    if not z.is_floating_point():
        raise CheckpointError(f"{path.name} has {key} of {z.dtype}; latents are floats. Use a file of latents.")
    if z.ndim == 5 and shape[2] == 1:
        z = z[:, :, 0]
    if z.ndim == 3 and name == "latents":
        z = z[None]
    if z.ndim != 4 or 0 in shape:
        what = {3: "sound, or FLUX's tokens", 5: "video"}.get(z.ndim, "something else")
        raise CheckpointError(
            f"{path.name} has latents of shape {shape}{'' if 0 in shape else f', of {what}'}; those of images have 4 "
            f"dimensions: batch, channels, height, width. Use a file of images."
        )
    return list(z)


def _alpha(path: Path, alpha: Tensor | None) -> Tensor | None:
    if alpha is None:
        return None
    if alpha.dtype != torch.uint8 or alpha.ndim != 2:
        raise CheckpointError(
            f"{path.name} has an opacity of {alpha.dtype} and shape {tuple(alpha.shape)}; it is [H, W] of bytes. "
            f"Encode the images again."
        )
    return alpha[None].float() / 255


def _about(
    path: Path, metadata: Mapping[str, str], count: int
) -> tuple[list[tuple[int, int] | None], list[str | None]]:
    """The sizes and names of the images."""
    if METADATA_KEY not in metadata:
        return [None] * count, [None] * count
    try:
        about = json.loads(metadata[METADATA_KEY])
        sizes, names = about["sizes"], about["names"]
        if not (isinstance(sizes, list) and isinstance(names, list) and len(sizes) == len(names) == count):
            raise ValueError(f"it is not about {count} latents")
        if not all(name is None or isinstance(name, str) for name in names):
            raise ValueError("a name is not text")
        return [_size(size) for size in sizes], names
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata of {path.name} cannot be read ({type(error).__name__}: {str(error)[:200]}). Encode the "
            f"images again."
        ) from None


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise ValueError("a size is not a height and a width")
    return size[0], size[1]


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, EOFError):
        return False


def _kohya_latent(path: Path) -> Latent:
    try:
        found = kohya.read_file(path)
    except Exception as error:  # numpy and zipfile raise anything on damaged files
        raise CheckpointError(f"cannot read {path} as latents of kohya's trainers: {error}") from None
    form: Form = {"flux": "scaled", None: "kohya"}.get(found.family, "raw")  # type: ignore[assignment]
    [z] = _images(path, "latents", found.latents, "latents")
    return Latent(z[None].float(), None, path.stem, None, form)
