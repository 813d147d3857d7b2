"""Files that were saved: mixtures of two saves are seen, and places are left as others have made them."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from given.models import SMALL, fields, make
from given.saves import SHARDS, assert_is_one_of, traces
from safetensors import safe_open
from safetensors.torch import load_file

from vae_core import AutoencoderKL, atomic, inspect_vae, load_vae, save_single_file, temporaries
from vae_core.checkpoints.write import safetensors
from vae_core.errors import CheckpointError, ImageError
from vae_core.image import write_image


class TestMixtures:
    @pytest.mark.parametrize("ending", ["safetensors", "bin"])
    def test_shards_of_two_saves(self, ending: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
        options = {**SHARDS, "safe_serialization": ending == "safetensors"}
        for name, model in (("a", old), ("b", new)):
            model.save_pretrained(tmp_path / name, **options)
        shard = sorted((tmp_path / "b").glob(f"*.{ending}"))[1]
        (tmp_path / "a" / shard.name).write_bytes(shard.read_bytes())
        with pytest.raises(CheckpointError, match="from different saves"):
            load_vae(tmp_path / "a")
        old.save_pretrained(tmp_path / "c", **options)
        (tmp_path / "c" / shard.name).write_bytes((tmp_path / "c" / shard.name).read_bytes())
        assert_is_one_of(tmp_path / "c", [old])

    def test_weights_of_one_and_the_config_of_another(
        self, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old.save_pretrained(tmp_path)
        assert load_vae(tmp_path).config.scaling_factor == 0.5 and not caplog.text
        (tmp_path / "config.json").write_text(json.dumps(new.config.to_dict()))
        assert load_vae(tmp_path).config.scaling_factor == 0.25
        assert "scaling_factor 0.25 and not 0.5, as in the model that these weights were saved from" in caplog.text

    def test_an_interrupted_save_that_cannot_be_completed(
        self, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old.save_pretrained(tmp_path)
        new.save_pretrained(tmp_path / atomic.COMMITTED)  # as a kill leaves it
        real = os.replace

        def replace(*_: object) -> None:
            raise OSError(30, "Read-only file system", "config.json")

        monkeypatch.setattr("vae_core.atomic.os.replace", replace)
        with pytest.raises(CheckpointError, match="was interrupted.*Read-only file system"):
            load_vae(tmp_path)
        monkeypatch.setattr("vae_core.atomic.os.replace", real)
        assert_is_one_of(tmp_path, [new])

    def test_a_committed_folder_from_elsewhere_does_no_harm(self, old: AutoencoderKL, tmp_path: Path) -> None:
        outside, folder = tmp_path / "outside", tmp_path / "vae"
        outside.write_text("mine")
        old.save_pretrained(folder)
        stage = folder / atomic.COMMITTED
        stage.mkdir()
        (stage / "config.json").write_text("theirs")
        config = (folder / "config.json").read_bytes()
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(outside)
        with pytest.raises(CheckpointError, match="link"):
            load_vae(folder)
        assert outside.read_text() == "mine"
        (stage / "config.json").unlink()
        (folder / "config.json").unlink()
        (folder / "config.json").write_bytes(config)
        (folder / "notes.txt").symlink_to(outside)
        for names in (["../outside"], ["notes.txt"], [str(outside)], "x", [1], {}):
            (stage / atomic.REMOVALS).write_text(json.dumps(names))
            with pytest.raises(CheckpointError, match="damaged"):
                load_vae(folder)
            assert outside.read_text() == "mine" and (folder / "notes.txt").is_symlink()

    @pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
    @pytest.mark.parametrize("planted", ["link", "file", "another name", "pipe", "endless", "long", "folder in it"])
    @pytest.mark.parametrize("door", ["load", "inspect", "save beside it"])
    def test_what_no_save_has_left_is_not_touched(
        self, planted: str, door: str, old: AutoencoderKL, tmp_path: Path
    ) -> None:
        """Nothing moves into a model's folder, out of another one, or over what is not a model's; nothing waits."""
        folder, others = tmp_path / "vae", tmp_path / "documents"
        stage = folder / atomic.COMMITTED
        old.save_pretrained(folder)
        others.mkdir()
        (others / "thesis.txt").write_text("mine")
        (others / "config.json").write_text("mine as well")
        (folder / "keep.txt").write_text("mine")
        if planted == "link":
            stage.symlink_to(others)
        elif planted == "file":
            stage.write_text("theirs")
        else:
            stage.mkdir()
            removals = stage / atomic.REMOVALS
            plant = {
                "another name": lambda: (stage / "keep.txt").write_text("theirs"),
                "pipe": lambda: os.mkfifo(removals),
                "endless": lambda: removals.symlink_to("/dev/zero"),
                "long": lambda: removals.write_text("[" + " " * 2**21 + "]"),
                "folder in it": lambda: (stage / "config.json").mkdir(),
            }[planted]
            plant()
        before = {path: path.read_bytes() for path in (*folder.glob("*.*"), *others.iterdir()) if path.is_file()}
        if door == "inspect":
            assert "save" in str(inspect_vae(folder).problem)
        else:
            with pytest.raises(CheckpointError, match="save"):
                load_vae(folder) if door == "load" else save_single_file(old, folder / "more.safetensors")
        assert {path: path.read_bytes() for path in before} == before
        assert sorted(path.name for path in others.iterdir()) == ["config.json", "thesis.txt"]


class TestPlaces:
    """One table of what a database takes care of, for every door that writes."""

    DOORS: ClassVar = {
        "file": (".safetensors", lambda model, path: save_single_file(model, path), CheckpointError),
        "image": (".png", lambda model, path: write_image(any_image(), path), ImageError),
    }

    @pytest.mark.parametrize("door", DOORS)
    def test_links_modes_and_names(self, door: str, old: AutoencoderKL, tmp_path: Path) -> None:
        ending, write, error = self.DOORS[door]
        (tmp_path / "real").mkdir()
        target, link = tmp_path / "real" / f"a{ending}", tmp_path / f"link{ending}"
        link.symlink_to(target)
        write(old, link)
        assert link.is_symlink() and target.is_file()
        target.chmod(0o640)
        write(old, link)
        assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
        target.chmod(0o444)
        before = target.read_bytes()
        with pytest.raises(error, match="write-protected"):
            write(make(fields(8, norm_num_groups=8), seed=3), link)
        assert target.read_bytes() == before
        longest = tmp_path / ("n" * (255 - len(ending)) + ending)
        write(old, longest)
        write(old, longest)
        assert longest.is_file()
        loop = tmp_path / f"loop{ending}"
        loop.symlink_to(loop)
        (tmp_path / f"folder{ending}").mkdir()
        os.mkfifo(tmp_path / f"pipe{ending}")
        too_long = tmp_path / ("n" * 256 + ending)
        for wrong in (loop, tmp_path / f"folder{ending}", tmp_path / f"pipe{ending}", too_long, f"a\0{ending}", ""):
            with pytest.raises(error):
                write(old, wrong)
        assert stat.S_ISFIFO((tmp_path / f"pipe{ending}").stat().st_mode)
        assert traces(tmp_path) == []

    def test_a_planted_link_is_not_followed(
        self, old: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = tmp_path / "outside"
        outside.write_text("mine")
        names = iter(["taken", "taken", "free"])
        monkeypatch.setattr("vae_core.temporaries.secrets.token_hex", lambda _: next(names))
        (tmp_path / f"{temporaries.PREFIX}taken{temporaries.SUFFIX}").symlink_to(outside)
        with pytest.raises(CheckpointError, match="exists"):
            save_single_file(old, tmp_path / "vae.safetensors")
        assert outside.read_text() == "mine"

    def test_folders(self, old: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for wrong in ("", "a\0b"):
            with pytest.raises(CheckpointError, match="name"):
                old.save_pretrained(wrong)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        old.save_pretrained("link")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").is_file()
        (tmp_path / "real" / "config.json").chmod(0o444)
        with pytest.raises(CheckpointError, match="write-protected"):
            old.save_pretrained("link")
        longest = "n" * 250
        old.save_pretrained(longest)
        assert_is_one_of(tmp_path / longest, [old])

    def test_another_models_folder(self, old: AutoencoderKL, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        shard = tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors"
        shard.write_bytes(b"theirs")
        with pytest.raises(CheckpointError, match="the folder of a UNet2DConditionModel"):
            old.save_pretrained(tmp_path)
        assert shard.read_bytes() == b"theirs" and len(list(tmp_path.iterdir())) == 2


def any_image():
    from PIL import Image

    return Image.new("RGB", (8, 8), "red")


def test_our_safetensors_are_everyones(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors = {f"{dtype}".split(".")[1]: torch.randn(3, 5).to(dtype) for dtype in dtypes}
    tensors |= {"int": torch.arange(3), "bool": torch.tensor([True, False, True]), "nothing": torch.tensor([])}
    tensors |= {"number": torch.tensor(3.5), "strided": torch.arange(12.0).reshape(3, 4).t(), "größe": torch.ones(1)}
    shared = torch.arange(6.0)
    tensors |= {"one": shared[:3], "two": shared[3:]}
    metadata = {"format": "pt", "text": 'ü "quoted" \ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16")}
    atomic.write_file(tmp_path / "all.safetensors", safetensors(tensors, metadata))
    read = load_file(tmp_path / "all.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(
            read[name].view(torch.uint8) if read[name].ndim else read[name],
            tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor,
        ), name
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_many_files_in_one_folder_do_not_read_it_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are read grow with the files, not with their square; what was abandoned goes in the end."""
    read, real = [0], temporaries.sweep

    def counted(folder: Path) -> int:
        found = real(folder)
        read[0] += found
        return found

    monkeypatch.setattr(temporaries, "sweep", counted)
    monkeypatch.setattr(temporaries, "NAMES_A_FILE", 8)
    files = 200
    for number in range(files):
        if number == files // 2:
            (tmp_path / f"{temporaries.PREFIX}left{temporaries.SUFFIX}").write_bytes(b"")
        atomic.write_file(tmp_path / str(number), lambda file: file.write(b"x"))
    assert read[0] <= 2 * temporaries.NAMES_A_FILE * files
    assert sorted(map(int, os.listdir(tmp_path))) == list(range(files))


def test_a_file_that_was_abandoned_goes_with_the_next_save_into_a_small_folder(tmp_path: Path) -> None:
    for turn in range(3):
        left = tmp_path / f"{temporaries.PREFIX}{turn}{temporaries.SUFFIX}"
        left.write_bytes(b"")
        atomic.write_file(tmp_path / "x", lambda file: file.write(b"x"))
        assert not left.exists()


@pytest.mark.parametrize(
    "name", [None, 5, b"a.safetensors", ["a"], torch.zeros(2)], ids=lambda name: type(name).__name__
)
def test_what_is_no_name(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vae = make(SMALL)
    with pytest.raises(CheckpointError, match=f"a {type(name).__name__} is not the name of a file"):
        save_single_file(vae, name)
    assert not list(tmp_path.iterdir())
