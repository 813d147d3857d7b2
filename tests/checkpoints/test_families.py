"""What is known of the published families, against the numbers in the configs that they were published with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import assert_same_weights, refusal, write
from given.models import fields, make

from vae_core import AutoencoderKLConfig, load_vae
from vae_core.checkpoints.families import FAMILIES, family_of_config, match_family

WIDTHS = (128, 256, 512, 512)
PLAYGROUND = {
    "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
    "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
}
# Family -> scaling_factor, shift_factor, sample_size, latent_channels, block_out_channels, other fields.
PUBLISHED: dict[str, tuple[float, float | None, int, int, tuple[int, ...], dict[str, Any]]] = {
    "SD 1.x": (0.18215, None, 512, 4, WIDTHS, {}),
    "SD 2.x": (0.18215, None, 768, 4, WIDTHS, {}),
    "Playground 2.5": (0.5, None, 1024, 4, WIDTHS, PLAYGROUND),
    "SDXL": (0.13025, None, 1024, 4, WIDTHS, {}),
    "SD x4 upscaler": (0.08333, None, 256, 4, (128, 256, 512), {}),
    "FLUX.1": (0.3611, 0.1159, 1024, 16, WIDTHS, {"use_quant_conv": False, "use_post_quant_conv": False}),
    "SD3": (1.5305, 0.0609, 1024, 16, WIDTHS, {"use_quant_conv": False, "use_post_quant_conv": False}),
    "FLUX.2": (1.0, None, 1024, 32, WIDTHS, {"patch_size": (2, 2)}),
}


def published(name: str) -> dict[str, Any]:
    scale, shift, size, channels, widths, others = PUBLISHED[name]
    return {
        **{"scaling_factor": scale, "shift_factor": shift, "sample_size": size, "latent_channels": channels},
        **{"block_out_channels": widths, "layers_per_block": 2, **others},
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }


def test_every_family_is_here() -> None:
    assert [family.name for family in FAMILIES] == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_its_familys(name: str) -> None:
    config = AutoencoderKLConfig(**published(name))
    family = family_of_config(config)
    assert family is not None and family.name == name
    assert family.block_out_channels == config.block_out_channels
    assert {field: config[field] for field in family.fields} == dict(family.fields)
    assert family.scaling == {field: config[field] for field in family.scaling}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_that_names_its_family_is_given_its_numbers(name: str) -> None:
    """By the shapes alone and what the file says: the scale is not among them."""
    scaling = ("scaling_factor", "shift_factor", "sample_size", "latents_mean", "latents_std")
    values = published(name)
    shown = AutoencoderKLConfig(**{field: value for field, value in values.items() if field not in scaling})
    for architecture in next(family.architectures for family in FAMILIES if family.name == name):
        match = match_family(shown, metadata={"modelspec.architecture": f"{architecture}/vae"})
        assert match.is_certain and match.family is not None and match.family.name == name
        assert shown.replace(**match.family.fields) == AutoencoderKLConfig(**values)


@pytest.mark.parametrize(
    "change",
    [
        {"latent_channels": 8},
        {"block_out_channels": (128, 256, 512, 512, 512)},
        {"use_quant_conv": False},
        {"use_post_quant_conv": False},
        {"patch_size": (2, 2)},
    ],
)
def test_shapes_of_no_family(change: dict[str, Any]) -> None:
    values = {**published("SD 1.x"), **change}
    count = len(values["block_out_channels"])
    values |= {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}
    config = AutoencoderKLConfig(**values)
    assert family_of_config(config) is None
    match = match_family(config, siblings=["cond_stage_model.transformer.x"])
    assert match.family is None and match.origin == "default" and not match.is_certain and match.others == ()


def test_another_scale_is_of_no_family() -> None:
    for change in ({"scaling_factor": 0.7}, {"shift_factor": 0.7}):
        assert family_of_config(AutoencoderKLConfig(**{**published("SDXL"), **change})) is None


def test_of_another_size_the_first_family_with_its_scale_is_meant() -> None:
    for size, name in ((512, "SD 1.x"), (768, "SD 2.x"), (1024, "SD 1.x")):
        family = family_of_config(AutoencoderKLConfig(**{**published("SD 1.x"), "sample_size": size}))
        assert family is not None and family.name == name


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (2, 1), (3, 1), (5, 1), (3, 3)])
def test_patches_are_found_by_their_number_of_pixels(patch: tuple[int, int], tmp_path: Path) -> None:
    """A square if it can be one, else a row."""
    made = make(fields(32, patch_size=patch))
    loaded = load_vae(write(made.state_dict(), tmp_path / "vae.safetensors"))
    assert loaded.config.patch_size == patch
    assert_same_weights(loaded, made)
    few = {**made.state_dict(), **{f"bn.running_{name}": torch.ones(3) for name in ("mean", "var")}}
    assert "bn.running_mean is 3 where 4 is needed" in refusal(write(few, tmp_path / "few.safetensors"))
