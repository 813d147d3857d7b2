"""What other programs have downloaded from the Hub: listed by its names there, loaded, and never fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from given.nodes import Makers
from host.stand_in import Host, Pack

MARK = " [Hugging Face]"


def repository(cache: Path, name: str, commit: str = "a1") -> Path:
    """The folder of a snapshot, as huggingface_hub makes it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    return folder / "snapshots" / commit


@pytest.fixture
def cache(host: Host, pack: Pack, make: Makers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whole, partial and broken downloads, of VAEs and of other models."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    model, save = make.model(), pack.module("vae_core").save_single_file
    model.save_pretrained(repository(folder, "org/vae"))
    model.save_pretrained(repository(folder, "org/pipeline") / "vae")
    model.save_pretrained(repository(folder, "alone"))
    save(model, repository(folder, "org/files") / "ae.safetensors")
    save(model, repository(folder, "org/repackaged") / "split_files" / "vae" / "x.safetensors")
    whole = repository(folder, "org/linked", "b2")
    model.save_pretrained(folder / "models--org--linked" / "blobs")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (whole / name).symlink_to(folder / "models--org--linked" / "blobs" / name)
    # None of these is a VAE that could be loaded.
    model.save_pretrained(repository(folder, "org/no-weights"))
    (folder / "models--org--no-weights" / "snapshots" / "a1" / "diffusion_pytorch_model.safetensors").unlink()
    broken = repository(folder, "org/broken")
    (broken / "config.json").symlink_to(folder / "nowhere")
    (repository(folder, "org/language") / "config.json").write_text("{}", encoding="utf-8")
    save(model, folder / "models--org--language" / "snapshots" / "a1" / "model.safetensors")
    (folder / "models--org--empty").mkdir()
    (folder / "models--").mkdir()
    (folder / "version.txt").write_text("1", encoding="utf-8")
    (folder / "datasets--org--data" / "snapshots" / "a").mkdir(parents=True)
    return folder


def listed(pack: Pack) -> list[str]:
    names = pack.module("nodes.catalogue").vae_names()
    return [name.removesuffix(MARK) for name in names if name.endswith(MARK)]


def test_what_is_listed_loads(cache: Path, pack: Pack) -> None:
    names = listed(pack)
    assert names == [
        *("alone", "org/files/ae.safetensors", "org/linked", "org/pipeline"),
        *("org/repackaged/split_files/vae/x.safetensors", "org/vae"),
    ]
    for name in names:
        (vae,) = pack.run("SeamlessVAELoad", vae_name=name + MARK)
        assert vae.latent_channels == 4
        assert pack.root.NODE_CLASS_MAPPINGS["SeamlessVAELoad"].VALIDATE_INPUTS(vae_name=name + MARK) is True
        assert pack.module("nodes.questions").describe_file(name + MARK)["problem"] is None


ABSENT = ["org/gone", "org/empty", "org/vae/other.safetensors", "../x", "org/../../x", "/etc", ""]


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_said(name: str, cache: Path, pack: Pack) -> None:
    error = pack.module("vae_core").CheckpointError
    with pytest.raises(error, match="Hugging Face cache|points outside") as found:
        pack.module("nodes.catalogue").vae_path(name + MARK)
    assert "\n" not in str(found.value)


def test_the_snapshot_of_main_is_taken(cache: Path, pack: Pack, make: Makers) -> None:
    folder = cache / "models--org--vae" / "snapshots"
    make.model(seed=3).save_pretrained(folder / "c3")
    os.utime(folder / "a1", (1, 1))
    path_of = pack.module("nodes.hub_cache").path_of
    assert path_of("org/vae").name == "a1"
    (cache / "models--org--vae" / "refs" / "main").unlink()
    assert path_of("org/vae").name == "c3"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "a"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c"}, "b"),
        ({"HF_HOME": "c"}, "c/hub"),
        ({"XDG_CACHE_HOME": "d"}, "d/huggingface/hub"),
    ],
)
def test_where_it_is(
    variables: dict[str, Any], expected: str, host: Host, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    module = pack.module("nodes.hub_cache")
    assert module.cache_folder() == Path(expected)
    assert module.names() == []  # no such folder
