"""What makes the files of one save one: the folder's old files, and signs by which a loader sees a mixture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import CLASS_NAME, FLUX2_CLASS_NAME
from ..errors import CheckpointError

SAVE_KEY = "seamless_vae.save"  # in each shard's header: the same in all shards of one save
OUR_CLASSES = (CLASS_NAME, FLUX2_CLASS_NAME, "FlaxAutoencoderKL")
COMPARED = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "norm_num_groups", "act_fn")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A name for these weights: equal weights have the same one."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        if weight.numel():
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_one_save(index: Path, seen: Mapping[str, str], shard: Path, metadata: Mapping[str, str]) -> None:
    """Compare a shard's metadata with what the shards before it had.

    Raises:
        CheckpointError: they are of different saves.
    """
    ours, theirs = seen.get(SAVE_KEY), metadata.get(SAVE_KEY)
    if ours is not None and theirs is not None and ours != theirs:
        raise CheckpointError(
            f"the shards that {index.name} names are of different saves: {shard.name} does not belong to those before "
            f"it. Save the model again, or copy all of its files anew."
        )


def differences(config: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """A remark where a folder's config is not the one that its weights were saved with; None where it is."""
    found = [
        f"{name} {config[name]} and not {saved[name]}"
        for name in COMPARED
        if name in config and name in saved and config[name] != saved[name]
    ]
    if not found:
        return None
    return (
        f"config.json has {', '.join(found)}, with which these weights were saved: it was changed, or is of another "
        f"model. What config.json says was taken."
    )


def other_model(folder: Path) -> str | None:
    """What a folder's config.json is of, if it is not an AutoencoderKL's; None without a config or with ours."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return "something whose config.json cannot be read"
    if not isinstance(values, dict):
        return "something else"
    name = values.get("_class_name")
    if name is None:
        return None if "block_out_channels" in values else f"a {values.get('model_type', 'model of another library')}"
    return None if name in OUR_CLASSES else f"a {str(name)[:80]}"
