"""JSON beside weights, and the names and shapes of whole models."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from given.files import ldm
from given.models import fields, make
from hypothesis import given
from hypothesis import strategies as st

from fuzz.files import opened
from fuzz.limits import folder, limits, put
from vae_core import VAEError, inspect_vae


def problem_of(path: Path, size: int) -> str | None:
    """Why a checkpoint cannot be loaded, in words; None if it can."""
    with limits(size):
        try:
            return inspect_vae(path).problem
        except VAEError as error:
            return str(error)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 70), st.floats(), st.text(max_size=4), st.just(10**18)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@cache
def vae_folder() -> Path:
    made = folder() / "vae"
    make(fields(32)).save_pretrained(made)
    return made


@given(data=st.data())
def configs(data: st.DataObject) -> None:
    values = dict(make_config())
    for name in data.draw(st.lists(st.sampled_from([*values, "patch_size", "what"]), min_size=1, max_size=2)):
        values[name] = data.draw(VALUES)
    raw = bytearray(json.dumps(values).encode())
    for _ in range(data.draw(st.integers(0, 1))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'{}[]",:0-.eN \\\xff\x00'))
    vae_folder()
    config(put("vae/config.json", raw))


def config(path: Path) -> None:
    problem = problem_of(path.parent, path.stat().st_size)
    assert problem is None or len(problem) < 2000


def make_config() -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        **fields(32),
        "latent_channels": 4,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "scaling_factor": 0.5,
        "shift_factor": None,
        "sample_size": 32,
        "latents_mean": None,
        "layers_per_block": 1,
    }


@given(data=st.data())
def indexes(data: st.DataObject) -> None:
    files = ["diffusion_pytorch_model.safetensors", "i.index.json", "config.json", "../x", "", "\ud800", "a\0b", "none"]
    names = st.sampled_from(["decoder.conv_in.weight", "encoder.conv_in.weight", "x", ""])
    weight_map = data.draw(
        st.one_of(st.dictionaries(names, st.one_of(st.sampled_from(files), VALUES), max_size=3), VALUES)
    )
    content = data.draw(st.sampled_from([{"weight_map": weight_map}, weight_map, [weight_map]]))
    raw = bytearray(json.dumps(content).encode())
    for _ in range(data.draw(st.integers(0, 1))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'{}[]",:0-.eN \\\xff\x00'))
    vae_folder()
    opened(put("vae/i.index.json", raw))


# Names and shapes of whole models.

_ONCE = make(fields(32))
NAMES = sorted(ldm(_ONCE))
PARTS = [
    "encoder",
    "decoder",
    "down",
    "up",
    "down_blocks",
    "0",
    "1",
    "999",
    "block",
    "attn",
    "q",
    "weight",
    "bias",
    "module",
]


@given(data=st.data())
def models(data: st.DataObject) -> None:
    """A VAE's header with names and shapes changed, without numbers: planned, or refused in words."""
    entries: dict[str, Any] = {}
    shapes = {name: tuple(weight.shape) for name, weight in ldm(_ONCE).items()}
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(NAMES))
        parts = name.split(".")
        parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(st.sampled_from(PARTS))
        shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 32, 64, 33]), max_size=5))
        shapes[data.draw(st.sampled_from([name, ".".join(parts)]))] = tuple(shape)
    end = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * 4
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(entries).encode()
    path = folder() / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    problem = problem_of(path, path.stat().st_size)
    assert problem is None or len(problem) < 1000
