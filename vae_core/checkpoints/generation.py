"""What makes the files of one save one: the folder's old files, and signs by which a loader sees a mixture."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import GUESSED_KEY, OUR_CLASSES
from ..errors import CheckpointError, brief
from .json_file import json_object
from .weight_names import WEIGHTS_STEM

logger = logging.getLogger("seamless_vae")

A_GUESS = " (a guess)"  # behind the source of such a field
SAVE_KEY = "seamless_vae.save"  # in each shard: the same in all shards of one save
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
    ours = seen.get(SAVE_KEY)
    theirs = metadata.get(SAVE_KEY)
    if ours is not None and theirs is not None and ours != theirs:
        raise CheckpointError(
            f"the shards that {index.name} names come from different saves: {shard.name} does not belong to those "
            f"before it. Save the model again, or copy all of its files again."
        )


def marked(fields: Mapping[str, Any], guessed: Collection[str]) -> dict[str, Any]:
    """A config's fields as they are written, with those that are guesses named beside them."""
    return {**fields, GUESSED_KEY: sorted(guessed)} if guessed else dict(fields)


def guessed_in(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that `marked` wrote."""
    names = values.get(GUESSED_KEY)
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def sources(fields: Iterable[str], source: str, guessed: Collection[str]) -> dict[str, str]:
    """Field -> where its value comes from, if all come from one place that calls some of them guesses."""
    return {name: f"{source}{A_GUESS}" if name in guessed else source for name in fields}


def guesses_of(model: Any) -> tuple[str, ...]:
    """The config fields of a model that were guessed when it was loaded, and have been left as they were."""
    guesses: Mapping[str, Any] = model.__dict__.get("guesses", {})
    return tuple(name for name, value in guesses.items() if model.config[name] == value)


def compared(config: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Fields that no shape of a weight shows and that differ, as "name value and not value, ..."; empty if none do."""
    return ", ".join(
        f"{name} {brief(config[name])} and not {brief(saved[name])}"
        for name in COMPARED
        if name in config and name in saved and config[name] != saved[name]
    )


def differences(config: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """A remark where a folder's config is not the one that its weights were saved with; None where it is."""
    found = compared(config, saved)
    if not found:
        return None
    return (
        f"config.json has {found}, as in the model that these weights were saved from: it was changed, or belongs to "
        f"another model. The values of config.json are used."
    )


def warn_of_pickles(folder: Path, config: Mapping[str, Any], replaced: re.Pattern[str]) -> None:
    """Warn where pickles of another variant stay beside a config of other values: they do not say what they are of.

    Args:
        config: that will be there.
        replaced: the names that a save replaces or removes.
    """
    try:
        found = compared(json_object(folder / "config.json"), config)
        names = sorted(path.name for path in folder.glob(f"{WEIGHTS_STEM}[.-]*bin"))
    except (OSError, ValueError):
        return
    stay = [name for name in names if not replaced.fullmatch(name)]
    if found and stay:
        logger.warning(
            "%s of an earlier save, with %s, will be loaded with the new config.json: pickled weights do not say what "
            "they were saved with. Save into a folder of its own.",
            folder / stay[0],
            found,
        )


def other_model(folder: Path) -> str | None:
    """What a folder's config.json is of, if it is not an AutoencoderKL's; None without a config or with ours."""
    try:
        values = json_object(folder / "config.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return "something whose config.json cannot be read"
    name = values.get("_class_name")
    if name is None:
        return (
            None
            if "block_out_channels" in values
            else f"a {str(values.get('model_type', 'model of another library'))[:80]}"
        )
    return None if name in OUR_CLASSES else f"a {str(name)[:80]}"
