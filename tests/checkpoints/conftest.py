"""What most tests of files begin with: a model, and a place for its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from given.models import fields, make

from vae_core import AutoencoderKL


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return make(fields(32, 64))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vae.safetensors"
