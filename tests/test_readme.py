"""The examples and commands of the library's README, in their order, on what is bundled, under the names used there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from given.pairs import CONFIGS, theirs_of
from PIL import Image

import vae_core
from vae_core.cli import main

PACKAGE = Path(vae_core.__file__).parent
README = PACKAGE / "README.md"
SIZE = (100, 68)  # not a multiple of the downscale factor


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the images and models that the README names."""
    monkeypatch.chdir(tmp_path)
    with Image.open(PACKAGE / "demo" / "chelsea.png") as photograph:
        for name in ("photo.jpg", "a.png", "b.png"):
            photograph.convert("RGB").resize(SIZE).save(name)
    shutil.copytree(PACKAGE / "demo", "vae_folder")
    for name in ("sdxl_vae.safetensors", "model.safetensors"):
        vae_core.save_single_file(vae_core.load_vae("vae_folder"), name)
    return tmp_path


def test_the_examples_run(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"vae_core": vae_core, "pipe": SimpleNamespace(vae=theirs_of(CONFIGS["sd"]))}
    exec(compile("\n".join(blocks("python")), str(README), "exec"), names)
    assert isinstance(names["pipe"].vae, vae_core.AutoencoderKL) and names["pipe"].vae.use_tiling
    with Image.open("reconstruction.png") as image:
        assert image.size == SIZE
    assert "100%" in capsys.readouterr().out


def test_the_commands_run(given: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for each in lines for line in each.split(" && ")]
    ours = [words[1:] for words in commands if words[0] == "seamless-vae"]
    assert len(ours) == 6
    for words in ours:
        assert main(words) == 0, words
    for name in ("a.png", "b.png"):
        with Image.open(given / "images" / name) as image:
            assert image.size == SIZE


def test_the_extras_are_those_of_the_project() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    optional = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name for row in rows[:7] for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert listed == set(re.findall(r"^(\w+) = \[", optional, re.MULTILINE))
