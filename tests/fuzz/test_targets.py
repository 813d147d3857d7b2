"""A seeded thousand of cases for each target. `python tools/fuzz.py` runs more of them."""

from __future__ import annotations

import json

import pytest
from given.files import ldm
from given.models import fields, make
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

from fuzz import TARGETS, beside, limits
from vae_core import inspect_vae, load_vae

CASES = 1000


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.thorough
def test_target(target: str) -> None:
    seeded = settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,  # every run has the same cases
        database=None,
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
    )
    seeded(TARGETS[target])()


def test_an_honest_file_among_all_of_them() -> None:
    path, folder = limits.folder() / "honest.safetensors", beside.vae_folder()
    save_file(ldm(make(fields(32))), path)
    assert inspect_vae(path).problem is None
    (folder / "config.json").write_text(json.dumps(beside.make_config()), encoding="utf-8")
    assert load_vae(folder).config.scaling_factor == 0.5
