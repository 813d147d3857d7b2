"""The ways to write a model to disk, and whether one read again is the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae, save_single_file
from vae_core.checkpoints.single_file import ldm_state_dict


def ldm(model: AutoencoderKL, prefix: str = "") -> dict[str, Tensor]:
    """A model's weights by LDM keys."""
    weights = ldm_state_dict(model.state_dict(), model.config)
    return {f"{prefix}{key}": weight.contiguous() for key, weight in weights.items()}


def write(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Tensors as a safetensors file, whatever their strides."""
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, path, metadata=metadata)
    return path


def renamed(weights: Mapping[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    """Weights with parts of their names replaced."""
    result = {}
    for name, weight in weights.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = weight
    return result


def deprecated(model: AutoencoderKL) -> dict[str, Tensor]:
    """A model's weights by the keys that diffusers had before 0.17."""
    renamed = {}
    for key, weight in model.state_dict().items():
        if ".attentions." in key:
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                key = key.replace(f".{new}.", f".{old}.")
        renamed[key] = weight
    return renamed


def _bare_folder(model: AutoencoderKL, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
    return folder


def _deprecated_folder(model: AutoencoderKL, path: Path) -> Path:
    save_file(deprecated(model), _bare_folder(model, path) / "diffusion_pytorch_model.safetensors")
    return path


def _pipeline(model: AutoencoderKL, path: Path) -> Path:
    model.save_pretrained(path / "vae")
    return path


def _file(write: Callable[[AutoencoderKL, Path], Any], suffix: str) -> Callable[[AutoencoderKL, Path], Path]:
    def to(model: AutoencoderKL, path: Path) -> Path:
        path = path.with_suffix(suffix)
        write(model, path)
        return path

    return to


def _folder(**options: Any) -> Callable[[AutoencoderKL, Path], Path]:
    def to(model: AutoencoderKL, path: Path) -> Path:
        model.save_pretrained(path, **options)
        return path

    return to


# Each writes a model somewhere at or below a path and returns what to load.
SELF_DESCRIBING = {  # the config is in it
    "folder": _folder(),
    "folder, shards": _folder(max_shard_size="300KB"),
    "folder, bin": _folder(safe_serialization=False),
    "folder, bin shards": _folder(safe_serialization=False, max_shard_size="300KB"),
    "folder, deprecated keys": _deprecated_folder,
    "pipeline": _pipeline,
    "our single file": _file(save_single_file, ".safetensors"),
}
BARE = {  # the config is to be found out
    "LDM safetensors": _file(lambda m, p: save_file(ldm(m), p), ".safetensors"),
    "diffusers safetensors": _file(lambda m, p: save_file(m.state_dict(), p), ".safetensors"),
    "deprecated safetensors": _file(lambda m, p: save_file(deprecated(m), p), ".safetensors"),
    "first_stage_model.": _file(lambda m, p: save_file(ldm(m, "first_stage_model."), p), ".safetensors"),
    "vae.": _file(lambda m, p: save_file(ldm(m, "vae."), p), ".safetensors"),
    "LDM ckpt": _file(lambda m, p: torch.save({"state_dict": ldm(m, "first_stage_model.")}, p), ".ckpt"),
    "diffusers pt": _file(lambda m, p: torch.save(m.state_dict(), p), ".pt"),
    "old torch format": _file(
        lambda m, p: torch.save(ldm(m), p, _use_new_zipfile_serialization=False),
        ".pth",
    ),
}


def assert_same_weights(a: AutoencoderKL, b: AutoencoderKL) -> None:
    """Bit for bit, names and types included."""
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key, weight in left.items():
        assert weight.dtype == right[key].dtype, key
        assert torch.equal(weight, right[key]), key


def refusal(path: Path) -> str:
    """What both load_vae and inspect_vae say of a file."""
    with pytest.raises(CheckpointError) as error:
        load_vae(path)
    assert inspect_vae(path).problem == str(error.value)
    return str(error.value)
