"""Saves of a model over another, and what is there afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from given.files import assert_same_weights
from vae_core import AutoencoderKL, load_vae, temporaries

SHARDS: dict[str, Any] = {"max_shard_size": "30KB"}  # several of them, for the models of these tests


def traces(folder: Path) -> list[str]:
    """Names of temporaries that are left below a folder."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(temporaries.PREFIX)]


def assert_is_one_of(folder: Path, models: list[AutoencoderKL]) -> None:
    """The folder loads, and is one of these models, whole."""
    loaded = load_vae(folder)
    same = [model for model in models if model.config == loaded.config]
    assert len(same) == 1
    assert_same_weights(loaded, same[0])
