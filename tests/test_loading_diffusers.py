"""diffusers as judge of what is written, and as source of what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from given.files import assert_same_weights
from given.models import MODELS, make

from vae_core import AutoencoderKL, save_single_file

diffusers = pytest.importorskip("diffusers")


def theirs(vae: AutoencoderKL):
    return diffusers.AutoencoderKLFlux2 if vae.config.has_batch_norm else diffusers.AutoencoderKL


DIFFUSERS_MODELS = {name: config for name, config in MODELS.items() if "FLUX.2" in name or "one quant" not in name}


@pytest.mark.parametrize("model", DIFFUSERS_MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": "300KB"}, {"safe_serialization": False}, {"variant": "fp16"}], ids=str
)
@pytest.mark.thorough
def test_diffusers_loads_our_folder(model: str, options: dict, tmp_path: Path) -> None:
    vae = make(MODELS[model])
    vae.save_pretrained(tmp_path, **options)
    other, report = theirs(vae).from_pretrained(tmp_path, variant=options.get("variant"), output_loading_info=True)
    assert not any(report.values()), report
    assert_same_weights(vae, other)
    for field in vae.config.to_dict().keys() - {"_class_name"}:
        ours = vae.config[field]
        assert other.config[field] == (list(ours) if isinstance(ours, tuple) else ours), field


@pytest.mark.parametrize("model", DIFFUSERS_MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": "300KB"}, {"safe_serialization": False}, {"variant": "fp16"}], ids=str
)
def test_we_load_diffusers_folder(model: str, options: dict, tmp_path: Path) -> None:
    vae = make(MODELS[model])
    values = vae.config.to_dict()
    values.pop("_class_name")
    other = theirs(vae)(**values)
    other.load_state_dict(vae.state_dict())
    other.save_pretrained(tmp_path, **options)
    loaded = AutoencoderKL.from_pretrained(tmp_path, variant=options.get("variant"))
    assert_same_weights(loaded, vae)
    assert loaded.config == vae.config


@pytest.mark.parametrize("model", [n for n in DIFFUSERS_MODELS if "FLUX.2" not in n and "levels" not in n])
def test_diffusers_loads_our_single_file(model: str, tmp_path: Path) -> None:
    """Its FLUX.2 class has no LDM keys, and its converter leaves out attentions in the levels."""
    vae = make(MODELS[model])
    save_single_file(vae, tmp_path / "vae.safetensors")
    vae.save_pretrained(tmp_path / "config")
    other = diffusers.AutoencoderKL.from_single_file(
        str(tmp_path / "vae.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    assert_same_weights(vae, other)
