"""Every command of docs/datasets.md, in its order, in a folder of small images."""

from __future__ import annotations

import functools
import http.server
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from given.collection import make_images

from vae_core import AutoencoderKL, save_single_file
from vae_core.cli import build_parser, main

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
# The document's sizes are those of real models; here they are small.
KOHYAS_OPTIONS = {"--flip_aug"}
SMALL = {
    "--size 512": "--size 64",
    "1024x1024:64:256:2048": "64x64:16:32:128",
    "1024x1024:64": "64x64:16:32:128",
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def place(tmp_path: Path, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the document speaks of; the working directory."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("webdataset")
    photos = sorted(place for place in make_images(tmp_path / "photos", 10).rglob("*") if place.is_file())
    save_single_file(vae, tmp_path / "sdxl_vae.safetensors")
    (tmp_path / "tars").mkdir()
    for i in range(3):
        with tarfile.open(tmp_path / "tars" / f"{i:03d}.tar", "w") as tar:
            for number, photo in enumerate(photos[3 * i : 3 * i + 3]):
                tar.add(photo, f"{number}{photo.suffix}")
    parquet.write_table(pyarrow.table({"jpg": [photo.read_bytes() for photo in photos]}), tmp_path / "images.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def address(place: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def commands(with_ray: bool) -> list[tuple[str, str]]:
    """(kind, text) of each command; those that need Ray, or the others."""
    found = []
    for kind, block in BLOCKS:
        for text in [block] if kind == "python" else block.splitlines():
            needs_ray = "ray" in text and kind == "bash"
            if needs_ray == with_ray:
                found.append((kind, text))
    return found


def run(kind: str, text: str, address: str) -> None:
    for size, small in SMALL.items():
        text = text.replace(size, small)
    text = text.replace("https://images.example.org", address)
    if kind == "python":
        subprocess.run([sys.executable, "-c", f"if __name__ == '__main__':\n{_indented(text)}"], check=True)
        return
    program, *arguments = shlex.split(text)
    if program == "pip":
        extra = re.fullmatch(r"install seamless-vae\[(\w+)\]", " ".join(arguments))
        assert extra and f"\n{extra.group(1)} = [" in (ROOT / "pyproject.toml").read_text(), text
    elif program == "ray":
        script = Path(sys.executable).with_name("ray")
        subprocess.run([str(script), *arguments], check=True, capture_output=True)
    else:
        assert program == "seamless-vae", f"{text}: a command that this test does not know"
        assert main(arguments) == 0, text


def test_every_command_is_one_that_is_run() -> None:
    """Nothing in a fence of another kind, and no option in the text that no command has."""
    fences = re.findall(r"^[ >]*(?:```|~~~)(.*)$", TEXT, re.MULTILINE)
    assert fences[1::2] == [""] * len(BLOCKS) and fences[::2] == [kind for kind, _ in BLOCKS]
    run = [text for with_ray in (False, True) for _, text in commands(with_ray)]
    lines = [line for kind, block in BLOCKS for line in ([block] if kind == "python" else block.splitlines())]
    assert sorted(run) == sorted(lines)
    outside = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert not re.findall(r"^ {4}|^\s*\$ ", outside, re.MULTILINE), "a block by indentation, or by a prompt"
    known: set[str] = set()
    for command in ("encode-dataset", "decode-dataset", "verify-dataset"):
        parser = build_parser().parse_args([command, "x", *(["--out", "y"] if command != "verify-dataset" else [])])
        known |= {f"--{name.replace('_', '-')}" for name in vars(parser)}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", outside)) <= known | KOHYAS_OPTIONS


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


@pytest.mark.thorough
def test_commands(
    place: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for kind, text in commands(with_ray=False):
        run(kind, text, address)
    said = capsys.readouterr().out
    assert "10 images in 1 shards; 10 of them were looked at" in said
    assert "as they were written" in said
    assert re.search(r"[\d.]+ dB  mean of 10, from", said)
    assert len(list((place / "photos").rglob("*_sdxl.npz"))) == 10
    counts = {folder.parent.name for folder in place.glob("*/manifest.json")}
    assert counts == {name for name in re.findall(r"--out (latents[\w-]*)", TEXT) if "ray" not in name} - {
        "latents-cluster"
    }


@pytest.mark.slow  # starts a cluster by the command line; `test_ray.py` runs the engine on one by default
def test_commands_of_ray(
    place: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        for kind, text in commands(with_ray=True):
            run(kind, text, address)
    finally:
        subprocess.run([str(Path(sys.executable).with_name("ray")), "stop"], capture_output=True)
    assert capsys.readouterr().out.count("10 images in 1 shards") == 2
    for name in ("latents-ray", "latents-cluster"):
        assert main(["verify-dataset", str(place / name)]) == 0
