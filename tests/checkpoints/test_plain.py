"""Saving a model that others have compiled, wrapped or adapted: plain weights, or what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from given.files import assert_same_weights, ldm
from given.models import fields, make
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

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


def adapted(half: str, kind: str) -> Callable[[AutoencoderKL], None]:
    """A half with an adapter of peft's in which every number is zero, so that it changes nothing when it is merged."""

    def change(vae: AutoencoderKL) -> None:
        config = getattr(peft, kind)(**{"target_modules": ["to_q", "to_v"], **ADAPTERS[kind]})
        wrapped: Any = peft.get_peft_model(getattr(vae, half), config)
        setattr(vae, half, wrapped)
        wrapped.merge_adapter()

    return change


ADAPTERS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 2, "modules_to_save": ["conv_out"]},
    "LoHaConfig": {"r": 2},
    "LoKrConfig": {"r": 2},
    "IA3Config": {"feedforward_modules": []},
}


def both_fused(vae: AutoencoderKL) -> None:
    for half in ("encoder", "decoder"):
        adapted(half, "LoraConfig")(vae)
        getattr(vae, half).unmerge_adapter()
    vae.fuse_lora()


def pruned(vae: AutoencoderKL) -> None:
    prune.identity(vae.decoder.conv_in, "weight")


def normed(norm: Callable[..., Any]) -> Callable[[AutoencoderKL], None]:
    """Every convolution of a half with a weight that is made of two others."""

    def change(vae: AutoencoderKL) -> None:
        for module in [module for module in vae.decoder.modules() if isinstance(module, nn.Conv2d)]:
            norm(module)

    return change


WRAPPED: dict[str, Callable[[AutoencoderKL], None]] = {
    "a compiled decoder": exchange("decoder", compiled),
    "a compiled encoder": exchange("encoder", compiled),
    "a compiled block": exchange("decoder.mid_block", compiled),
    "a compiled layer": exchange("decoder.conv_out", compiled),
    "data parallel": exchange("decoder", Around),
    "data parallel of compiled": exchange("encoder", lambda module: Around(compiled(module))),
    "fused projections": lambda vae: vae.fuse_qkv_projections(),
    "a half alone in a Sequential": exchange("decoder", nn.Sequential),
    "a block alone in a Sequential": exchange("decoder.mid_block", nn.Sequential),
    "an averaged half": exchange("decoder", torch.optim.swa_utils.AveragedModel),
    **{f"{kind} on a half, merged": adapted("decoder", kind) for kind in ADAPTERS},
    "LoRA on both halves, fused": both_fused,
    "pruning": pruned,
    "weight norm": normed(nn.utils.parametrizations.weight_norm),
    "the older weight norm": normed(nn.utils.weight_norm),
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
        loaded = load_vae(tmp_path / path)
        for key, weight in plain.state_dict().items():  # weight norm divides by a length, and multiplies by it
            torch.testing.assert_close(loaded.state_dict()[key], weight, rtol=1e-6, atol=1e-6 if "norm" in name else 0)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_what_runs_is_what_is_saved(norm: Any, tmp_path: Path) -> None:
    """A weight that is another than it was: in eval mode, whatever mode the model is in, which does not change it."""
    vae, z = make(fields(32)), torch.randn(1, 4, 4, 4)
    norm(vae.decoder.conv_in)
    with torch.no_grad():
        expected = vae.decode(z).sample
        vae.train()
        state = {name: weight.clone() for name, weight in vae.state_dict().items()}
        save_single_file(vae, tmp_path / "vae.safetensors")
        assert all(torch.equal(weight, state[name]) for name, weight in vae.state_dict().items())
        torch.testing.assert_close(load_vae(tmp_path / "vae.safetensors").decode(z).sample, expected)


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


class Holding(nn.Module):
    """A wrapper under a name of its own, which may compute anything."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


class Packed(nn.Module):
    """A layer whose weights are packed, under the names that GPTQ gives them."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, dtype=torch.int32))
        self.register_buffer("bias", layer.bias)


REFUSED: dict[str, tuple[Callable[[AutoencoderKL], Any], str]] = {
    "int8": (quantised, "decoder.conv_in.weight, are quantised or packed .*Dequantise the model first"),
    "dynamic": (
        exchange("decoder.conv_in", lambda layer: nn.Identity()),
        r"2 are missing and 0 are others \(such as decoder.conv_in.weight\). decoder.conv_in is of the class Identity,"
        r" which has no weight: put the VAE's own part back",
    ),
    "packed": (
        exchange("decoder.conv_in", Packed),
        "They seem to be quantised .*: undo that, or save the model that it was made from",
    ),
    "a layer after it": (
        exchange("decoder.conv_out", lambda layer: nn.Sequential(layer, nn.Tanh())),
        r"decoder.conv_out is of the class Sequential, .*put what it is around, decoder.conv_out.0, back",
    ),
    "a wrapper of one's own": (
        exchange("decoder", Holding),
        r"decoder is of the class Holding, .*put what it is around, decoder.part, back",
    ),
    "no encoder": (lambda vae: setattr(vae, "encoder", None), "the encoder was removed.*load the VAE again"),
    "no decoder": (lambda vae: delattr(vae, "decoder"), "the decoder was removed.*load the VAE again"),
    "LoRA on a half": (
        lambda vae: (adapted("decoder", "LoraConfig")(vae), vae.decoder.unmerge_adapter()),  # type: ignore[operator]
        r"a LoRA that is not merged into its weights \(decoder\.mid_block\.attentions.0.*"
        r"Call vae\.decoder\.merge_adapter\(\) first.*vae\.decoder\.save_pretrained\(\)",
    ),
    "another adapter": (
        lambda vae: (adapted("encoder", "LoKrConfig")(vae), vae.encoder.unmerge_adapter()),  # type: ignore[operator]
        r"an adapter that is not merged.*Call vae\.encoder\.merge_adapter\(\) first",
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
