"""Files of latents: the one that `encode` writes, and those of others that `decode` reads.

Written: safetensors with `latent_tensor` [B, C, h, w] in float32, raw z, where all images have latents of one size; the
empty `latent_format_version_0` beside it marks them as raw, so that ComfyUI's LoadLatent takes the file as it is.
Images of several sizes are in `latent_tensor.0`, `latent_tensor.1`, ... `alpha.0`, ... [H, W] of bytes is the opacity
of an image that had one. The metadata's `seamless_vae` is JSON: `sizes`, the [height, width] of each image, to which
`decode` cuts; `names`, of their files.

Read, besides:
- ComfyUI's `.latent` without the mark, of early 2023: divided by 0.18215, as its own loader does.
- FLUX.2's latents packed into 128 channels and normalised, as ComfyUI and diffusers have them.
- `samples`, `latents` and `latent`, also in pickled files; tensors and arrays without a name (`torch.save(latents)`,
  `np.save`, `np.savez`). diffusers' latents are mostly scaled, which no file says.
- trainers' caches: kohya's (`.npz`), which are raw, but FLUX.1's scaled and shifted; `latents_HxW`, `latent_image`.
- latents of one frame, [B, C, 1, h, w].

`decode --raw` and `--scaled` say what the numbers are, and win over all of this.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL
from ..checkpoints.open_file import open_tensor_file
from ..checkpoints.tensor_file import TensorFile, in_memory
from ..checkpoints.write import safetensors, write_whole
from ..datasets import kohya
from ..errors import CheckpointError, VAEError, in_one_line
from ..latent import METADATA_KEY, from_diffusion, pack, unpack
from ..npz import native, read_arrays
from ..regular_files import open_regular

NAMES = ("latent_tensor", "samples", "latents", "latent", "latent_image")
CACHED = ("latents", "latent", "latent_image")  # of one image without its batch, mostly
UNNAMED = "latents"  # what tensors and arrays without a name are taken for
RESOLUTION = r"latents_(\d{1,6}x){1,2}\d{1,6}(_\w{1,20})?"  # of trainers' caches: frames, height, width, number type
TOKEN_CHANNELS = (64, 128)  # of FLUX's latents as a sequence, which its pipelines give
NUMPY_START = b"\x93NUMPY"
RAW_MARK = "latent_format_version_0"
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
        tensors = {
            NAMES[0]: torch.cat([latent.z for latent in latents]),
            RAW_MARK: torch.empty(0, dtype=torch.float32, device="cpu"),
        }
    else:
        tensors = {f"{NAMES[0]}.{i}": latent.z for i, latent in enumerate(latents)}
    for i, latent in enumerate(latents):
        if latent.alpha is not None:
            tensors[f"alpha.{i}"] = (latent.alpha[0] * 255).round().to(torch.uint8)
    about = {"sizes": [latent.size for latent in latents], "names": [latent.name for latent in latents]}
    write_whole(path, safetensors(tensors, {METADATA_KEY: json.dumps(about)}), overwrite=overwrite)


def is_latent_file(path: Path) -> bool:
    """Whether a file is one of latents, or not a file of tensors at all."""
    try:
        tensors = open_tensor_file(path).tensors
    except VAEError:
        return True
    return any(name.partition(".")[0] in NAMES for name in tensors)


def is_packed(latent: Latent, vae: AutoencoderKL) -> bool:
    """Whether a latent is packed and normalised, as only a pipeline of FLUX.2 makes them."""
    patch = vae.config.patch_size
    channels = vae.config.latent_channels
    return patch is not None and latent.z.shape[1] == channels * patch[0] * patch[1]


def raw_latent(latent: Latent, vae: AutoencoderKL, form: Form | None = None) -> Tensor:
    """Raw z of a latent for this VAE, [1, C, h, w] in float32.

    That FLUX.2's latents are packed shows in their number of channels, whatever their form is.

    Args:
        form: wins over what the file says, and over packed latents' being normalised.

    Raises:
        ShapeError: it is not a latent of this VAE.
    """
    config = vae.config
    z = latent.z.float()
    packed = is_packed(latent, vae)
    if form is None:  # programs that pack normalise as well, and are younger than ComfyUI's mark
        form = "scaled" if packed else latent.form
    patch = config.patch_size
    if form == "scaled" or (form == "kohya" and (config.scaling_factor, config.shift_factor) == FLUX1_SCALING):
        z = from_diffusion(z if packed or patch is None else pack(z, patch), config, *_statistics(vae))
    elif packed and patch is not None:
        z = unpack(z, patch)
    elif form == "unmarked":
        z = z / UNMARKED_SCALE
    vae.check_latent_shape(z.shape)
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
        what = "it is a folder" if path.is_dir() else "it is not a file" if path.exists() else "it does not exist"
        raise CheckpointError(f"cannot read {path}: {what}. Give a file of latents.")
    arrays = _arrays_in(path)
    if any(name.startswith("original_size") for name in arrays):  # a cache of kohya's says what size the image had
        return [_kohya_latent(path)]
    file = _opened(path, is_npz=bool(arrays))
    name, keys = _latent_keys(path, file)
    alphas = [key for key in file.tensors if re.fullmatch(r"alpha\.\d{1,6}", key)]
    try:
        tensors = file.read([*keys, *alphas])
    except VAEError as error:
        raise CheckpointError(f"cannot read {path} as latents: {error}") from None
    except (ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path} as latents: {in_one_line(error)}. Check the file and its disk."
        ) from None
    form = _form(name, keys, file)
    samples = [item for key in keys for item in _images(path, key, tensors[key], name)]
    sizes, names = _about(path, file.metadata, len(samples))
    return [
        Latent(z[None].float(), sizes[i], names[i], _alpha(path, tensors.get(f"alpha.{i}")), form)
        for i, z in enumerate(samples)
    ]


def _opened(path: Path, is_npz: bool) -> TensorFile:
    """The tensors of a file, or the arrays of NumPy's files."""
    try:
        if is_npz:
            arrays = read_arrays(path)
            names = list(arrays) if any(name in NAMES for name in arrays) else _numbered(len(arrays))
            tensors = {name: torch.from_numpy(array) for name, array in zip(names, arrays.values(), strict=True)}
            return in_memory(tensors, path.name)
        with open_regular(path) as file:
            start = file.read(len(NUMPY_START))
        if start == NUMPY_START:
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # a header that lies is refused before any work
            return in_memory({UNNAMED: torch.from_numpy(native(np.array(array)))}, path.name)
        return open_tensor_file(path, UNNAMED)
    except (VAEError, ValueError, TypeError, OSError, EOFError) as error:
        reason = in_one_line(error).partition(". ")[0].rstrip(".")  # what a VAE's file would need does not follow
        raise CheckpointError(
            f"cannot read {path} as latents: {reason}. Give a file that `seamless-vae encode`, ComfyUI or diffusers "
            f"wrote."
        ) from None


def _numbered(count: int) -> list[str]:
    return [UNNAMED] if count == 1 else [f"{UNNAMED}.{i}" for i in range(count)]


def _latent_keys(path: Path, file: TensorFile) -> tuple[str, list[str]]:
    """Which of NAMES a file has, and the keys of its latents in their order."""
    for name in NAMES:
        if name in file.tensors:
            return name, [name]
        numbered = [key for key in file.tensors if re.fullmatch(rf"{name}\.\d{{1,6}}", key)]
        if numbered:
            return name, sorted(numbered, key=lambda key: int(key.rpartition(".")[2]))
    caches = [key for key in file.tensors if re.fullmatch(RESOLUTION, key)]
    if caches:
        return UNNAMED, sorted(caches)
    others = [key[:80] for key in file.tensors if key != RAW_MARK]
    found = f"it has {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else "it is empty"
    raise CheckpointError(f"{path.name} has no {', '.join(NAMES)}: {found}. Give a file of latents.")


def _form(name: str, keys: Sequence[str], file: TensorFile) -> Form:
    if METADATA_KEY in file.metadata or RAW_MARK in file.tensors:
        return "raw"
    if name == "latent_tensor":
        return "unmarked" if keys == [name] else "raw"
    return "raw" if name == "samples" else "unknown"


def _images(path: Path, key: str, z: Tensor, name: str) -> list[Tensor]:
    """The latents [C, h, w] of one tensor."""
    shape = tuple(z.shape)
    if not z.is_floating_point():
        raise CheckpointError(f"{path.name} has {key} of {z.dtype}; latents are floats. Use a file of latents.")
    if z.ndim == 5 and shape[2] == 1:
        z = z[:, :, 0]
    if z.ndim == 3 and name == UNNAMED and shape[0] < 4 and shape[2] in TOKEN_CHANNELS:
        raise CheckpointError(
            f"{path.name} has latents of shape {shape}: {shape[1]} tokens of {shape[2]} channels, as FLUX's pipelines "
            f"give them, without the number of tokens in a row. Unpack them with the pipeline's _unpack_latents, and "
            f"save that."
        )
    if z.ndim == 3 and name in CACHED:
        z = z[None]
    if z.ndim == 4 and shape[1] == 1 and re.fullmatch(RESOLUTION, key):
        z = z.movedim(1, 0)  # one frame, [C, 1, h, w]
    if 0 in shape:
        raise CheckpointError(f"{path.name} has latents of shape {shape}: there are none in it. Use another file.")
    if z.ndim != 4:
        what = {3: "sound, or tokens", 5: "video"}.get(z.ndim, "something else")
        raise CheckpointError(
            f"{path.name} has latents of shape {shape}, of {what}; those of images have 4 dimensions: batch, "
            f"channels, height, width. Use a file of images."
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
        sizes = about["sizes"]
        names = about["names"]
        if not (isinstance(sizes, list) and isinstance(names, list) and len(sizes) == len(names) == count):
            raise ValueError(f"it does not describe {count} latents")
        if not all(name is None or isinstance(name, str) for name in names):
            raise ValueError("a name is not text")
        return [_size(size) for size in sizes], names
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata of {path.name} cannot be read ({type(error).__name__}: {in_one_line(error)}). Encode the "
            f"images again."
        ) from None


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise ValueError("a size is not a height and a width")
    return size[0], size[1]


def _arrays_in(path: Path) -> list[str]:
    """The names of all entries of an archive of NumPy's arrays; none for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, EOFError):
        return []
    return names if any(name.endswith(".npy") for name in names) else []


def _kohya_latent(path: Path) -> Latent:
    try:
        found = kohya.read_file(path)
    except VAEError as error:
        raise CheckpointError(f"cannot read {path} as latents of kohya's trainers: {error}") from None
    except Exception as error:  # numpy and zipfile raise anything on damaged files
        raise CheckpointError(
            f"cannot read {path} as latents of kohya's trainers: {in_one_line(error)}. Encode the image again."
        ) from None
    scaled = kohya.scale_of(found.family).convention == "diffusion"
    form: Form = "kohya" if found.family is None else "scaled" if scaled else "raw"
    [z] = _images(path, "latents", found.latents, "latents")
    return Latent(z[None].float(), None, path.stem, None, form)
