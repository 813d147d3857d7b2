"""The file that `encode` writes and `decode` reads: latents in safetensors, and what they came from.

Tensors: `latent_tensor` [B, C, h, w] in float32, raw z, where all images have latents of one size; the empty
`latent_format_version_0` beside it marks them as raw, so that ComfyUI's LoadLatent takes the file as it is. Images of
several sizes are in `latent_tensor.0`, `latent_tensor.1`, ... `alpha.0`, ... [H, W] of bytes is the opacity of a
image that had one. The metadata's `seamless_vae` is JSON: `sizes`, the [height, width] of each image, to which
`decode` cuts; `names`, of their files.

Also read: `samples` and `latents` in the place of `latent_tensor`, without sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoints.write import safetensors, write_weights
from ..errors import CheckpointError

NAMES = ("latent_tensor", "samples", "latents")
RAW_MARK = "latent_format_version_0"
METADATA_KEY = "seamless_vae"


@dataclass(frozen=True)
class Latent:
    """One image's latent.

    Attributes:
        z: raw, [1, C, h, w].
        size: (height, width) of the image in pixels; None if it is not known.
        name: of the image's file, without its ending; None if it is not known.
        alpha: opacity [1, H, W] in [0, 1]; None if the image had none.
    """

    z: Tensor
    size: tuple[int, int] | None = None
    name: str | None = None
    alpha: Tensor | None = None


def write_latents(path: Path, latents: list[Latent]) -> None:
    """Write latents to one file. Raises CheckpointError if it cannot be written."""
    if len({latent.z.shape for latent in latents}) == 1:
        tensors = {NAMES[0]: torch.cat([latent.z for latent in latents]), RAW_MARK: torch.tensor([])}
    else:
        tensors = {f"{NAMES[0]}.{i}": latent.z for i, latent in enumerate(latents)}
    for i, latent in enumerate(latents):
        if latent.alpha is not None:
            tensors[f"alpha.{i}"] = (latent.alpha[0] * 255).round().to(torch.uint8)
    about = {"sizes": [latent.size for latent in latents], "names": [latent.name for latent in latents]}
    write_weights(path, safetensors(tensors, {METADATA_KEY: json.dumps(about)}))


def read_latents(path: Path) -> list[Latent]:
    """Read a file of latents.

    Raises:
        CheckpointError: no such file, not safetensors, or no latents in it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (not a mapping)
                if name.partition(".")[0] in (*NAMES, "alpha")
            }
            others = [name for name in file.keys() if name not in tensors and name != RAW_MARK]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}. Give a file that `seamless-vae encode` or ComfyUI's SaveLatent wrote."
        ) from None
    samples = _samples(path, tensors, others)
    about = _about(path, metadata, len(samples))
    return [
        Latent(
            z[None].float(),
            tuple(about["sizes"][i]) if about["sizes"][i] else None,
            about["names"][i],
            tensors[f"alpha.{i}"][None].float() / 255 if f"alpha.{i}" in tensors else None,
        )
        for i, z in enumerate(samples)
    ]


def _samples(path: Path, tensors: Mapping[str, Tensor], others: list[str]) -> list[Tensor]:
    for name in NAMES:
        if name in tensors:
            found = [tensors[name]]
        else:
            numbered = sorted(
                (key for key in tensors if key.startswith(f"{name}.")), key=lambda key: int(key[len(name) + 1 :])
            )
            found = [tensors[key] for key in numbered]
        if not found:
            continue
        for z in found:
            if z.ndim != 4:
                raise CheckpointError(
                    f"{path.name} has latents of shape {tuple(z.shape)}; those of images have 4 dimensions: batch, "
                    f"channels, height, width. Use a file of images."
                )
        return [item for z in found for item in z]
    held = f"it holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else "it is empty"
    raise CheckpointError(f"{path.name} has no {', '.join(NAMES)}: {held}. Give a file of latents.")


def _about(path: Path, metadata: Mapping[str, str], count: int) -> dict:
    nothing = {"sizes": [None] * count, "names": [None] * count}
    if METADATA_KEY not in metadata:
        return nothing
    try:
        about = json.loads(metadata[METADATA_KEY])
        if len(about["sizes"]) == len(about["names"]) == count:
            return about
        problem = f"it tells of {len(about['sizes'])} images, but there are {count} latents"
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise CheckpointError(f"the metadata of {path.name} cannot be read ({problem}). Encode the images again.")
