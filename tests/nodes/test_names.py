"""Names of VAEs: what is listed, and that a name from a workflow leads nowhere but into the models' folders."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from given.nodes import Makers
from host.stand_in import Host, Pack


@pytest.fixture(autouse=True)
def no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub of its own, empty."""
    for name in ("HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def models(host: Host, pack: Pack, make: Makers) -> Path:
    """Files and folders of every kind."""
    folder, core = host.folder / "models", pack.module("vae_core")
    model = make.model()
    core.save_single_file(model, folder / "vae" / "sub" / "file.safetensors")
    core.save_single_file(model, folder / "checkpoints" / "whole.safetensors")
    model.save_pretrained(folder / "vae" / "plain")
    model.save_pretrained(folder / "vae" / "pipeline" / "vae")
    model.save_pretrained(folder / "diffusers" / "group" / "pipeline" / "vae")
    (folder / "vae" / "empty").mkdir()
    core.save_single_file(model, host.folder / "secret.safetensors")
    return folder


def test_what_is_listed(pack: Pack, models: Path) -> None:
    names = [name.replace("\\", "/") for name in pack.module("nodes.catalogue").vae_names()]
    assert names == [
        "demo",
        "sub/file.safetensors",
        "pipeline [folder]",
        "plain [folder]",
        "group/pipeline [diffusers]",
        "whole.safetensors [checkpoint]",
    ]


def test_a_folder_that_may_not_be_entered(pack: Pack, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, stat = pack.module("nodes.catalogue").vae_names(), os.stat
    closed = [models / "vae" / "lost+found", models / "diffusers" / "lost+found"]
    for folder in closed:
        folder.mkdir()

    def refusing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if not isinstance(path, int) and any(folder in Path(os.fsdecode(path)).parents for folder in closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refusing)
    assert pack.module("nodes.catalogue").vae_names() == names


def test_every_listed_name_loads(pack: Pack, models: Path) -> None:
    for name in pack.module("nodes.catalogue").vae_names():
        (vae,) = pack.run("SeamlessVAELoad", vae_name=name)
        assert vae.decode(torch.zeros(1, vae.latent_channels, 4, 4)).shape[3] == 3


BAD_NAMES = [
    *("../../secret.safetensors", "sub/../../../secret.safetensors", "..\\..\\secret.safetensors", "/etc/passwd"),
    *("C:\\secret.safetensors", "C:secret.safetensors", "\\\\server\\share\\x.safetensors", "", " [folder]"),
    *(".. [folder]", "../.. [checkpoint]", "../vae/plain [diffusers]", "a\0b.safetensors"),
    *("a" * 5000, f"{'a' * 300} [folder]", "\udcff.safetensors"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out(pack: Pack, models: Path, name: str) -> None:
    with pytest.raises(ValueError, match="points outside the models folders|cannot find a VAE named"):
        pack.module("nodes.catalogue").vae_path(name)


def test_names_that_are_gone_or_of_another_kind(pack: Pack, models: Path) -> None:
    path = pack.module("nodes.catalogue").vae_path
    for name in ("sub/file.safetensors [checkpoint]", "sub/file.safetensors [folder]", "plain", "demo.safetensors"):
        with pytest.raises(ValueError, match="cannot find a VAE named.*Put it there"):
            path(name)
    assert path("demo").name == "demo" and path("plain [folder]") == models / "vae" / "plain"


def test_links_and_letters_of_any_kind(pack: Pack, models: Path, make: Makers, host: Host) -> None:
    """As people keep models on another disk; a link to nowhere is as good as no file."""
    elsewhere, core = host.folder / "elsewhere", pack.module("vae_core")
    core.save_single_file(make.model(), elsewhere / "模型 ü.safetensors")
    make.model().save_pretrained(elsewhere / "folder é")
    try:
        (models / "vae" / "disk").symlink_to(elsewhere, target_is_directory=True)
        (models / "vae" / "broken.safetensors").symlink_to(elsewhere / "nothing")
        (models / "vae" / "again").symlink_to(models / "vae", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    names = [name.replace("\\", "/") for name in pack.module("nodes.catalogue").vae_names()]
    assert "disk/folder é [folder]" in names and "plain [folder]" in names
    for name in ("disk/模型 ü.safetensors", "disk/folder é [folder]", "again/plain [folder]"):
        pack.run("SeamlessVAELoad", vae_name=name)
    with pytest.raises(ValueError, match="cannot find a VAE named 'broken.safetensors'"):
        pack.run("SeamlessVAELoad", vae_name="broken.safetensors")


def test_names_of_workflows_made_on_windows(pack: Pack, models: Path) -> None:
    path = pack.module("nodes.catalogue").vae_path
    assert path("sub\\file.safetensors") == path("sub/file.safetensors")
    assert path("group\\pipeline [diffusers]") == path("group/pipeline [diffusers]")


def test_a_workflow_from_another_machine(pack: Pack, models: Path) -> None:
    """Refused with what to do, before anything of it runs; the host's own check only shows its list."""
    check = pack.root.NODE_CLASS_MAPPINGS["SeamlessVAELoad"].VALIDATE_INPUTS
    for name in pack.module("nodes.catalogue").vae_names():
        assert check(name, "auto") is check(name, "cpu") is check(name) is check(None, None) is True
    assert "cannot find a VAE named 'gone.safetensors'" in check("gone.safetensors", "auto")
    assert "Put it there, refresh the page" in check("gone.safetensors", "auto")
    assert "points outside the models folders" in check("../../secret.safetensors", "auto")
    assert check("demo", "cuda:7").startswith("device cuda:7 is not available, only cpu")
    assert "is not the name of a VAE" in check(3, "auto")


def test_without_a_host(pack: Pack) -> None:
    assert pack.module("nodes.catalogue").vae_names() == ["demo"]
    with pytest.raises(ValueError, match="not registered"):
        pack.module("nodes.catalogue").vae_path("some.safetensors")


def test_a_fork_that_makes_no_empty_vae(host: Host, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sd  # type: ignore[import-not-found]

    class VAE:
        def __init__(self, path: str) -> None:
            self.path = path

    monkeypatch.setattr(comfy.sd, "VAE", VAE)
    vae = make.vae()
    image: Any = vae.decode(make.latent()["samples"])
    assert isinstance(vae, VAE) and image.shape == (1, 20, 24, 3)
    assert vars(vae)["crop_input"] is True
