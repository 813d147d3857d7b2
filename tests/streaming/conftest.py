"""For the engine's tests: models this narrow take the fast kernels too, which they would not for speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from given.models import SMALL, make
from torch import Tensor

import vae_core
from vae_core import AutoencoderKL
from vae_core.streaming import winograd
from vae_core.streaming.job import Job
from vae_core.threads import torch_threads


@pytest.fixture(autouse=True, scope="module")
def fast_kernels_for_narrow_models() -> Iterator[None]:
    with vae_core.kernels("winograd"):
        yield


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return make(SMALL)


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def transforms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast kernels with and without numba."""
    if request.param and not winograd.compiled():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(winograd, "compiled", lambda: request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param):
        yield request.param


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with "encode" or "decode" for each job that is run."""
    seen: list[str] = []
    real = Job.run_at_once

    def spy(self: Job, *args: Any, **kwargs: Any) -> Tensor:
        seen.append({"image": "encode", "latent": "decode"}[self.half.takes])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Job, "run_at_once", spy)
    return seen
