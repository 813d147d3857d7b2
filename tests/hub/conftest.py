"""A repository on a small Hub, and the model that is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from given.hub import REPO, SmallHub, running_hub
from given.pairs import model

from vae_core import AutoencoderKL, save_single_file


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return model("f4")


@pytest.fixture(scope="module")
def files(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository: a folder with variants, a pipeline's `vae`, shards, a pickle, and a single file."""
    folder = tmp_path_factory.mktemp("repository")
    vae.save_pretrained(folder)
    vae.save_pretrained(folder, variant="fp16")
    vae.save_pretrained(folder / "vae")
    vae.save_pretrained(folder / "shards", max_shard_size="100KB")
    vae.save_pretrained(folder / "pickle", safe_serialization=False)
    save_single_file(vae, folder / "single.safetensors")
    (folder / "old").mkdir()
    torch.save(vae.state_dict(), folder / "old" / "single.ckpt")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.repositories[REPO] = dict(files)
        hub.repositories["org/pipeline"] = {name: content for name, content in files.items() if name.startswith("vae/")}
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache"}
