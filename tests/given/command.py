"""The command line in this process, and what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from given.pairs import model
from vae_core import AutoencoderKL
from vae_core.cli import main
from vae_core.latent import to_diffusion


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def three_vaes(folder: Path) -> dict[str, Path]:
    """Small models of three families, as folders."""
    made = {
        "sdxl": model("sd", scaling_factor=0.13025),
        "flux1": model("sd3", scaling_factor=0.3611, shift_factor=0.1159),
        "flux2": model("flux2"),
    }
    for name, each in made.items():
        each.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def photo(path: Path, shape: tuple[int, ...] = (24, 40, 3), seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def image_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def z_for(vae: AutoencoderKL) -> Tensor:
    channels = vae.config.latent_channels
    return torch.randn(1, channels, 4, 6, generator=torch.Generator().manual_seed(0))


def scaled(vae: AutoencoderKL, z: Tensor) -> Tensor:
    norm = getattr(vae, "bn", None)
    return to_diffusion(z, vae.config, *((norm.running_mean, norm.running_var) if norm is not None else ()))


def npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def shaped(*shape: int, **others: Any) -> dict[str, Tensor]:
    return {"latent_tensor": torch.zeros(shape, **others)}
