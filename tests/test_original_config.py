"""`from_single_file(original_config=...)` beside diffusers, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from given.files import ldm
from given.models import fields, make
from torch import Tensor

from vae_core import AutoencoderKL, ConfigError
from vae_core.checkpoints import single_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("yaml")

DDCONFIG: dict[str, Any] = {
    **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3},
    **{"ch": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
}


def original(ddconfig: dict[str, Any] = DDCONFIG, **params: Any) -> dict[str, Any]:
    """LDM's configuration of a whole model, as in v1-inference.yaml and sd_xl_base.yaml."""
    first_stage = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": ddconfig}}
    return {"model": {"target": "ldm.x", "params": {**params, "first_stage_config": first_stage}}}


CONFIGS = {
    "SD 1": original(scale_factor=0.18215, image_size=64),
    "SDXL": original(scale_factor=0.13025, disable_first_stage_autocast=True),
    "x4 upscaler": original(scale_factor=0.08333),
    "no scale": original(),
}


def whole(*names: str, **others: Tensor) -> dict[str, Tensor]:
    """A full checkpoint of a VAE that fits DDCONFIG, with a few tensors of its other models."""
    beside = {name: torch.zeros(8, 1024) for name in names}
    return {**ldm(make(fields(32, 64, 64, 64, layers_per_block=1)), "first_stage_model."), **beside, **others}


TIME, XL = "model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.transformer.resblocks"
FILES = {
    "the VAE alone": ldm(make(fields(32, 64, 64, 64, layers_per_block=1))),
    "SD 1": whole("cond_stage_model.transformer.text_model.embeddings.position_ids"),
    "SD 2": whole(
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", "cond_stage_model.model.x"
    ),
    "SD 1 inpaint": whole("cond_stage_model.transformer.x", **{TIME: torch.zeros(8, 9, 3, 3)}),
    "SDXL": whole(f"{XL}.9.mlp.c_proj.bias"),
    "SDXL refiner": whole("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"),
    "Playground 2.5": whole(
        edm_mean=torch.tensor([-1.6574, 1.886, -1.383, 2.5155]), edm_std=torch.tensor([8.4927, 5.9022, 6.5498, 5.2299])
    ),
}
# An SDXL file has SDXL's scale where its configuration says none. diffusers takes 0.18215.
DIFFERENT = {("SDXL", "no scale"), ("SDXL refiner", "no scale")}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("file", FILES)
def test_every_field_is_as_diffusers_has_it(file: str, config: str) -> None:
    theirs = diffusers.AutoencoderKL.from_single_file(dict(FILES[file]), original_config=CONFIGS[config]).config
    ours = AutoencoderKL.from_single_file(FILES[file], original_config=CONFIGS[config])
    different = {
        name
        for name, value in theirs.items()
        if not name.startswith("_")
        and value != (list(ours.config[name]) if isinstance(ours.config[name], tuple) else ours.config[name])
        and not (isinstance(value, Tensor) and torch.equal(value, torch.tensor(ours.config[name])))
    }
    if (file, config) in DIFFERENT:
        assert different == {"scaling_factor"} and ours.config.scaling_factor == 0.13025
    else:
        assert not different
    if config != "no scale":
        assert not ours.guesses.keys() - {"sample_size"}  # nothing else that a save would have to mark


def test_a_model_of_no_family_and_a_configuration_of_the_vae_alone(tmp_path: Path) -> None:
    vae = make(fields(32, 64, layers_per_block=1))
    ddconfig = {**DDCONFIG, "ch_mult": [1, 2]}
    theirs = diffusers.AutoencoderKL.from_single_file(ldm(vae), original_config=original(ddconfig, scale_factor=0.3))
    for given in (
        original(ddconfig, scale_factor=0.3),
        {"model": {"params": {"scale_factor": 0.3, "ddconfig": ddconfig}}},
    ):
        ours = AutoencoderKL.from_single_file(ldm(vae), original_config=given)
        for name in ("sample_size", "scaling_factor", "norm_num_groups", "force_upcast"):
            assert ours.config[name] == theirs.config[name], name
        assert not ours.guesses
    assert AutoencoderKL.from_single_file(ldm(vae), original_config=given, sample_size=64).config.sample_size == 64


def test_one_of_another_model_is_refused() -> None:
    for change in ({"ch": 128}, {"ch_mult": [1, 2]}, {"z_channels": 16}, {"num_res_blocks": 2}, {"in_channels": 4}):
        wrong = original({**DDCONFIG, **change}, scale_factor=0.13025)
        with pytest.raises(ConfigError, match=r"original_config has \w+ .* and the weights have .*another model"):
            AutoencoderKL.from_single_file(FILES["SD 1"], original_config=wrong)


def test_what_is_not_a_configuration_of_ldm_is_said() -> None:
    for wrong, remedy in (({"block_out_channels": [32]}, "Pass it as config"), ({"model": 1}, "Pass scaling_factor")):
        with pytest.raises(ConfigError, match=rf"no model\.params\. {remedy}"):
            AutoencoderKL.from_single_file(FILES["SD 1"], original_config=wrong)
    with pytest.raises(ConfigError, match=r"config and original_config are both given.*Pass one"):
        AutoencoderKL.from_single_file(FILES["SD 1"], original_config=CONFIGS["SD 1"], config={})


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_file_is_planned_once(file: str, caplog: pytest.LogCaptureFixture) -> None:
    """And what the configuration says is not a guess any more."""
    with patch.object(single_file, "match_keys", wraps=single_file.match_keys) as planned:
        AutoencoderKL.from_single_file(FILES[file], original_config=original(scale_factor=0.25))
    assert planned.call_count == 1
    assert not [each for each in caplog.messages if "scaling_factor" in each]


SCALED = "model: {params: {scale_factor: %s}}\n"
# A YAML file's content -> the scale that it gives, or what is said of it.
YAML: dict[str, tuple[str, float | str]] = {
    "a number": (SCALED % "0.25", 0.25),
    "a number that YAML takes for a text": (SCALED % "25e-2", 0.25),
    "a text": (SCALED % "much", "scale_factor 'much', which is not a number"),
    "a list": ("- 1\n", "is not a configuration of LDM"),
    "nothing": ("", "is not a configuration of LDM"),
    "no YAML": ("a: [", "cannot be read"),
    "as long as one may be": ((SCALED % "0.25").ljust(1_000_000), 0.25),
    "too long": ((SCALED % "0.25").ljust(1_000_001), "at most 1000000 are allowed"),
}


@pytest.mark.parametrize("name", YAML)
def test_files_of_a_configuration(name: str, tmp_path: Path) -> None:
    content, says = YAML[name]
    path = tmp_path / "a.yaml"
    path.write_text(content, encoding="utf-8")
    if isinstance(says, float):
        assert AutoencoderKL.from_single_file(FILES["SD 1"], original_config=path).config.scaling_factor == says
    else:
        assert isinstance(says, str)
        with pytest.raises(ConfigError, match=says):
            AutoencoderKL.from_single_file(FILES["SD 1"], original_config=path)


@pytest.mark.parametrize(
    "odd",
    [
        {"ch": "a"},
        {"ch": 128.0},
        {"ch_mult": "abcd"},
        {"ch_mult": [1, 2, "2"]},
        {"ch_mult": {1: 1}},
        {"ch_mult": 4},
        {"z_channels": "16"},
        {"out_ch": None},
    ],
    ids=str,
)
def test_what_is_no_number_there_is_passed_over(odd: dict[str, Any]) -> None:
    given = original({**DDCONFIG, **odd}, scale_factor=0.25)
    assert AutoencoderKL.from_single_file(FILES["SD 1"], original_config=given).config.scaling_factor == 0.25


def test_groups_that_do_not_divide_the_widths_stay_a_guess() -> None:
    """LDM has 32 always; a model of 48 channels is not LDM's."""
    weights = ldm(make(fields(48, 96, norm_num_groups=16)))
    vae = AutoencoderKL.from_single_file(weights, original_config={"model": {"params": {"scale_factor": 0.3}}})
    assert vae.config.norm_num_groups == 16 and "norm_num_groups" in vae.guesses
