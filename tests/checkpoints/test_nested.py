"""Checkpoints of training scripts: the model's weights in whatever dictionary, and files without any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from given.files import assert_same_weights, ldm
from given.models import fields, make
from safetensors.torch import save_file
from torch import Tensor

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae
from vae_core.checkpoints.nested import find_tensors
from vae_core.checkpoints.open_file import open_tensor_file

Weights = dict[str, Tensor]
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}


def part(weights: Weights, name: str) -> Weights:
    return {key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")}


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{key}": weight for key, weight in weights.items()}


HALVES = ("encoder", "decoder", "quant_conv", "post_quant_conv")
# Where the weights w are, beside those of another model o, which are not to be taken.
SAVED: dict[str, Callable[[Weights, Weights], Any]] = {
    "plain": lambda w, o: w,
    "a trainer's": lambda w, o: {"model_state_dict": w, "optimizer_state_dict": {}, "epoch": 3},
    "Lightning's": lambda w, o: {"state_dict": prefixed(w, "first_stage_model."), "optimizer_states": [OPTIMIZER]},
    "DeepSpeed's": lambda w, o: {"module": prefixed(w, "module."), "ds_version": "0.14", "buffer_names": []},
    "a moving average": lambda w, o: {
        "ema_model_state_dict": prefixed(w, "ema_model.") | {"initted": torch.tensor(True)}
    },
    "beside a moving average": lambda w, o: {"ema": o, "model": w, "opt": OPTIMIZER},
    "the average first": lambda w, o: {"ema_model_state_dict": prefixed(o, "ema_model."), "model_state_dict": w},
    "vae": lambda w, o: {"vae": w, "unet": {"time_embed.0.weight": torch.zeros(2)}},
    "two levels down": lambda w, o: {"state": {"vae": {"params": w}}},
    "any name": lambda w, o: {"what": w, "step": 5},
    "halves apart": lambda w, o: {name: part(w, name) for name in HALVES},
    "halves apart, deeper": lambda w, o: {"state_dict": {name: part(w, name) for name in HALVES}},
    "a discriminator beside": lambda w, o: {"vae": w, "disc": {"blocks.0.weight": torch.zeros(2)}},
    "compiled and parallel": lambda w, o: {"model": prefixed(w, "_orig_mod.module.")},
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("names", ["LDM", "diffusers"])
def test_weights_are_found_in_whatever_dictionary(name: str, names: str, tmp_path: Path) -> None:
    vae, other = make(fields(32)), make(fields(32), seed=1)
    weights, others = (ldm(m) if names == "LDM" else dict(m.state_dict()) for m in (vae, other))
    torch.save(SAVED[name](weights, others), tmp_path / "a.pt")
    assert_same_weights(load_vae(tmp_path / "a.pt"), vae)
    assert_same_weights(AutoencoderKL.from_single_file(tmp_path / "a.pt"), vae)
    several = [remark for remark in inspect_vae(tmp_path / "a.pt").remarks if "several models" in remark]
    assert len(several) == (1 if name in ("beside a moving average", "the average first") else 0)


WITHOUT: dict[str, tuple[Any, str]] = {
    "an optimizer": (OPTIMIZER, "the state of an optimizer. Give the file of the model"),
    "an optimizer, deeper": ({"optimizer": OPTIMIZER}, "the state of an optimizer"),
    "SGD": ({"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []}, "the state of an optimizer"),
    "an average without names": ({"shadow_params": [torch.zeros(3)], "decay": 0.9}, "a moving average without names"),
    "a LoRA": ({"state_dict": {"a.lora_A.weight": torch.zeros(2, 2)}}, "a LoRA"),
    "numbers": ({"epoch": 3, "loss": 0.1}, "has no tensors that belong to a model"),
    "a tensor": (torch.zeros(3), "is a single tensor, not a state dict"),
    "text": ("hello", "is a str, not a state dict"),
}


@pytest.mark.parametrize("kind", ["ours", "diffusers'", "its decoder", "in a checkpoint"])
def test_a_whole_model_is_named_and_not_called_dangerous(kind: str, tmp_path: Path) -> None:
    vae = make(fields(32))
    saved = {
        "ours": vae,
        "diffusers'": diffusers.AutoencoderKL(**vae.config),
        "its decoder": vae.decoder,
        "in a checkpoint": {"model": vae, "epoch": 3},
    }
    torch.save(saved[kind], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt has a whole model in it.*Save its state dict") as error:
        load_vae(tmp_path / "a.pt")
    assert inspect_vae(tmp_path / "a.pt").problem == str(error.value)
    assert "trust" not in str(error.value) and "dangerous" not in str(error.value)


@pytest.mark.parametrize("name", WITHOUT)
def test_files_without_a_model_say_what_they_are(name: str, tmp_path: Path) -> None:
    content, message = WITHOUT[name]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message) as error:
        load_vae(tmp_path / "a.pt")
    try:
        assert inspect_vae(tmp_path / "a.pt").problem == str(error.value)
    except CheckpointError as same:
        assert str(same) == str(error.value)


def test_dictionaries_that_are_in_many_others_are_looked_at_so_often_and_no_more() -> None:
    numbers = dict.fromkeys(map(str, range(1000)), 1)
    assert find_tensors({str(i): {"a": numbers} for i in range(240)}).tensors == {}
    with pytest.raises(ValueError, match="nested more deeply than those of any checkpoint"):
        find_tensors({str(i): {"a": numbers} for i in range(500)})
    tensors = dict.fromkeys(map(str, range(600)), torch.zeros(1))
    with pytest.raises(ValueError, match="or too many names for any model"):
        find_tensors({str(i): {"a": tensors} for i in range(600)})


@pytest.mark.parametrize("length", [1000, 1001])
def test_how_long_a_name_may_be(length: int, tmp_path: Path) -> None:
    weight = {"x" * (length - 4): torch.zeros(1)}
    torch.save({"abc": weight}, tmp_path / "a.pt")
    save_file({"abc." + "".join(weight): torch.zeros(1)}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        if length == 1000:
            assert [len(name) for name in open_tensor_file(path).tensors] == [length]
        else:
            with pytest.raises(CheckpointError, match=r"names of (up to )?1001 characters"):
                open_tensor_file(path)


def test_arrays_of_a_dictionary_in_memory() -> None:
    kinds = {"f4": True, "f2": True, "i8": True, "u1": True, "?": True, ">f4": False, "c8": False, "U3": False}
    found = find_tensors({kind: np.ones(3).astype(kind) for kind in kinds} | {"O": np.array([None, 1], object)})
    assert list(found.tensors) == [kind for kind, is_read in kinds.items() if is_read]
    read_only = np.ones(3)
    read_only.flags.writeable = False
    [tensor] = find_tensors({"a": read_only}).tensors.values()
    tensor += 1  # type: ignore[operator]
    assert read_only.tolist() == [1, 1, 1]
