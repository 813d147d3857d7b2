"""Saving a model that others have compiled, wrapped or adapted: plain weights, or what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import assert_same_weights, ldm
from given.models import fields, make
from safetensors.torch import load_file
from torch import nn

from vae_core import AutoencoderKL, CheckpointError, load_vae, save_single_file


class Around(nn.Module):
    """A wrapper as DataParallel is one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled(module: Any) -> Any:
    return torch.compile(module, backend="eager")


def exchange(path: str, wrap: Callable[[Any], Any]) -> Callable[[AutoencoderKL], None]:
    def change(vae: AutoencoderKL) -> None:
        parent, _, name = path.rpartition(".")
        holder: Any = vae.get_submodule(parent)
        setattr(holder, name, wrap(getattr(holder, name)))

    return change


WRAPPED: dict[str, Callable[[AutoencoderKL], None]] = {
    "a compiled decoder": exchange("decoder", compiled),
    "a compiled encoder": exchange("encoder", compiled),
    "a compiled block": exchange("decoder.mid_block", compiled),
    "a compiled layer": exchange("decoder.conv_out", compiled),
    "data parallel": exchange("decoder", Around),
    "data parallel of compiled": exchange("encoder", lambda module: Around(compiled(module))),
    "fused projections": lambda vae: vae.fuse_qkv_projections(),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_save_plain_weights(name: str, tmp_path: Path) -> None:
    vae, plain = make(fields(32)), make(fields(32))
    WRAPPED[name](vae)
    save_single_file(vae, tmp_path / "vae.safetensors")
    vae.save_pretrained(tmp_path / "folder")
    vae.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert load_file(tmp_path / "vae.safetensors").keys() == ldm(plain).keys()
    for path in ("vae.safetensors", "folder", "pickle"):
        assert_same_weights(load_vae(tmp_path / path), plain)


class Lora(nn.Module):
    """A layer with a LoRA, named as peft names it."""

    def __init__(self, layer: nn.Linear, merged: bool) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})
        self.merged = merged


def test_a_lora_is_saved_once_it_is_merged(tmp_path: Path) -> None:
    for merged in (False, True):
        vae = make(fields(32))
        exchange("decoder.mid_block.attentions.0.to_q", lambda layer, merged=merged: Lora(layer, merged))(vae)
        if merged:
            save_single_file(vae, tmp_path / "vae.safetensors")
            assert_same_weights(load_vae(tmp_path / "vae.safetensors"), make(fields(32)))
        else:
            with pytest.raises(CheckpointError, match=r"has a LoRA that is not merged.*Call fuse_lora\(\) first"):
                save_single_file(vae, tmp_path / "vae.safetensors")


def quantised(vae: AutoencoderKL) -> None:
    weight = vae.decoder.conv_in.weight
    vae.decoder.conv_in.weight = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)


REFUSED: dict[str, tuple[Callable[[AutoencoderKL], Any], str]] = {
    "int8": (quantised, "decoder.conv_in.weight, are quantised or packed .*Dequantise the model first"),
    "dynamic": (
        exchange("decoder.conv_in", lambda layer: nn.Identity()),
        r"2 are missing and 0 are others \(such as decoder.conv_in.weight\). Undo what was put around",
    ),
    "parametrized": (
        lambda vae: nn.utils.parametrizations.weight_norm(vae.decoder.conv_in),
        "1 are missing and 2 are others",
    ),
    "offloaded": (lambda vae: vae.decoder.to("meta"), "have no values here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_says_what_to_do(name: str, tmp_path: Path) -> None:
    vae = make(fields(32))
    change, message = REFUSED[name]
    change(vae)
    for save in (save_single_file, AutoencoderKL.save_pretrained):
        with pytest.raises(CheckpointError, match=message):
            save(vae, tmp_path / "out")
    assert not list(tmp_path.iterdir())
