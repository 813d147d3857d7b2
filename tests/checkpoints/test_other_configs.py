"""A folder whose config.json is of a model with other weights: the fields that differ are named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from given.files import write
from given.hostile import SECONDS
from given.models import FLUX2_SMALL_DECODER, fields, make

from vae_core import AutoencoderKL, AutoencoderKLConfig, CheckpointError, VAEError, inspect_vae, load_vae
from vae_core.checkpoints.json_file import json_object
from vae_core.config import GUESSED_KEY

BASE = fields(32, 64, layers_per_block=1)
ATTENTION = ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "more layers": ({"layers_per_block": 3}, "layers_per_block 3 and not 1"),
    "no quant conv": ({"use_quant_conv": False}, "use_quant_conv False and not True"),
    "no attention": ({"mid_block_add_attention": False}, "mid_block_add_attention False and not True"),
    "attention in a level": ({"up_block_types": ATTENTION}, r"up_block_types \('AttnUp.* and not \('UpDec"),
    "packed": ({"patch_size": [2, 2]}, r"patch_size \(2, 2\) and not None"),
    "more levels": (fields(32, 64, 64), r"block_out_channels \(32, 64, 64\) and not \(32, 64\)"),
    "fewer levels": (fields(32), r"block_out_channels \(32,\) and not \(32, 64\)"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(BASE).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", WRONG)
def test_the_fields_that_differ_are_named(kind: str, folder: Path) -> None:
    change, says = WRONG[kind]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=rf"Its config has .*{says}.*Use the config that belongs") as error:
        load_vae(folder)
    assert inspect_vae(folder).problem == str(error.value)
    assert "no AutoencoderKL has" not in str(error.value) and "download it again" not in str(error.value)


@pytest.mark.parametrize("model", [BASE, FLUX2_SMALL_DECODER])
def test_a_file_that_lacks_weights_is_not_blamed_on_its_config(model: dict[str, Any], tmp_path: Path) -> None:
    vae = make(model)
    vae.save_pretrained(tmp_path)
    weights = {
        key: weight for key, weight in vae.state_dict().items() if key != "decoder.mid_block.resnets.0.conv2.bias"
    }
    write(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*The file is incomplete"):
        load_vae(tmp_path)


@pytest.mark.parametrize(
    "model",
    [BASE, {**BASE, "decoder_block_out_channels": (32, 64)}, FLUX2_SMALL_DECODER],
    ids=["no widths of its own", "the encoder's", "others"],
)
@pytest.mark.parametrize("guessed", [False, True])
def test_a_config_beside_a_file_is_its_own_whatever_it_says_of_the_decoder(
    model: dict[str, Any], guessed: bool, tmp_path: Path
) -> None:
    vae = make(model)
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    marks = {GUESSED_KEY: ["scaling_factor"]} if guessed else {}
    (tmp_path / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.7, **marks}))
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    changed = inspect_vae(path)
    assert changed.remarks[0].startswith("config.json has scaling_factor 0.7 and not")
    bare = inspect_vae(write(vae.state_dict(), path))
    assert not [remark for remark in bare.remarks if "so it was not used" in remark]
    for info in (changed, bare, inspect_vae(tmp_path)):
        assert info.problem is None and info.config is not None and info.config.scaling_factor == 0.7
        assert info.family_is_guess is guessed


@pytest.mark.parametrize("flag", ["force_upcast", "use_quant_conv"])
@pytest.mark.parametrize("value", [0, 1])
def test_flags_of_zero_and_one(flag: str, value: int) -> None:
    config = AutoencoderKLConfig.from_dict({flag: value})
    assert config[flag] is bool(value)
    assert json.loads(AutoencoderKL.from_config(config).to_json_string())[flag] is bool(value)


@pytest.mark.parametrize(
    ("content", "kind"), [("[]", "a list"), ("null", "null"), ("3", "a number"), ("1.5", "a number"), ('""', "a text")]
)
def test_json_that_is_not_an_object_is_named(content: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"it is {kind}, not an object"):
        json_object(tmp_path / "config.json")


@pytest.mark.parametrize("size", [1_000_000, 1_000_001])
def test_how_large_json_may_be(size: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}'.ljust(size))
    if size == 1_000_000:
        assert json_object(tmp_path / "config.json") == {"a": 1}
    else:
        with pytest.raises(ValueError, match="it has 1000001 bytes; at most 1000000 are allowed"):
            json_object(tmp_path / "config.json")


@pytest.mark.parametrize("path", ["x" * 5000, f"{'y' * 300}.safetensors", "a\0b", Path("/tmp") / ("z" * 300)])
@pytest.mark.parametrize("call", [load_vae, inspect_vae, AutoencoderKL.from_single_file, AutoencoderKL.from_pretrained])
def test_a_path_that_the_system_cannot_look_for(call: Any, path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^the path .* is not a valid one: .*Check it\.$"):
        call(path)


def test_a_state_dict_for_a_path_says_where_it_goes() -> None:
    with pytest.raises(CheckpointError, match="from_single_file takes a state dict"):
        load_vae(make(BASE).state_dict())  # type: ignore[arg-type]


# A config that no model can have: refused soon, in the same words by both functions.
CONFIGS = {
    "a billion layers": {"layers_per_block": 10**9},
    "ten million levels": {"block_out_channels": [32] * 100_000},
    "no groups": {"norm_num_groups": 0},
    "negative groups": {"norm_num_groups": -32},
    "a width of a billion": {"block_out_channels": [32 * 10**9]},
    "a patch of a billion": {"patch_size": [10**9, 10**9]},
    "text for widths": {"block_out_channels": "abc"},
    "widths of nothing": {"block_out_channels": []},
    "a list for a number": {"latent_channels": [4]},
    "an object for a number": {"in_channels": {}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_cannot_be(name: str, tmp_path: Path) -> None:
    make(fields(32)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**values, **CONFIGS[name]}), encoding="utf-8")
    start = time.process_time()
    with pytest.raises(VAEError) as error:
        load_vae(tmp_path)
    assert time.process_time() - start < SECONDS
    try:
        said = inspect_vae(tmp_path).problem
    except VAEError as same:
        said = str(same)
    assert said == str(error.value)
