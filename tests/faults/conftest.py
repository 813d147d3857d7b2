"""For tests of faults: narrow models on two threads, by the fast kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import vae_core


@pytest.fixture(autouse=True)
def two_threads_and_fast_kernels() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with vae_core.kernels("winograd"):
        yield
    torch.set_num_threads(before)
