"""The command line, as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from given.pairs import model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vae_core import AutoencoderKL, __version__, load_vae
from vae_core.cli import main
from vae_core.image import from_pil, to_pil

RNG = np.random.default_rng(0)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return image_file(tmp_path / "photo.png", (37, 53, 3))


def image_file(path: Path, shape: tuple[int, ...]) -> Path:
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


class TestRoundtrip:
    def test_writes_the_reconstruction_and_the_comparison(
        self, photo: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path / "out") == 0
        said = capsys.readouterr().out
        for expected in ("photo.png, 53x37", "1x4x5x7", "PSNR", " dB", "SSIM", " s to encode", "photo-roundtrip.png"):
            assert expected in said
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "photo-reconstruction.png",
            "photo-roundtrip.png",
        ]
        kept, sheet = pixels(tmp_path / "out/photo-reconstruction.png"), pixels(tmp_path / "out/photo-roundtrip.png")
        assert kept.shape == (37, 53, 3)
        # three panels under a caption of 28 pixels, 8 apart
        assert sheet.shape == (28 + 37, 3 * 53 + 2 * 8, 3)
        panels = [sheet[28:, left : left + 53].astype(int) for left in (0, 61, 122)]
        assert np.array_equal(panels[0], pixels(photo)) and np.array_equal(panels[1], kept)
        assert np.array_equal(panels[2], (5 * np.abs(panels[0] - panels[1])).clip(0, 255))

    def test_the_reconstruction_is_the_models(self, photo: Path, vae_folder: Path, tmp_path: Path) -> None:
        run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path)
        fitted = from_pil(Image.open(photo))
        with torch.no_grad():
            expected = to_pil(fitted.restore(load_vae(vae_folder)(fitted.pixels).sample))[0]
        difference = pixels(tmp_path / "photo-reconstruction.png").astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 1  # one step of a byte, where rounding falls the other way

    def test_sampling_by_seed(self, photo: Path, vae_folder: Path, tmp_path: Path) -> None:
        results = []
        for i, options in enumerate(([], ["--sample"], ["--sample", "--seed", 0], ["--sample", "--seed", 1])):
            assert run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path / str(i), *options) == 0
            results.append(pixels(tmp_path / str(i) / "photo-reconstruction.png"))
        assert np.array_equal(results[1], results[2])
        for one, other in ((0, 1), (1, 3)):
            assert not np.array_equal(results[one], results[other])

    def test_alpha_and_tiny_images(self, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = image_file(tmp_path / "small.png", (5, 3, 4))
        assert run("roundtrip", path, "--vae", vae_folder, "--out", tmp_path / "out") == 0
        assert "too small" in capsys.readouterr().out
        kept = pixels(tmp_path / "out/small-reconstruction.png")
        assert kept.shape == (5, 3, 4) and np.array_equal(kept[..., 3], pixels(path)[..., 3])

    @pytest.mark.parametrize("name", ["grey", "rgba"])
    def test_models_of_other_channels(self, name: str, photo: Path, tmp_path: Path) -> None:
        model(name).save_pretrained(tmp_path / "vae")
        assert run("roundtrip", photo, "--vae", tmp_path / "vae", "--out", tmp_path) == 0
        assert pixels(tmp_path / "photo-reconstruction.png").shape == ((37, 53) if name == "grey" else (37, 53, 4))

    def test_options_of_the_model(self, photo: Path, vae_folder: Path, tmp_path: Path) -> None:
        options = ["--dtype", "bfloat16", "--device", "cpu", "--memory", 0.5]
        assert run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path, *options) == 0

    def test_a_memory_budget_changes_nothing(
        self, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        photo = image_file(tmp_path / "photo.png", (300, 280, 3))
        for i, options in enumerate(([], ["--memory", 0.5])):
            assert run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path / str(i), *options) == 0
        results = [pixels(tmp_path / str(i) / "photo-reconstruction.png").astype(int) for i in range(2)]
        assert np.abs(results[0] - results[1]).max() <= 1
        assert run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path, "--memory", 0) == 1
        assert "budget" in capsys.readouterr().err


class TestEncodeAndDecode:
    @pytest.mark.parametrize("shape", [(37, 53, 3), (16, 24, 3), (9, 8), (41, 23, 4)])
    def test_gives_back_the_size_that_came_in(self, shape: tuple[int, ...], vae_folder: Path, tmp_path: Path) -> None:
        photo, file, output = image_file(tmp_path / "a.png", shape), tmp_path / "a.safetensors", tmp_path / "b.png"
        assert run("encode", photo, "-o", file, "--vae", vae_folder) == 0
        assert run("decode", file, "-o", output, "--vae", vae_folder) == 0
        assert pixels(output).shape[:2] == shape[:2]
        assert run("roundtrip", photo, "--vae", vae_folder, "--out", tmp_path) == 0
        assert np.array_equal(pixels(output), pixels(tmp_path / "a-reconstruction.png"))

    def test_one_size_makes_one_batch(self, vae_folder: Path, tmp_path: Path) -> None:
        photos = [image_file(tmp_path / f"{name}.png", (20 + i, 24, 3)) for i, name in enumerate("abc")]
        file = tmp_path / "latents.safetensors"
        assert run("encode", *photos, "-o", file, "--vae", vae_folder) == 0
        tensors = load_file(file)
        assert tensors["latent_tensor"].shape == (3, 4, 3, 3) and tensors["latent_tensor"].dtype == torch.float32
        assert tensors["latent_format_version_0"].numel() == 0  # ComfyUI: the latent is not to be scaled
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["seamless_vae"])
        assert about == {"sizes": [[20, 24], [21, 24], [22, 24]], "names": ["a", "b", "c"]}
        with torch.no_grad():
            z = load_vae(vae_folder).encode(from_pil(Image.open(photos[1])).pixels).latent_dist.mode()
        torch.testing.assert_close(tensors["latent_tensor"][1:2], z, rtol=0, atol=1e-5)

        assert run("decode", file, "-o", tmp_path / "out.png", "--vae", vae_folder) == 0
        assert [pixels(tmp_path / f"out-{i}.png").shape[0] for i in range(3)] == [20, 21, 22]
        assert run("decode", file, "-o", f"{tmp_path}/folder/", "--vae", vae_folder) == 0
        assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["a.png", "b.png", "c.png"]

    def test_other_sizes_and_alpha_are_kept_apart(self, vae_folder: Path, tmp_path: Path) -> None:
        photos = [image_file(tmp_path / "a.png", (20, 24, 3)), image_file(tmp_path / "b.png", (33, 10, 4))]
        file = tmp_path / "latents.safetensors"
        assert run("encode", *photos, "-o", file, "--vae", vae_folder) == 0
        tensors = load_file(file)
        assert sorted(tensors) == ["alpha.1", "latent_tensor.0", "latent_tensor.1"]
        assert run("decode", file, "-o", tmp_path / "out.png", "--vae", vae_folder) == 0
        assert pixels(tmp_path / "out-0.png").shape == (20, 24, 3)
        decoded = pixels(tmp_path / "out-1.png")
        assert decoded.shape == (33, 10, 4) and np.array_equal(decoded[..., 3], pixels(photos[1])[..., 3])

    def test_more_than_ten_keep_their_order(self, tmp_path: Path, vae_folder: Path) -> None:
        photos = [image_file(tmp_path / f"p{i}.png", (8 * (i + 1), 8, 3)) for i in range(11)]
        assert run("encode", *photos, "-o", tmp_path / "l.safetensors", "--vae", vae_folder) == 0
        assert run("decode", tmp_path / "l.safetensors", "-o", tmp_path / "o.png", "--vae", vae_folder) == 0
        assert [pixels(tmp_path / f"o-{i}.png").shape[0] for i in range(11)] == [8 * (i + 1) for i in range(11)]

    def test_seeds_are_each_images_own(self, photo: Path, vae_folder: Path, tmp_path: Path) -> None:
        files = [tmp_path / f"{name}.safetensors" for name in ("pair", "second")]
        assert run("encode", photo, photo, "-o", files[0], "--vae", vae_folder, "--sample", "--seed", 4) == 0
        assert run("encode", photo, "-o", files[1], "--vae", vae_folder, "--sample", "--seed", 5) == 0
        pair, second = (load_file(file)["latent_tensor"] for file in files)
        assert torch.equal(pair[1:], second) and not torch.equal(pair[:1], second)

    def test_fit(self, photo: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "a.safetensors"
        assert run("encode", photo, "-o", file, "--vae", vae_folder, "--fit", "crop") == 0
        assert run("decode", file, "-o", tmp_path / "b.png", "--vae", vae_folder) == 0
        assert pixels(tmp_path / "b.png").shape == (32, 48, 3)
        assert run("encode", photo, "-o", file, "--overwrite", "--vae", vae_folder, "--fit", "error") == 1
        assert "48x32 or 56x40" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["samples", "latents", "latent_tensor"])
    def test_latents_of_others(self, name: str, vae_folder: Path, tmp_path: Path) -> None:
        save_file({name: torch.randn(1, 4, 3, 5).half(), "else": torch.zeros(1)}, tmp_path / "other.safetensors")
        assert run("decode", tmp_path / "other.safetensors", "-o", tmp_path / "o.png", "--vae", vae_folder) == 0
        assert pixels(tmp_path / "o.png").shape == (24, 40, 3)

    def test_errors_leave_no_file(
        self, photo: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(tmp_path.iterdir())
        assert run("encode", photo, tmp_path / "none.png", "-o", tmp_path / "l.safetensors", "--vae", vae_folder) == 1
        assert "none.png" in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(
        ("tensors", "says"),
        [
            ({"weight": torch.zeros(2)}, "has no latent_tensor, samples, latents, latent, latent_image: it has weight"),
            ({"samples": torch.zeros(0, 4, 8, 8)}, r"(0, 4, 8, 8): there are none in it"),
            ({"samples": torch.zeros(1, 4, 0, 8)}, r"(1, 4, 0, 8): there are none in it"),
            ({"samples": torch.zeros(1, 4, 3, 8, 8)}, r"(1, 4, 3, 8, 8), of video; those of images have 4 dimensions"),
            ({"samples": torch.zeros(1, 16, 8, 8)}, "16 channels"),
        ],
    )
    def test_what_is_no_latent(
        self,
        tensors: dict[str, torch.Tensor],
        says: str,
        vae_folder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        save_file(tensors, tmp_path / "l.safetensors")
        assert run("decode", tmp_path / "l.safetensors", "-o", tmp_path / "o.png", "--vae", vae_folder) == 1
        assert says in capsys.readouterr().err
        assert not (tmp_path / "o.png").exists()

    def test_damaged_metadata_and_files(
        self, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "l.safetensors"
        for metadata in ("{", "[]", '{"sizes": [], "names": []}'):
            save_file({"samples": torch.zeros(1, 4, 3, 3)}, file, metadata={"seamless_vae": metadata})
            assert run("decode", file, "-o", tmp_path / "o.png", "--vae", vae_folder) == 1
            assert "metadata of l.safetensors cannot be read" in capsys.readouterr().err
        about = json.dumps({"sizes": [[99, 99]], "names": ["a"]})
        save_file({"samples": torch.zeros(1, 4, 3, 3)}, file, metadata={"seamless_vae": about})
        assert run("decode", file, "-o", tmp_path / "o.png", "--vae", vae_folder) == 1
        assert "24x24 pixels of a latent that came from an image of 99x99" in capsys.readouterr().err
        file.write_bytes(b"no safetensors")
        assert run("decode", file, "-o", tmp_path / "o.png", "--vae", vae_folder) == 1
        assert run("decode", tmp_path / "none", "-o", tmp_path / "o.png", "--vae", vae_folder) == 1
        assert capsys.readouterr().err.count("cannot read") == 2


class TestInfoAndConvert:
    def test_table(self, vae_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("info", vae_folder) == 0
        lines = capsys.readouterr().out.splitlines()
        table = {line.split("  ")[0]: line for line in lines}
        assert "0.18215" in table["scaling_factor"] and table["scaling_factor"].endswith("config.json")
        assert "16, 32, 32, 32" in table["block_out_channels"] and "float32" in table["dtype"]
        assert f"{load_vae(vae_folder).num_parameters():,}" in table["parameters"]

    def test_something_else(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
        assert run("info", tmp_path / "lora.safetensors") == 1
        captured = capsys.readouterr()
        assert "LoRA" in captured.out and captured.err.startswith("seamless-vae: error: ")

    def test_there_and_back(self, vae_folder: Path, tmp_path: Path) -> None:
        assert run("convert", vae_folder, tmp_path / "vae.safetensors") == 0
        assert run("convert", tmp_path / "vae.safetensors", tmp_path / "again") == 0
        first, again = load_vae(vae_folder), load_vae(tmp_path / "again")
        assert first.config == again.config
        for name, tensor in first.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        assert "encoder.down.0.block.0.norm1.weight" in load_file(tmp_path / "vae.safetensors")

    def test_format_and_dtype(self, vae_folder: Path, tmp_path: Path) -> None:
        assert run("convert", vae_folder, tmp_path / "half", "--dtype", "float16") == 0
        assert load_vae(tmp_path / "half").dtype == torch.float16
        assert run("convert", vae_folder, tmp_path / "folder.safetensors", "--format", "diffusers") == 0
        assert (tmp_path / "folder.safetensors" / "config.json").exists()
        assert run("convert", vae_folder, tmp_path / "file.bin", "--format", "single-file") == 0
        assert isinstance(load_vae(tmp_path / "file.bin"), AutoencoderKL)


class TestManners:
    def test_help_teaches(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ((), ("roundtrip",), ("encode",), ("decode",), ("info",), ("convert",)):
            with pytest.raises(SystemExit) as caught:
                run(*command, "--help")
            assert caught.value.code == 0
            said = capsys.readouterr().out
            assert "examples:\n  seamless-vae" in said
            assert all(len(line) <= 120 for line in said.splitlines())

    def test_version_and_wrong_use(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            run("--version")
        assert caught.value.code == 0 and __version__ in capsys.readouterr().out
        for wrong in ((), ("stretch",), ("encode",), ("roundtrip", "--dtype", "int8")):
            with pytest.raises(SystemExit) as caught:
                run(*wrong)
            assert caught.value.code == 2

    def test_errors_are_one_line_unless_debugging(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("info", tmp_path / "none.safetensors") == 1
        said = capsys.readouterr().err
        assert said.startswith("seamless-vae: error: ") and said.count("\n") == 1 and "Traceback" not in said
        for arguments in (("--debug", "info", "none"), ("info", "none", "--debug")):
            with pytest.raises(ValueError, match="none"):
                run(*arguments)

    def test_the_unexpected_is_one_line_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photo: Path
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("first line\nsecond line")

        monkeypatch.setattr("vae_core.cli.roundtrip.load_model", fail)
        assert run("roundtrip", photo) == 1
        assert "error: RuntimeError: first line second line (unexpected; --debug" in capsys.readouterr().err

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("vae_core.cli.roundtrip.load_model", interrupt)
        assert run("roundtrip", photo) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_as_a_module(self) -> None:
        root = Path(__file__).resolve().parents[1]
        command = [sys.executable, "-m", "vae_core", "info", "nothing.ckpt"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=root)
        assert result.returncode == 1 and result.stdout == ""
        assert result.stderr.startswith("seamless-vae: error: ") and "nothing.ckpt" in result.stderr
