"""Shards and configs on the Hub by every name that a disk takes: loading and inspecting mean the same."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from given.hub import COMMIT, SmallHub, same
from given.thinned import thinned

from vae_core import AutoencoderKL, inspect_vae, load_vae

INDEX = "diffusion_pytorch_model.safetensors.index.json"
REPO = "org/shards"


@pytest.fixture
def names(hub: SmallHub, files: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Layout -> the files of a model with its shards: beside the index, below it, of equal names in two folders."""
    shards = {name.removeprefix("shards/"): content for name, content in files.items() if name.startswith("shards/")}
    weight_map = json.loads(shards[INDEX])["weight_map"]
    names = sorted(set(weight_map.values()))
    assert len(names) > 2

    def moved(places: dict[str, str]) -> dict[str, bytes]:
        index = {"metadata": {}, "weight_map": {key: places[name] for key, name in weight_map.items()}}
        rest = {places.get(name, name): content for name, content in shards.items() if name != INDEX}
        return {**rest, INDEX: json.dumps(index).encode()}

    return {
        "beside": shards,
        "below": moved({name: f"parts/{name}" for name in names}),
        "deeper": moved({name: f"./a/b c/{name}" for name in names}),
        "equal names": moved({name: f"part{i}/model.safetensors" for i, name in enumerate(names)}),
    }


@thinned(
    layout=["beside", "below", "deeper", "equal names"],
    form=["folder", "subfolder", "index", "config", "address"],
    place=["", "vae/", "a/vae/"],
)
def test_shards_wherever_their_index_says(
    layout: str, place: str, form: str, names: Any, hub: SmallHub, cache: Any, vae: AutoencoderKL
) -> None:
    hub.repositories[REPO] = {f"{place}{PurePosixPath(name)}": content for name, content in names[layout].items()}
    folder = f"{REPO}/{place}".rstrip("/")
    name, arguments = {
        "folder": (folder, {}),
        "subfolder": (REPO, {"subfolder": place.rstrip("/") or None}),
        "index": (f"{folder}/{INDEX}", {}),
        "config": (f"{folder}/config.json", {}),
        "address": (f"https://huggingface.co/{REPO}/blob/{COMMIT}/{place}{INDEX}", {}),
    }[form]
    for _ in ("of headers alone", "of the cache"):
        info = inspect_vae(name, **arguments, **cache)
        assert info.problem is None and info.config == vae.config
        assert info.parameters == vae.num_parameters()
        loaded = load_vae(name, **arguments, **cache)
        assert same(loaded, vae) and loaded.config == vae.config


@pytest.mark.parametrize("name", ["org/pipe", "org/pipe/model_index.json", "org/pipe/deep", "org/pipe/vae/config.json"])
def test_a_pipelines_vae(
    name: str, hub: SmallHub, cache: Any, files: dict[str, bytes], vae: AutoencoderKL, tmp_path: Path
) -> None:
    """As on a disk, where a folder stands for its `vae` as well, and a config or an index for its folder."""
    own = {path: content for path, content in files.items() if path.startswith("vae/")}
    pipe = {**own, "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}'}
    hub.repositories["org/pipe"] = {**pipe, **{f"deep/{path}": content for path, content in pipe.items()}}
    for path, content in hub.repositories["org/pipe"].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    on_disk = tmp_path / name.removeprefix("org/pipe").lstrip("/")
    for where in (name, on_disk):
        assert same(load_vae(where, **cache), vae)
        assert inspect_vae(where, **cache).problem is None


def test_a_config_by_its_name_is_that_of_its_folder(hub: SmallHub, cache: Any, vae: AutoencoderKL, files: Any) -> None:
    hub.repositories[REPO] = {**files, "other.json": b'{"a": 1}'}
    assert AutoencoderKL.load_config(f"{REPO}/vae/config.json", **cache) == json.loads(files["vae/config.json"])
    assert AutoencoderKL.load_config(f"{REPO}/other.json", **cache) == {"a": 1}
    assert AutoencoderKL.from_config(f"{REPO}/vae/config.json", **cache).config == vae.config
    assert hub.downloads() == ["vae/config.json", "other.json"]
