"""A save over weights of another format: the folder has the new model afterwards, whoever loads it and however."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from given.files import assert_same_weights
from given.models import SMALL, make
from given.saves import SHARDS

from vae_core import AutoencoderKL, load_vae
from vae_core.errors import CheckpointError

PICKLE: dict[str, Any] = {"safe_serialization": False}
FORMATS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "shards": SHARDS,
    "pickle": PICKLE,
    "shards of pickles": {**PICKLE, **SHARDS},
}
STEM = "diffusion_pytorch_model"
# Files of the user's that no save of a plain model wrote, or that are of another variant.
KEPT = (
    "README.md",
    "vae.safetensors",
    "optimizer.bin",
    f"{STEM}.ema.bin",
    "diffusion_pytorch_models.bin",
    f"{STEM}.py",
)


def loaded(folder: Path, **options: Any) -> AutoencoderKL | None:
    with contextlib.suppress(CheckpointError):
        return AutoencoderKL.from_pretrained(folder, **options)
    return None


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("now", FORMATS)
@pytest.mark.parametrize("before", FORMATS)
def test_the_new_model_is_what_loads(
    before: str, now: str, variant: str | None, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
) -> None:
    old.save_pretrained(tmp_path, variant=variant, **FORMATS[before])
    for name in KEPT:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / f"{STEM}.bin.d").mkdir()
    new.save_pretrained(tmp_path, variant=variant, **FORMATS[now])
    found = [loaded(tmp_path, variant=variant, use_safetensors=choice) for choice in (None, True, False)]
    assert found[0] is not None and sum(model is not None for model in found) == 2
    for model in found:
        if model is not None:
            assert model.config == new.config
            assert_same_weights(model, new)
    assert all((tmp_path / name).read_bytes() == b"mine" for name in KEPT)


@pytest.mark.parametrize("now", ["safetensors", "pickle"])
@pytest.mark.parametrize("before", FORMATS)
def test_diffusers_loads_the_new_model(
    before: str, now: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    old.save_pretrained(tmp_path, **FORMATS[before])
    new.save_pretrained(tmp_path, **FORMATS[now])
    model = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert model.config.scaling_factor == new.config.scaling_factor
    assert_same_weights(load_vae(tmp_path), new)
    assert all(bool((weight == new.state_dict()[key]).all()) for key, weight in model.state_dict().items())


def test_variants_stay_beside_each_other(old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    old.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path, variant="ema", **PICKLE)
    old.save_pretrained(tmp_path, **PICKLE)
    assert_same_weights(load_vae(tmp_path), old)
    assert_same_weights(AutoencoderKL.from_pretrained(tmp_path, variant="ema"), new)


@pytest.mark.parametrize("now", ["safetensors", "pickle"])
@pytest.mark.parametrize("before", ["shards", "shards of pickles"])
def test_weights_without_a_config_stay(
    before: str, now: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
) -> None:
    old.save_pretrained(tmp_path / "vae", **FORMATS[before])
    (tmp_path / "vae" / "config.json").unlink()
    files = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    with pytest.raises(CheckpointError, match=rf"has {STEM}.* and no config.json.*Give another folder"):
        new.save_pretrained(tmp_path / "vae", **FORMATS[now])
    assert {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()} == files
    shutil.rmtree(tmp_path / "vae")


def test_weights_of_flax_go_too(old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    old.save_pretrained(tmp_path)
    (tmp_path / "diffusion_flax_model.msgpack").write_bytes(b"old")
    new.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", f"{STEM}.safetensors"]


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_pickles_of_another_save_that_stay(
    other: bool, stays: bool, variant: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They do not say what they were saved with, so that the new config would be taken for theirs."""
    first = make({**SMALL, "scaling_factor": 0.5 if other else 0.18215})
    first.save_pretrained(tmp_path, variant="old" if stays else variant, safe_serialization=False)
    make({**SMALL, "scaling_factor": 0.18215}).save_pretrained(tmp_path, variant=variant)
    said = "diffusion_pytorch_model.old.bin of an earlier save, with scaling_factor 0.5 and not 0.18215"
    assert (said in caplog.text) == (other and stays)
    assert ("earlier save" in caplog.text) == (other and stays)
