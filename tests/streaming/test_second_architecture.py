"""The engine runs programs, whichever model they are of: another architecture streams exactly, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from given.decoder import GivenDecoder
from given.thinned import thinned

from vae_core import TileSpec, kernels
from vae_core.streaming import Options, prepare
from vae_core.threads import torch_threads

TESTS = Path(__file__).resolve().parents[1]


def test_what_has_to_be_written_for_it_is_short() -> None:
    """All of it: the modules as a user has them, the program, and what the engine asks beside that."""
    assert GivenDecoder.__module__ == "given.decoder"
    assert len((TESTS / "given" / "decoder.py").read_text(encoding="utf-8").splitlines()) <= 60


@thinned(mode=["auto", "direct", "winograd"], size=[None, 3, 64], count=[1, 2])
@torch.no_grad()
def test_another_architecture_streams_exactly(mode: str, size: int | None, count: int) -> None:
    torch.manual_seed(0)
    decoder, z = GivenDecoder().eval(), torch.randn(3, 4, 19, 26)
    want = decoder.double()(z.double())
    decoder.float()
    with kernels(mode), torch_threads(count):  # type: ignore[arg-type]
        job = prepare(decoder.half(), z.shape, Options(tiling=TileSpec(size=size)))
        result = job.run(z)
    assert job.way.name == "strips" and job.plan.strips > job.plan.passes
    assert (result - want).abs().max() < 1e-5 * want.abs().max()


@torch.no_grad()
def test_it_keeps_to_a_budget() -> None:
    torch.manual_seed(0)
    decoder, z = GivenDecoder().eval(), torch.randn(1, 4, 96, 96)
    free = prepare(decoder.half(), z.shape)
    budget = free.plan.peak_bytes * 2 // 3
    job = prepare(decoder.half(), z.shape, Options(memory_budget=budget))
    assert job.plan.peak_bytes <= budget < free.plan.peak_bytes
    assert job.plan.places.disk > 0
    want = decoder(z)
    assert (job.run(z) - want).abs().max() < 1e-5 * want.abs().max()


MEASURE = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from given.decoder import GivenDecoder
from given.growth import Growth
from vae_core import Options
from vae_core.streaming import prepare
torch.manual_seed(0)
half, z = GivenDecoder().eval().half(), torch.randn(1, 4, 112, 112)
free = prepare(half, z.shape)
budget = free.plan.peak_bytes // 2
within = prepare(half, z.shape, Options(memory_budget=budget))
out = torch.zeros(free.output_shape)
print(budget)
for job in (within, free):
    job.run(z, out)  # compiled code is not working memory
    with Growth() as growth:
        job.run(z, out)
    print(growth.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_is_measured_to_keep_to_a_budget() -> None:
    """The process grows by no more than the budget; without one it grows by far more."""
    command = [sys.executable, "-c", MEASURE, str(TESTS.parent), str(TESTS)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    budget, within, free = map(int, result.stdout.split())
    assert within <= budget < 0.75 * free
