"""The command line and files: outputs that must not be lost, conversions, hostile input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from given.command import photo, run, shaped, three_vaes
from given.files import assert_same_weights, ldm
from given.models import family_fields, fields, make
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from vae_core import inspect_vae, load_vae, save_single_file
from vae_core.checkpoints.families import FAMILIES
from vae_core.cli.decode import output_paths
from vae_core.cli.latent_file import Latent

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return three_vaes(tmp_path_factory.mktemp("vaes"))


class TestNothingIsLost:
    def test_each_command_keeps_what_is_there(
        self, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vae, image = vaes["sdxl"], photo(tmp_path / "photo.png")
        latent = tmp_path / "l.latent"
        single = tmp_path / "vae.safetensors"
        commands = [
            (["encode", image, "-o", latent, "--vae", vae], [latent]),
            (["decode", latent, "-o", tmp_path / "d.png", "--vae", vae], [tmp_path / "d.png"]),
            (["convert", vae, single], [single]),
            (["convert", vae, tmp_path / "vae.ckpt"], [tmp_path / "vae.ckpt"]),
            (["convert", single, tmp_path / "folder"], [tmp_path / "folder" / "config.json"]),
            (["roundtrip", image, "--out", tmp_path / "out", "--vae", vae], [tmp_path / "out" / "photo-roundtrip.png"]),
        ]
        for command, outputs in commands:
            assert run(*command) == 0
            before = {path: (path.read_bytes(), path.stat().st_ino) for path in outputs}
            capsys.readouterr()
            assert run(*command) == 1
            said = capsys.readouterr().err
            assert "exists already" in said and "--overwrite" in said
            assert {path: (path.read_bytes(), path.stat().st_ino) for path in outputs} == before
            assert run(*command, "--overwrite") == 0
            assert all(path.stat().st_ino != before[path][1] for path in outputs)

    def test_decoding_into_the_folder_of_the_originals(
        self, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        photos = [photo(tmp_path / f"{name}.png", seed=i) for i, name in enumerate(["a", "holiday"])]
        before = [path.read_bytes() for path in photos]
        assert run("encode", *photos, "-o", tmp_path / "l.latent", "--vae", vaes["sdxl"]) == 0
        assert run("decode", tmp_path / "l.latent", "-o", tmp_path, "--vae", vaes["sdxl"]) == 1
        assert "exists already" in capsys.readouterr().err
        assert [path.read_bytes() for path in photos] == before

    def test_inputs_are_never_outputs(
        self, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        vae = tmp_path / "vae"
        load_vae(vaes["sdxl"]).save_pretrained(vae)
        weights = vae / "diffusion_pytorch_model.safetensors"
        image, single = photo(tmp_path / "photo.png"), tmp_path / "vae.safetensors"
        save_single_file(load_vae(vae), single)
        (tmp_path / "link.png").symlink_to(image)
        os.link(image, tmp_path / "hard.png")
        latent, conf = tmp_path / "l.latent", tmp_path / "conf"
        save_file({"samples": torch.zeros(1, 4, 4, 4)}, latent)
        shutil.copy(vae / "config.json", conf)
        everything = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        before = [path.read_bytes() for path in everything]
        for command in (
            ["encode", image, "-o", image],
            ["encode", image, "-o", tmp_path / "link.png"],
            ["encode", image, "-o", tmp_path / "hard.png"],
            ["encode", image, "-o", tmp_path / "x" / ".." / "photo.png"],
            ["encode", image, "-o", weights, "--vae", vae],
            ["encode", image, "-o", vae / "config.json", "--vae", vae],
            ["encode", image, "-o", single],
            ["encode", image, "--vae", single, "--config", conf, "-o", conf],
            ["decode", latent, "--vae", single, "--config", conf, "-o", conf],
            ["decode", latent, "-o", latent],
            ["convert", single, single],
            ["convert", vae, vae],
            ["convert", weights, vae],
            ["convert", vae, weights],
            ["convert", vae, latent],
            ["roundtrip", image, "--out", image],
        ):
            for option in ([], ["--overwrite"]):
                capsys.readouterr()
                assert run(*command, *option) == 1, command
                assert "unexpected" not in capsys.readouterr().err
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == everything
        assert [path.read_bytes() for path in everything] == before

    @pytest.mark.parametrize("option", [[], ["--overwrite"]])
    @pytest.mark.parametrize(
        ("name", "refused"),
        [
            ("new.safetensors", True),
            ("diffusion_pytorch_model.fp16.safetensors", True),
            ("diffusion_pytorch_model.bin", True),
            ("../vae/x.ckpt", True),
            ("../link/x.safetensors", True),
            ("sub/new.safetensors", False),
            ("../new.safetensors", False),
        ],
    )
    def test_nothing_new_in_the_folder_of_an_input(
        self, name: str, refused: bool, option: list[str], vaes: dict[str, Path], tmp_path: Path, capsys: Any
    ) -> None:
        vae, image = tmp_path / "vae", photo(tmp_path / "photo.png")
        load_vae(vaes["sdxl"]).save_pretrained(vae)
        (tmp_path / "link").symlink_to(vae)
        (vae / "sub").mkdir()
        for command in (["convert", vae, vae / name], ["encode", image, "-o", vae / name, "--vae", vae]):
            if command[0] == "encode" and name.endswith((".bin", ".ckpt")):
                continue
            before = sorted(vae.rglob("*"))
            capsys.readouterr()
            assert run(*command, *option) == int(refused)
            if refused:
                said = capsys.readouterr().err
                assert "in a folder that is an input of this command" in said and "unexpected" not in said
                assert sorted(vae.rglob("*")) == before
            else:
                (vae / name).unlink()

    @pytest.mark.parametrize("option", [[], ["--overwrite"]])
    def test_other_models_are_never_replaced(
        self, option: list[str], vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        unet, pipeline, text = tmp_path / "unet", tmp_path / "pipeline", tmp_path / "text_encoder"
        for folder in (unet, pipeline, text):
            folder.mkdir()
        (unet / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "block_out_channels": [1]}')
        (unet / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"theirs")
        (pipeline / "model_index.json").write_text("{}")
        (text / "config.json").write_text('{"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}')
        whole = tmp_path / "checkpoint.safetensors"
        save_file({**ldm(make(fields(32)), "first_stage_model."), "model.diffusion_model.x": torch.zeros(1)}, whole)
        lora = tmp_path / "lora.safetensors"
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, lora)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for output in (unet, pipeline, text, whole, lora):
            capsys.readouterr()
            assert run("convert", vaes["sdxl"], output, *option) == 1
            assert "unexpected" not in capsys.readouterr().err
        assert run("encode", photo(tmp_path / "p.png"), "-o", lora, *option) == 1
        (tmp_path / "p.png").unlink()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("format", [[], ["--format", "single-file"]])
    def test_what_cannot_be_recognised_is_never_replaced(
        self, format: list[str], vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It may be a model of another kind, or anything. An empty file is nothing that could be lost."""
        torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
        (tmp_path / "gguf.safetensors").write_bytes(b"GGUF" + bytes(100))
        (tmp_path / "optimizer.bin").write_bytes(pickle.dumps({"state": {}, "param_groups": []}))
        photo(tmp_path / "photo.png").rename(tmp_path / "photo.pt")
        whole = save({"x": torch.zeros(1000)})
        (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
        for name in ("unet", "other"):
            (tmp_path / name).mkdir()
        weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({"conv_in.weight": torch.zeros(4, 4, 3, 3)}, weights)
        (tmp_path / "other" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        outputs = [path for path in tmp_path.iterdir() if path.is_file()]
        outputs += [tmp_path / "other" / "config.json", weights] if format else [tmp_path / "unet"]
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for output in outputs:
            capsys.readouterr()
            assert run("convert", vaes["sdxl"], output, "--overwrite", *format) == 1, output
            assert "of another kind" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        (tmp_path / "empty.safetensors").touch()
        (tmp_path / "link.safetensors").symlink_to(tmp_path / "nothing.safetensors")
        for name in ("empty.safetensors", "link.safetensors"):
            assert run("convert", vaes["sdxl"], tmp_path / name, "--overwrite", *format) == 0
        folder = tmp_path / "linked"
        folder.mkdir()
        (folder / "diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
        assert run("convert", vaes["sdxl"], folder, "--overwrite") == 0

    @pytest.mark.parametrize(
        "name", ["../up", "/etc/passwd", "..", ".", "", "a\0b", "a/b", "a\\b", "n" * 300, "ü" * 300, "CON?"]
    )
    @pytest.mark.thorough
    def test_names_from_a_file_stay_in_the_folder(self, name: str, vaes: dict[str, Path], tmp_path: Path) -> None:
        about = {"sizes": [[8, 8]] * 2, "names": [name, name.upper()]}
        save_file(shaped(2, 4, 4, 4), tmp_path / "a.latent", {"seamless_vae": json.dumps(about)})
        assert run("decode", tmp_path / "a.latent", "-o", tmp_path / "out", "--vae", vaes["sdxl"]) == 1  # no ending
        assert run("decode", tmp_path / "a.latent", "-o", f"{tmp_path}/out/", "--vae", vaes["sdxl"]) == 0
        assert len(list((tmp_path / "out").iterdir())) == 2
        assert {path.name for path in tmp_path.iterdir()} == {"a.latent", "out"}

    def test_names_of_images(self) -> None:
        names = ("a.b", "a/b", "..", "\ud800", None, " x. ", "B", "nul")
        latents = [Latent(torch.zeros(1, 4, 1, 1), name=name) for name in names]
        assert [path.name for path in output_paths("out/", latents)] == [
            f"{name}-{i}.png" for i, name in enumerate(("a.b", "b", "image-2", "_", "image-4", "x", "B", "_nul"))
        ], "all are numbered, because two differ in capitals alone"
        assert [path.name for path in output_paths("out/", latents[:3])] == ["a.b.png", "b.png", "image-2.png"]


class TestConverting:
    @pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".sft", ".CKPT"])
    def test_endings_of_files(self, ending: str, vaes: dict[str, Path], tmp_path: Path) -> None:
        output = tmp_path / f"out{ending}"
        assert run("convert", vaes["sdxl"], output) == 0
        assert output.is_file()
        assert_same_weights(load_vae(output, norm_num_groups=8), load_vae(vaes["sdxl"]))
        is_pickle = output.read_bytes()[:2] == b"PK"
        assert is_pickle == (ending.lower() not in (".safetensors", ".sft"))
        if is_pickle:
            assert set(torch.load(output, weights_only=True)) == set(load_file_keys(vaes["sdxl"], tmp_path))

    @pytest.mark.parametrize(
        "ending",
        [
            *(".gguf", ".onnx", ".npz", ".json", ".png", ".msgpack"),
            *(".th", ".pt2", ".pt.tar", ".PKL", ".safetensor", ".distcp", ".model"),
        ],
    )
    def test_endings_that_are_not_written(
        self, ending: str, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("convert", vaes["sdxl"], tmp_path / f"out{ending}") == 1
        assert "are not written" in capsys.readouterr().err and not list(tmp_path.iterdir())
        assert run("convert", vaes["sdxl"], tmp_path / "vae-v1.5") == 0
        assert (tmp_path / "vae-v1.5" / "config.json").is_file()

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_family(self, family: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        vae = make(family_fields(family))
        save_file(ldm(vae), tmp_path / "bare.safetensors")
        assert run("convert", tmp_path / "bare.safetensors", tmp_path / "vae", "--family", family.name) == 0
        config = load_vae(tmp_path / "vae").config
        for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
            assert config[name] == vae.config[name]
        wrong = "sdxl" if vae.config.latent_channels != 4 or family.levels != 4 else "flux1"
        assert run("convert", tmp_path / "bare.safetensors", tmp_path / "wrong", "--family", wrong) == 1
        assert "latent channels" in capsys.readouterr().err and not (tmp_path / "wrong").exists()

    def test_a_guess_is_never_written_as_a_fact(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """SD 1.x, SD 2.x and SDXL have the same shapes: whichever way a bare file goes, its scale stays a guess."""
        vae, bare = make(fields(32, 32, 32, 32)), tmp_path / "bare.safetensors"
        save_file(ldm(vae), bare)
        ways: dict[str, Any] = {
            "command": lambda path: run("convert", bare, path),
            "command.safetensors": lambda path: run("convert", bare, path),
            "library": lambda path: load_vae(bare).save_pretrained(path),
            "library.safetensors": lambda path: save_single_file(load_vae(bare), path),
            "again": lambda path: run("convert", tmp_path / "library.safetensors", path),
            "again.safetensors": lambda path: run("convert", tmp_path / "command", path),
        }
        for name, way in ways.items():
            way(tmp_path / name)
            info = inspect_vae(tmp_path / name)
            assert info.scaling_factor == 0.18215 and info.family_is_guess
            assert info.origins["scaling_factor"].endswith("(a guess)")
            assert info.origins["latent_channels"] in ("config.json", "metadata")
        said = capsys.readouterr().err
        assert "scaling_factor 0.18215" in said and "pass --family" in said
        assert "scaling_factor" in json.loads((tmp_path / "command" / "config.json").read_text())["_guessed"]
        with safe_open(tmp_path / "command.safetensors", "pt") as file:
            assert "modelspec.architecture" not in file.metadata()
        for source in (bare, tmp_path / "command", tmp_path / "command.safetensors"):
            known = tmp_path / f"known {source.name} folder"
            options = ["--family", "sdxl", *(["--format", "diffusers"] if source.suffix else [])]
            capsys.readouterr()
            assert run("convert", source, known, *options) == 0
            assert "scaling_factor" not in capsys.readouterr().err.partition("note: ")[2]
            info = inspect_vae(known)
            assert info.scaling_factor == 0.13025 and not info.family_is_guess
            assert info.origins["scaling_factor"] == "config.json"
        loaded = load_vae(tmp_path / "command", scaling_factor=0.5)
        loaded.save_pretrained(tmp_path / "given")
        assert inspect_vae(tmp_path / "given").origins["scaling_factor"] == "config.json"

    def test_diffusers_reads_a_marked_config(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        import diffusers

        save_file(ldm(make(fields(32, 32, 32, 32))), tmp_path / "bare.safetensors")
        assert run("convert", tmp_path / "bare.safetensors", tmp_path / "vae") == 0
        theirs, unused = diffusers.AutoencoderKL.load_config(tmp_path / "vae", return_unused_kwargs=True)
        assert theirs["scaling_factor"] == 0.18215 and not unused
        loaded: Any = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
        assert loaded.config.scaling_factor == 0.18215

    def test_scale_shift_and_config(
        self, vaes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bare = tmp_path / "bare.safetensors"
        save_file(ldm(load_vae(vaes["sdxl"])), bare)
        options = ["--scaling-factor", 0.7, "--shift-factor", -0.1]
        assert run("convert", bare, tmp_path / "a", *options) == 0
        config = json.loads((tmp_path / "a" / "config.json").read_text())
        assert (config["scaling_factor"], config["shift_factor"]) == (0.7, -0.1)
        assert run("convert", bare, tmp_path / "b", "--config", vaes["sdxl"] / "config.json") == 0
        assert load_vae(tmp_path / "b").config == load_vae(vaes["sdxl"]).config
        for option in (["--scaling-factor", "nan"], ["--scaling-factor", 0], ["--shift-factor", "inf"]):
            assert run("convert", bare, tmp_path / "c", *option) == 1
            assert "finite" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            run("convert", bare, tmp_path / "c", "--family", "nonsense")
        assert "sd1, sd2, playground25, sdxl" in capsys.readouterr().err


def load_file_keys(folder: Path, tmp_path: Path) -> list[str]:
    save_single_file(load_vae(folder), tmp_path / "keys.safetensors")
    return list(load_file(tmp_path / "keys.safetensors"))
