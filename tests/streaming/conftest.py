"""For the engine's tests: models this narrow take the fast kernels too, which they would not for speed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vae_core.streaming import convolution


@pytest.fixture(autouse=True, scope="module")
def fast_kernels_for_narrow_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_WINOGRAD_MIN_CHANNELS", 16)
        yield
