"""The models and images that the stand-in back end offers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from given.models import BY_NAME, family_fields, make
from vae_core import AutoencoderKLConfig, save_single_file
from vae_core.layers import without_values

CHECKPOINT_SIZE = 7 * 10**9  # bytes


def write(data: Path) -> None:
    """Fill a data folder: models/vae, models/checkpoints, input, temp."""
    vae, checkpoints = data / "models" / "vae", data / "models" / "checkpoints"
    for folder in (vae, checkpoints, data / "input", data / "temp"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("SDXL", "FLUX.1", "FLUX.2"):
        save_single_file(make(family_fields(BY_NAME[name])), vae / f"{name.lower().replace('.', '')}.safetensors")
    save_file({"text_model.final_layer_norm.weight": torch.zeros(8)}, vae / "clip.safetensors")
    (vae / "broken.safetensors").write_bytes(b"<!doctype html><p>404")
    write_checkpoint(checkpoints / "sd15.safetensors")
    photo = Image.fromarray(pattern(96, 64))
    photo.save(data / "input" / "photo.png")


def write_checkpoint(path: Path) -> None:
    """A checkpoint of 7 GB with an SD VAE and many other tensors, sparse: it takes a few kilobytes of the disk."""
    from vae_core import AutoencoderKL
    from vae_core.checkpoints.single_file import ldm_state_dict

    config = AutoencoderKLConfig(**sd_fields())
    with without_values():
        model = AutoencoderKL(**config)
    shapes = {
        f"first_stage_model.{key}": tuple(weight.shape)
        for key, weight in ldm_state_dict({k: w for k, w in model.state_dict().items()}, config).items()
    }
    shapes |= {f"model.diffusion_model.blocks.{index}.weight": (1280, 1280) for index in range(1200)}
    shapes["cond_stage_model.transformer.text_model.embeddings.position_ids"] = (1, 77)
    header, start = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    rest = CHECKPOINT_SIZE - start
    header["model.diffusion_model.rest"] = {"dtype": "U8", "shape": [rest], "data_offsets": [start, start + rest]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + CHECKPOINT_SIZE)


def sd_fields() -> dict:
    return {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }


def pattern(width: int, height: int, shift: int = 0) -> np.ndarray:
    """An image [height, width, 3] in which every pixel is another colour."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 2 + shift) % 256, (y * 3) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
