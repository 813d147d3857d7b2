"""`inspect_vae(path).problem` is what `load_vae` would say, of every file that is refused, and of every other one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import ldm
from given.models import fields, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vae_core import VAEError, inspect_vae, load_vae

Weights = dict[str, Tensor]
BASE = {"LDM": ldm(make(fields(32))), "diffusers": make(fields(32)).state_dict()}


def said_by(function: Any, path: Path) -> str | None:
    """What a function says of a path: its error, or the problem that it returns."""
    try:
        result = function(path)
    except VAEError as error:
        return str(error)
    return result.problem if function is inspect_vae else None


def agree(path: Path) -> str | None:
    said = said_by(load_vae, path)
    assert said_by(inspect_vae, path) == said
    return said


def _drop(weights: Weights, name: str) -> None:
    del weights[name]


def _set(value: Any) -> Any:
    return lambda weights, name: weights.__setitem__(name, value(weights[name]))


# What may be wrong with one tensor of a file.
CHANGES: dict[str, Any] = {
    "missing": _drop,
    "renamed": lambda weights, name: weights.__setitem__(f"{name}.x", weights.pop(name)),
    "a part more": lambda weights, name: weights.__setitem__(f"{name.rpartition('.')[0]}.extra", torch.zeros(1)),
    "NaN": _set(lambda weight: torch.full_like(weight.float(), float("nan"))),
    "infinity": _set(lambda weight: torch.full_like(weight.float(), float("inf"))),
    "int8": _set(lambda weight: weight.to(torch.int8)),
    "bool": _set(lambda weight: weight.float() > 0),
    "int64": _set(lambda weight: weight.long()),
    "float64": _set(lambda weight: weight.double()),
    "8 bits": _set(lambda weight: weight.to(torch.float8_e4m3fn)),
    "flat": _set(lambda weight: weight.reshape(-1)),
    "one more dimension": _set(lambda weight: weight[None].clone()),
    "twice as wide": _set(lambda weight: torch.cat([weight, weight])),
    "empty": _set(lambda weight: weight[:0].clone()),
    "a number": _set(lambda weight: weight.reshape(-1)[0].clone()),
    "turned": _set(lambda weight: weight.permute(*range(weight.ndim - 1, -1, -1)).contiguous()),
    "a scale": lambda weights, name: weights.__setitem__(f"{name.rpartition('.')[0]}.scale_weight", torch.ones(())),
    "a wrapper": lambda weights, name: weights.__setitem__(f"module.{name}", weights.pop(name)),
    "another prefix": lambda weights, name: weights.__setitem__(f"vae.{name}", weights.pop(name)),
}


@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.thorough
def test_inspect_and_load_say_the_same_of_any_damage(data: st.DataObject, tmp_path: Path) -> None:
    weights = dict(BASE[data.draw(st.sampled_from(sorted(BASE)))])
    for _ in range(data.draw(st.integers(1, 2))):
        change = data.draw(st.sampled_from(sorted(CHANGES)))
        CHANGES[change](weights, data.draw(st.sampled_from(sorted(weights))))
    prefix = data.draw(st.sampled_from(["", "first_stage_model.", "x."]))
    path = tmp_path / "x.safetensors"
    save_file({f"{prefix}{name}": weight for name, weight in weights.items()}, path)
    agree(path)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["safetensors", "pickle", "folder"])
def test_and_in_every_format(change: str, form: str, tmp_path: Path) -> None:
    vae = make(fields(32))
    for name in ("decoder.conv_in.weight", "decoder.conv_in.bias", "encoder.mid_block.attentions.0.to_q.weight"):
        weights = dict(vae.state_dict())
        CHANGES[change](weights, name)
        path = tmp_path / {"safetensors": "x.safetensors", "pickle": "x.pt", "folder": "folder"}[form]
        if form == "folder":
            vae.save_pretrained(path)
            save_file(weights, path / "diffusion_pytorch_model.safetensors")
        else:
            save_file(weights, path) if form == "safetensors" else torch.save(weights, path)
        said = agree(path)
        harmless = {"float64", "8 bits", "a wrapper"} | (
            {"flat", "NaN", "infinity"} if name.endswith("weight") else set()
        )
        if change not in harmless | {"a number", "turned", "flat", "one more dimension", "a scale"}:
            assert said is not None


FIELDS: dict[str, list[Any]] = {
    "latent_channels": [8, 0, "4", None],
    "block_out_channels": [[64], [32, 32], [], [33]],
    "norm_num_groups": [16, 7, 0],
    "layers_per_block": [2, 10**9],
    "mid_block_add_attention": [False],
    "use_quant_conv": [False],
    "patch_size": [[2, 2], [0, 1]],
    "_class_name": ["VQModel", "AutoencoderKLFlux2"],
    "decay": [0.99],
    "act_fn": ["swish", "none"],
}


@pytest.mark.parametrize("field", FIELDS)
def test_and_of_every_config(field: str, tmp_path: Path) -> None:
    make(fields(32)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for value in FIELDS[field]:
        (tmp_path / "config.json").write_text(json.dumps({**values, field: value}), encoding="utf-8")
        agree(tmp_path)
        agree(tmp_path / "diffusion_pytorch_model.safetensors")
        agree(tmp_path / "config.json")
