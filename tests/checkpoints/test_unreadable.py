"""What cannot be read at all: `inspect_vae(path).problem` is what `load_vae` says, and the command line says it too."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import ldm, write

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae
from vae_core.cli import main

STEM = "diffusion_pytorch_model"
Maker = Callable[[AutoencoderKL, Path], Path]


class _Code:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def _bytes(content: bytes, name: str = "a.safetensors") -> Maker:
    def put(vae: AutoencoderKL, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return put


def _cut(vae: AutoencoderKL, folder: Path) -> Path:
    path = write(ldm(vae), folder / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    return path


def _cut_pickle(vae: AutoencoderKL, folder: Path) -> Path:
    torch.save(vae.state_dict(), folder / "a.pt")
    (folder / "a.pt").write_bytes((folder / "a.pt").read_bytes()[:5000])
    return folder / "a.pt"


def _link(target: str, name: str = "a.safetensors") -> Maker:
    def put(vae: AutoencoderKL, folder: Path) -> Path:
        (folder / name).symlink_to(folder / target)
        return folder / name

    return put


def _zip(vae: AutoencoderKL, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    return folder / "a.pt"


def _code(vae: AutoencoderKL, folder: Path) -> Path:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1), "b": _Code()}, buffer)
    return _bytes(buffer.getvalue(), "a.ckpt")(vae, folder)


def _pipe(vae: AutoencoderKL, folder: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no pipes with names here")
    os.mkfifo(folder / "a.safetensors")
    return folder / "a.safetensors"


def _saved(change: Callable[[Path], Any]) -> Maker:
    """A folder that was saved, and then changed; the path of the folder."""

    def put(vae: AutoencoderKL, folder: Path) -> Path:
        vae.save_pretrained(folder / "vae", max_shard_size="300KB")
        change(folder / "vae")
        return folder / "vae"

    return put


def _no_files(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


UNREADABLE: dict[str, Maker] = {
    "empty": _bytes(b""),
    "zeros": _bytes(bytes(1000)),
    "text": _bytes(b"hello, this is not a checkpoint"),
    "a web page": _bytes(b"<!DOCTYPE html><html></html>"),
    "GGUF": _bytes(b"GGUF\x03\x00\x00\x00" + bytes(100)),
    "a PNG": _bytes(b"\x89PNG\r\n\x1a\n" + bytes(100), "a.png"),
    "cut": _cut,
    "cut pickle": _cut_pickle,
    "a bare pickle": _bytes(pickle.dumps({"a": 1}), "a.pt"),
    "code": _code,
    "a zip": _zip,
    "a broken link": _link("nothing"),
    "a link to itself": _link("a.safetensors"),
    "a named pipe": _pipe,
    "an empty folder": _saved(_no_files),
    "no config": _saved(lambda folder: (folder / "config.json").unlink()),
    "broken config": _saved(lambda folder: (folder / "config.json").write_text("{")),
    "a list for a config": _saved(lambda folder: (folder / "config.json").write_text("[]")),
    "a folder for a config": _saved(
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir())
    ),
    "another model": _saved(lambda folder: (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')),
    "no shard": _saved(lambda folder: next(folder.glob("*-00001-*")).unlink()),
    "broken index": _saved(lambda folder: next(folder.glob("*.index.json")).write_text("{")),
    "an index out of the folder": _saved(
        lambda folder: next(folder.glob("*.index.json")).write_text(json.dumps({"weight_map": {"a": "../a.bin"}}))
    ),
    "two variants": lambda vae, folder: (
        vae.save_pretrained(folder, variant="fp16"),
        vae.save_pretrained(folder, variant="ema"),
        folder,
    )[-1],
    "a folder as a file": lambda vae, folder: (
        vae.save_pretrained(folder),
        (folder / f"{STEM}.safetensors").unlink(),
        (folder / f"{STEM}.safetensors").mkdir(),
        folder,
    )[-1],
}


def said_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(CheckpointError) as error:
        load_vae(path)
    info = inspect_vae(path)
    said = str(error.value)
    assert info.problem == said and info.config is None
    assert main(["info", str(path)]) == 1
    assert said in capsys.readouterr().err
    return said


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read(what: str, vae: AutoencoderKL, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = UNREADABLE[what](vae, tmp_path)
    problem = said_of(path, capsys)
    assert problem.endswith(".") and ". " in problem  # what is wrong, and what to do


@contextlib.contextmanager
def _unprivileged() -> Iterator[Path]:
    """As a user without rights of its own, with a folder that is theirs."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o700)
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="the system has no users without rights")
@pytest.mark.parametrize("locked", [".", "vae", "vae/config.json", f"vae/{STEM}.safetensors", "one/a.safetensors"])
def test_what_permissions_forbid(locked: str, vae: AutoencoderKL, capsys: pytest.CaptureFixture[str]) -> None:
    with _unprivileged() as folder:
        vae.save_pretrained(folder / "vae")
        (folder / "one").mkdir()
        write(ldm(vae), folder / "one" / "a.safetensors")
        (folder / locked).chmod(0)
        paths = {
            ".": [folder, folder / "vae", folder / "one", folder / "one" / "a.safetensors"],
            "one/a.safetensors": [folder / "one", folder / "one" / "a.safetensors"],
        }.get(locked, [folder / "vae", folder])
        for path in paths:
            assert "ermission" in said_or_absent(path, capsys), path


def said_or_absent(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Of what is in a folder that cannot be looked into whether it exists cannot be known."""
    if os.path.lexists(path):
        return said_of(path, capsys)
    with pytest.raises(CheckpointError) as error:
        load_vae(path)
    with pytest.raises(CheckpointError) as same:
        inspect_vae(path)
    assert str(same.value) == str(error.value)
    return str(error.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("form", ["a.safetensors", "a.pt", "vae"])
def test_what_the_disk_does_not_give(
    form: str, code: int, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    write(ldm(vae), tmp_path / "a.safetensors")
    torch.save(vae.state_dict(), tmp_path / "a.pt")

    def fail(path: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("vae_core.regular_files.open", fail, raising=False)
    with pytest.raises(CheckpointError, match=os.strerror(code)) as error:
        load_vae(tmp_path / form)
    assert inspect_vae(tmp_path / form).problem == str(error.value)


def test_a_path_that_is_not_there_is_an_error_of_both(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "nothing.safetensors", "", "x" * 5000):
        with pytest.raises(CheckpointError) as error:
            load_vae(path)
        with pytest.raises(CheckpointError) as same:
            inspect_vae(path)
        assert str(same.value) == str(error.value)
