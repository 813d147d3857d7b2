"""Two models that are saved one over the other."""

from __future__ import annotations

import pytest
from given.models import fields, make

from vae_core import AutoencoderKL


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def old() -> AutoencoderKL:
    return make(fields(8, 8, norm_num_groups=8, layers_per_block=1, scaling_factor=0.5))


@pytest.fixture(scope="module")
def new() -> AutoencoderKL:
    return make(fields(8, 8, norm_num_groups=8, layers_per_block=1, scaling_factor=0.25), seed=1)
