"""The parts of the benchmarks and tools that compute something."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vae_core.streaming.transforms import WINOGRAD, winograd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]
sys.path.append(str(ROOT / "tools"))  # last: `fuzz` is a package of the tests, too

import accelerator  # noqa: E402
import engine  # noqa: E402
import report  # noqa: E402
import tiling_image  # noqa: E402
import winograd_points  # noqa: E402


def test_the_chosen_points_round_better_than_the_usual_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, 16, 16, generator=generator)
    weight = torch.randn(32, 32, 3, 3, generator=generator) / 17
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    usual = winograd_points.errors(winograd(Fraction(1), Fraction(2)), x, weight, wanted)
    chosen = winograd_points.errors(WINOGRAD, x, weight, wanted)
    assert 1e-8 < chosen[0] < 0.5 * usual[0] < 1e-5  # as the documentation says


def test_averaged_tilings_of_a_pointwise_function_change_nothing() -> None:
    z = torch.randn(1, 2, 21, 34)

    def decode(tile: torch.Tensor) -> torch.Tensor:
        return tile.repeat_interleave(4, 2).repeat_interleave(4, 3)

    result = tiling_image.averaged_tilings(decode, z, tile=8, overlap=2, factor=4, channels=2)
    torch.testing.assert_close(result, decode(z), rtol=0, atol=1e-6)


@pytest.mark.thorough
def test_turns_alternate_and_stop_at_the_limit() -> None:
    order: list[str] = []
    now = [0.0]

    def takes(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            now[0] += seconds

        return run

    seconds = engine.in_turns([takes("a", 3.0), takes("b", 5.0)], turns=5, limit=20.0, clock=lambda: now[0])
    assert order == ["a", "b", "b", "a"]  # a third turn would end at 24 s
    assert seconds == [[3.0, 3.0], [5.0, 5.0]]


def test_table_compares_with_the_fastest_other() -> None:
    seconds = {"Seamless VAE": 2.0, "diffusers": 6.0, "ComfyUI": 5.0}
    line = report.against_peers([{"title": "case", "ours": "Seamless VAE", "seconds": seconds, "turns": 3}])
    assert line.splitlines()[-1] == "| case | 2.0 s |  | 6.0 s (3.00) |  | 5.0 s (2.50) | **2.50** | 3 |"


def test_page_keeps_what_is_around_the_tables() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.replace_between(page, "new") == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.replace_between("text\n", "new") == f"text\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_figures_of_the_readme_are_on_the_page(name: str) -> None:
    """As they are there, not rounded or computed from several."""
    figure = re.compile(r"\d+\.\d+")
    page = set(figure.findall((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")))
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "docs/benchmarks.md" in line]
    assert len(lines) == 2
    for line in lines:
        found = set(figure.findall(line))
        assert found and found <= page, found - page


@pytest.mark.thorough
def test_an_accelerators_table_is_written_and_renewed(tmp_path: Path) -> None:
    """The script for a device, on the CPU: what a row says, and that another run takes the place of the first."""
    out = tmp_path / "accelerators.md"
    small = ["--device", "cpu", "--config", "tiny", "--sizes", "32", "--runs", "1", "--budgets", "8", "--no-tests"]
    for dtype in ("float32", "bfloat16"):
        run = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), *small, "--dtype", dtype, "--out", str(out)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0 or "times the time of" in run.stderr
        text = out.read_text()
        assert text.count("\n## ") == 1 and f", {dtype}, model tiny" in text
        for name in ("reference path", "Seamless VAE", "in strips, without Triton", "within 8 MiB"):
            row = text.split(f"| decode 32 | {name} | ")[1].partition("\n")[0]
            seconds, speed, memory, difference = row.split(" | ")
            assert float(seconds) > 0 and float(speed) > 0 and memory == "unknown"
            assert float(difference.rstrip(" |")) < (1e-4 if dtype == "float32" else 0.5)
    plain = accelerator.Measured("encode", "8", accelerator.PLAIN, 1.0, 1.0, None, None, 0.01)
    exceeded = plain._replace(name="within 1 MiB", memory=2**21, budget=2**20)
    slow = plain._replace(name=accelerator.OURS, seconds=1.2)
    wrong = plain._replace(name=accelerator.IN_STRIPS, seconds=1.1, difference=0.03)
    assert list(accelerator.broken([plain, exceeded, slow, wrong])) == [
        "encode 8: within 1 MiB was exceeded",
        "encode 8: 1.20 times the time of reference path",
        "encode 8: in strips differs from float32 by 3.0e-02",
    ]
    right = exceeded._replace(memory=2**20), slow._replace(seconds=1.0), wrong._replace(difference=0.01)
    assert not list(accelerator.broken([plain, *right]))
