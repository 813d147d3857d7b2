"""The VAE that ships: small, in order, and good enough to look at."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_core
from vae_core import TileSpec, inspect_vae, load_vae
from vae_core.cli import main
from vae_core.cli.common import DEMO, DEMO_PHOTOGRAPH
from vae_core.image import from_pil, to_numpy
from vae_core.metrics import psnr

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools" / "demo"))

from lines import plain_lines


def test_the_files_that_ship() -> None:
    names = {path.name for path in DEMO.iterdir()}
    assert names >= {"config.json", "README.md", "chelsea.png"}
    (weights,) = DEMO.glob("*.safetensors")
    assert weights.stat().st_size <= 12_000_000
    info = inspect_vae(DEMO)
    assert info.dtype == torch.float16 and info.problem is None and info.config is not None
    assert info.config.downscale_factor == 8
    with Image.open(DEMO_PHOTOGRAPH) as image:
        assert image.size == (451, 300)


def test_no_arguments_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["roundtrip"]) == 0
    said = capsys.readouterr().out
    assert float(said.partition("PSNR")[2].split()[0]) >= 33.5
    assert (tmp_path / "output" / "chelsea-roundtrip.png").exists()


def test_latents_have_a_deviation_of_one_when_scaled() -> None:
    from vae_core.latent import to_diffusion

    vae = load_vae(DEMO, dtype=torch.float32)
    with torch.no_grad():
        z = vae.encode(from_pil(Image.open(DEMO_PHOTOGRAPH)).pixels).latent_dist.mode()
    assert 0.5 < to_diffusion(z, vae.config).std().item() < 1.5


@pytest.mark.thorough
def test_photographs_that_it_never_saw() -> None:
    import skimage.data

    vae = load_vae(DEMO, dtype=torch.float32)
    scores = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        array = np.asarray(getattr(skimage.data, name)())
        fitted = from_pil(Image.fromarray(array))
        with torch.no_grad():
            decoded = to_numpy(fitted.restore(vae(fitted.pixels).sample))[0]
        both = (torch.from_numpy(each.astype(np.float64)).movedim(-1, 0)[None] for each in (decoded, array))
        scores.append(psnr(*both, data_range=255).item())
    assert min(scores) > 28.7 and sum(scores) / len(scores) > 30.5, scores


def errors_of(photograph: np.ndarray) -> dict[str, np.ndarray]:
    """The demo's errors on a photograph, all [H, W, 3] in bytes: as it is, mirrored, upside down; each turned back."""
    vae, found = load_vae(DEMO, dtype=torch.float32), {}
    for name, axes in (("plain", ()), ("mirrored", 1), ("upside down", 0)):
        seen = np.flip(photograph, axes)
        fitted = from_pil(Image.fromarray(seen.copy()))
        with torch.no_grad():
            decoded = to_numpy(fitted.restore(vae(fitted.pixels).sample))[0]
        found[name] = np.flip(decoded.astype(np.float64) - seen, axes)
    return found


@pytest.fixture(scope="module")
def errors() -> dict[str, np.ndarray]:
    """Those on its own photograph."""
    return errors_of(np.asarray(Image.open(DEMO_PHOTOGRAPH).convert("RGB")))


def decibels(error: np.ndarray) -> float:
    return 10 * float(np.log10(255**2 / np.square(error).mean()))


def test_tiles_that_are_decoded_by_themselves_have_the_colours_of_the_whole() -> None:
    """A model that saw whole crops alone may keep the level of the colours at their edges: blended tiles were off by
    28 levels in the mean."""
    vae = load_vae(DEMO, dtype=torch.float32)
    with torch.no_grad():
        z = vae.encode(from_pil(Image.open(DEMO_PHOTOGRAPH)).pixels).latent_dist.mode()
    tiles = vae_core.decode(vae, z, tiling=TileSpec(size=32, overlap=8, mode="blended"))
    assert (tiles - vae_core.decode(vae, z)).abs().mean() * 127.5 < 1


SIDES = {
    "left": ("mirrored", np.s_[:, :16]),
    "right": ("mirrored", np.s_[:, -16:]),
    "top": ("upside down", np.s_[:16]),
    "bottom": ("upside down", np.s_[-16:]),
}


@pytest.mark.parametrize("side", SIDES)
def test_edges_are_as_good_as_the_rest(errors: dict[str, np.ndarray], side: str) -> None:
    """The same pixels may not suffer from the side that they are at, and no side is worse than the rest."""
    mirrored, place = SIDES[side]
    here, there = decibels(errors["plain"][place]), decibels(errors[mirrored][place])
    assert min(here, there) >= decibels(errors["plain"][16:-16, 16:-16]) - 0.5
    assert here >= there - 6, (
        "the photograph's smooth right edge has 37 dB with a VAE that draws lines there, else 42 to 47"
    )


def most_over_neighbours(error: np.ndarray) -> tuple[float, int, int]:
    """How many times the median of its neighbours' mean errors a row or column has, beyond the first four; where."""
    worst = (0.0, 0, 0)
    for axis in (0, 1):
        line = np.abs(error).mean(axis=(axis, 2))
        for i in range(4, len(line)):
            neighbours = np.median(np.r_[line[max(0, i - 4) : i], line[i + 1 : i + 5]])
            worst = max(worst, (float(line[i] / neighbours), axis, i))
    return worst


@pytest.mark.parametrize("way", ["plain", "mirrored", "upside down"])
def test_no_line_stands_out(errors: dict[str, np.ndarray], way: str) -> None:
    """No column or row has more than twice the error of its neighbours."""
    assert most_over_neighbours(errors[way]) < (2,)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket", "china.jpg", "flower.jpg"])
def test_no_line_stands_out_in_other_photographs(name: str) -> None:
    """Least of all in the flower, whose dark leaves at the right edge had one."""
    if name.endswith(".jpg"):
        photograph = pytest.importorskip("sklearn.datasets").load_sample_image(name)
    else:
        photograph = getattr(pytest.importorskip("skimage.data"), name)()
    found = errors_of(photograph)
    for error in found.values():
        assert most_over_neighbours(error) < (2,)
    check_plain_areas(found["plain"], photograph)


def test_no_line_is_seen_in_plain_areas(errors: dict[str, np.ndarray]) -> None:
    check_plain_areas(errors["plain"], np.asarray(Image.open(DEMO_PHOTOGRAPH).convert("RGB")))


def check_plain_areas(error: np.ndarray, photograph: np.ndarray) -> None:
    """Pieces of lines at the right side stood out by up to 8 levels, 2.7 in the root mean square, and were seen."""
    for side, lines in plain_lines(error, photograph).items():
        assert lines.most < 3.5 and lines.typical < 1.25, side


def test_lines_in_plain_areas_are_found() -> None:
    """Of a step between two areas, which is no line, of one that is shorter, and beside what is not plain: none."""
    photograph = np.full((64, 64, 3), 100, np.uint8)
    error = np.zeros((64, 64, 3))
    error[:, :20] = 3
    error[:32, 10, 1] = 8  # 5 from what is about it
    error[20:24, -6] = 8  # a mean of 1 in 32
    photograph[:, -20:-14] = np.random.default_rng(0).integers(0, 255, (64, 6, 3))
    error[:, -17] = 9
    found = plain_lines(error, photograph)
    assert found["left"].most == pytest.approx(5) and found["right"].most == pytest.approx(1)
    assert found["left"].typical < 1
