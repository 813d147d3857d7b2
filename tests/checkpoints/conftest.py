"""What most tests of files begin with: a model, and a place for its file.

Whatever a test of this folder loads is inspected as well: both say the same of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from given import files
from given.models import fields, make

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae

# Options of loading alone. With a type or a device more is looked through than `inspect_vae` reads.
_LOADING = {"dtype", "device", "disable_mmap"}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return make(fields(32, 64))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vae.safetensors"


@pytest.fixture(autouse=True)
def inspected_too(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (request.module, files):
        if getattr(module, "load_vae", None) is load_vae:
            monkeypatch.setattr(module, "load_vae", _load_and_inspect)


def _load_and_inspect(path: Any, **options: Any) -> AutoencoderKL:
    both = {name: value for name, value in options.items() if name not in _LOADING}
    try:
        loaded = load_vae(path, **options)
    except CheckpointError as error:
        if {name for name in _LOADING & options.keys() if options[name] is not None} - {"disable_mmap"}:
            raise
        if isinstance(path, str | os.PathLike) and os.path.lexists(path):
            assert inspect_vae(path, **both).problem == str(error)
        else:
            with pytest.raises(CheckpointError) as same:
                inspect_vae(path, **both)
            assert str(same.value) == str(error)
        raise
    assert inspect_vae(path, **both).problem is None
    return loaded
