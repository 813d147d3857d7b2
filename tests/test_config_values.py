"""Every field of a config.json set to every wrong kind of value: loaded where diffusers loads the same model by it, and
otherwise a sentence that names the field, the value and what is expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from given.pairs import narrow

from vae_core import AutoencoderKL, AutoencoderKLConfig, CheckpointError, ConfigError, inspect_vae, load_vae
from vae_core.config import FIELDS, FLUX2_FIELDS
from vae_core.errors import brief

VALUES: dict[str, Any] = {
    "null": None,
    "text": "abc",
    "a number as text": "4",
    "true as text": "true",
    "a list": [1],
    "an empty list": [],
    "a list of null": [None, None],
    "an object": {},
    "NaN": math.nan,
    "infinity": math.inf,
    "true": True,
    "false": False,
    "0": 0,
    "1": 1,
    "below 0": -1,
    "a whole float": 4.0,
    "a float": 0.5,
    "large": 10**30,
}
NAMES = [name for name in FIELDS if name not in FLUX2_FIELDS]
# Where diffusers' class loads and the model is wrong, or fails later in a pipeline: field -> why it is refused.
STRICTER: dict[str, str] = {
    "scaling_factor": "pipelines divide by it",
    "shift_factor": "pipelines add it",
    "latents_mean": "pipelines make a tensor of it for the latent's channels",
    "latents_std": "pipelines make a tensor of it for the latent's channels",
    "sample_size": "tiles have sides of it",
    "layers_per_block": "true is not a number of layers",
    # A text such as "false" is true in Python, and so would be the opposite of what it says.
    **dict.fromkeys(
        ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), "it is true or false"
    ),
}
# What is taken of these nevertheless, because nothing else can be meant.
TAKEN = {
    *((name, value) for name in ("shift_factor", "latents_mean", "latents_std", "force_upcast") for value in ["null"]),
    *(("sample_size", value) for value in ("1", "a list", "a whole float")),
    *(("shift_factor", value) for value in ("0", "1", "below 0", "a whole float", "a float", "large")),
    *(("scaling_factor", value) for value in ("1", "below 0", "a whole float", "a float", "large")),
}

# A number that is right by itself is one that the weights do not fit: they are named with both shapes.
SHAPES = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")


def saved(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    AutoencoderKL(**narrow(16, 32)).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def images(load: Callable[[], Any]) -> list[torch.Tensor] | None:
    """What a model makes of fixed latents and images; None if there is no model."""
    try:
        vae = load()
        with torch.no_grad():
            z, x = (torch.arange(math.prod(s)).reshape(s).sin() for s in ((1, 4, 5, 6), (1, 3, 16, 16)))
            return [vae.decode(z).sample, vae.encode(x).latent_dist.mode()]
    except Exception:
        return None


@pytest.mark.thorough
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_the_wrong_kind(name: str, value: str, tmp_path: Path) -> None:
    values, whole = saved(tmp_path), images(lambda: load_vae(tmp_path))
    changed = values[name] != VALUES[value] or type(values[name]) is not type(VALUES[value])
    (tmp_path / "config.json").write_text(json.dumps({**values, name: VALUES[value]}), encoding="utf-8")
    endless = name == "layers_per_block" and value == "large"  # diffusers makes one layer after another
    theirs = None if endless else images(lambda: diffusers.AutoencoderKL.from_pretrained(tmp_path))
    ours = images(lambda: load_vae(tmp_path))
    assert whole is not None
    is_same = theirs is not None and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(theirs, whole, strict=True))
    if not changed or (is_same and (name not in STRICTER or (name, value) in TAKEN)):
        assert ours is not None and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, whole, strict=True))
        return
    if ours is not None and theirs is not None:  # another model of the same shapes, or 1 for true
        assert name == "norm_num_groups" or type(VALUES[value]) in (int, bool)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
        return
    if ours is not None:  # where theirs fails, ours may know what is meant
        assert all(torch.equal(a, b) for a, b in zip(ours, whole, strict=True)) and type(VALUES[value]) in (int, bool)
        return
    with pytest.raises(CheckpointError) as error:
        load_vae(tmp_path)
    said = str(error.value)
    assert inspect_vae(tmp_path).problem == said
    if not (name in SHAPES and type(VALUES[value]) is int and "Use the config that belongs to these weights" in said):
        assert name in said
        shown = (VALUES[value], bool(VALUES[value]), *(VALUES[value] if isinstance(VALUES[value], list) else ()))
        assert any(text in said for text in (*map(brief, shown), "is ()", "width of", "levels", "numbers"))
    assert said.endswith(".")


def test_a_flag_that_is_null_is_false(tmp_path: Path) -> None:
    vae = AutoencoderKL(**narrow(16, 32), use_quant_conv=False, use_post_quant_conv=False)
    vae.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    changed = {**values, "use_quant_conv": None, "use_post_quant_conv": None, "force_upcast": None}
    (tmp_path / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    assert load_vae(tmp_path).quant_conv is None and load_vae(tmp_path).config.force_upcast is False


OBJECTS: dict[str, Any] = {
    "NumPy's number": np.float32(64),
    "NumPy's whole number": np.int16(64),
    "NumPy's flag": np.bool_(True),
    "NumPy's text": np.str_("silu"),
    "NumPy's date": np.datetime64("2026"),
    "an array without dimensions": np.array(64),
    "an array of objects": np.array(64, dtype=object),
    "an array": np.array([64]),
    "an array of arrays": np.array([[64]]),
    "a tensor without dimensions": torch.tensor(64),
    "a float tensor": torch.tensor(64.0),
    "a flag tensor": torch.tensor(True),
    "a complex tensor": torch.tensor(64j),
    "a parameter": torch.nn.Parameter(torch.tensor(64.0)),
    "a tensor": torch.tensor([64]),
    "a tensor without a value": torch.tensor(64.0, device="meta"),
    "a sequence without values": torch.ones(4, device="meta"),
    "a complex number": 64j,
    "bytes": b"64",
    "a set": {64},
    "an iterator": iter([64]),
    "a function": len,
    "an object": object(),
}
# Those that a number or a sequence of one is written as.
PLAIN = {
    name for name in OBJECTS if name.startswith(("NumPy's", "an array", "a tensor", "a float", "a flag", "a para"))
}


@pytest.mark.parametrize("value", OBJECTS)
@pytest.mark.parametrize("name", FIELDS)
def test_an_object_of_any_library(name: str, value: str) -> None:
    """It is taken as Python's own number or sequence, or is an error that names the field."""
    other = {"latents_mean": "latents_std", "latents_std": "latents_mean"}.get(name)
    fields = {"latent_channels": 1, **({other: (1.0,)} if other else {}), name: OBJECTS[value]}
    try:
        config = AutoencoderKLConfig(**fields)
    except ConfigError as error:
        assert name in str(error)
        return
    kept = config[name]
    items = kept if isinstance(kept, tuple) else (kept,)
    assert value in PLAIN and all(type(item) in (bool, int, float, str) for item in items)
    assert json.loads(json.dumps(config.to_dict()))[name] == (list(kept) if isinstance(kept, tuple) else kept)
    assert not isinstance(kept, tuple) or getattr(OBJECTS[value], "ndim", 1) == 1


@pytest.mark.parametrize("size", [np.array(64), np.int64(64), torch.tensor(64), torch.tensor(64.0), 64.0, 64])
def test_a_number_without_dimensions_is_a_size(size: Any) -> None:
    assert AutoencoderKLConfig(sample_size=size).sample_size == 64


@pytest.mark.parametrize("value", [2**31, 10**30, 10**400])
@pytest.mark.parametrize("name", [*SHAPES, "block_out_channels", "sample_size", "patch_size"])
def test_a_number_that_no_tensor_can_have(name: str, value: int) -> None:
    given = {"block_out_channels": (value,) * 4, "patch_size": (value, value)}.get(name, value)
    with pytest.raises(ConfigError, match=name):
        AutoencoderKL(**{name: given})
