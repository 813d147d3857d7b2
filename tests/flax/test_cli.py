"""`seamless-vae roundtrip --backend jax`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from given.pairs import model
from PIL import Image

from vae_core.cli import main


def run(*arguments: object) -> int:
    return main(["roundtrip", *(str(argument) for argument in arguments)])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model("no mid attention").save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)).save(path)
    return path


def test_the_same_image_as_torchs(
    photo: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for backend in ("torch", "jax"):
        assert run(photo, "--vae", vae_folder, "--out", tmp_path / backend, "--backend", backend) == 0
        said = capsys.readouterr().out
        assert "1x4x6x9" in said and ("s to compile" in said) is (backend == "jax")
    ours, torchs = (pixels(tmp_path / backend / "photo-reconstruction.png") for backend in ("jax", "torch"))
    assert ours.shape == (21, 34, 3)
    assert np.abs(ours - torchs).max() <= 1  # one step of a byte, where rounding falls the other way


@pytest.mark.slow  # three compilations; the command itself is in the test above
def test_options(photo: Path, vae_folder: Path, tmp_path: Path) -> None:
    results = []
    for i, options in enumerate((["--seed", 0], ["--seed", 1, "--dtype", "bfloat16", "--device", "cpu:0"])):
        out = tmp_path / str(i)
        assert run(photo, "--vae", vae_folder, "--out", out, "--backend", "jax", "--sample", *options) == 0
        results.append(pixels(out / "photo-reconstruction.png"))
    assert not np.array_equal(*results)


def test_what_it_cannot(photo: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, says in (
        (["--memory", 1], "--memory works with --backend torch only"),
        (["--device", "abacus"], "JAX has no device 'abacus' here; it has cpu:0"),
        (["--device", "cpu:9"], "JAX has no device 'cpu:9' here"),
    ):
        assert run(photo, "--vae", vae_folder, "--backend", "jax", *options) == 1
        assert says in capsys.readouterr().err
