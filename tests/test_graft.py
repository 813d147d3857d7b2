"""`from_diffusers` on models that were changed: what was done to them stays, and undoing it works on ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import diffusers
import pytest
import torch
from given.inputs import image, latent
from given.pairs import CONFIGS, randomize, theirs_of
from torch import nn
from torch.nn.utils import parametrize

from vae_core import AutoencoderKL, CheckpointError, from_diffusers
from vae_core.halves import decoder_half, encoder_half

Undo = Callable[[Any], object]  # of our model
ENGINE = (True, True)  # whether encode and decode may run by the engine


def nothing(vae: Any) -> Undo:
    return lambda ours: None


def sequential_offload(vae: Any) -> Undo:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(vae, torch.device("cpu"))
    return lambda ours: accelerate.hooks.remove_hook_from_module(ours, recurse=True)


def model_offload(vae: Any) -> Undo:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload_with_hook(vae, torch.device("cpu"))
    return lambda ours: accelerate.hooks.remove_hook_from_module(ours, recurse=True)


def dispatched(vae: Any) -> Undo:
    accelerate = pytest.importorskip("accelerate")
    accelerate.dispatch_model(vae, {"": "cpu"}, force_hooks=True)
    return lambda ours: accelerate.hooks.remove_hook_from_module(ours, recurse=True)


def hook_on_a_block_of_accelerates(vae: Any) -> Undo:
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(vae.decoder, hooks.AlignDevicesHook(torch.device("cpu"), io_same_device=True))
    return lambda ours: hooks.remove_hook_from_module(ours, recurse=True)


def layerwise_casting(vae: Any) -> Undo:
    vae.enable_layerwise_casting(torch.float16, torch.float32)
    return lambda ours: None  # it cannot be undone: diffusers says so


def group_offload(level: str) -> Callable[[Any], Undo]:
    def change(vae: Any) -> Undo:
        blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
        vae.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type=level, **blocks)
        return remove_hooks_of_diffusers

    return change


def remove_hooks_of_diffusers(ours: nn.Module) -> None:
    for module in ours.modules():
        if hasattr(module, "_diffusers_hook"):
            registry: Any = module._diffusers_hook
            for name in list(registry.hooks):
                registry.remove_hook(name, recurse=False)


def forward_hook(name: str) -> Callable[[Any], Undo]:
    def change(vae: Any) -> Undo:
        handle = vae.get_submodule(name).register_forward_hook(lambda module, args, output: output * 1.5)
        return lambda ours: handle.remove()

    return change


def pre_hook_with_kwargs(vae: Any) -> Undo:
    block = vae.decoder.mid_block
    handle = block.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 1.5,), {}), with_kwargs=True)
    return lambda ours: handle.remove()


def lora(vae: Any) -> Undo:
    peft = pytest.importorskip("peft")
    vae.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0", "conv_out", "conv1"]))
    randomize(vae, 1)
    return lambda ours: ours.unload_lora()


def circular(vae: Any) -> Undo:
    vae.decoder.conv_in.padding_mode = vae.encoder.conv_out.padding_mode = "circular"

    def undo(ours: Any) -> None:
        ours.decoder.conv_in.padding_mode = ours.encoder.conv_out.padding_mode = "zeros"

    return undo


def parametrized(vae: Any) -> Undo:
    class Larger(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 1.5

    parametrize.register_parametrization(vae.decoder.conv_in, "weight", Larger())
    return lambda ours: parametrize.remove_parametrizations(ours.decoder.conv_in, "weight", leave_parametrized=False)


def patched(name: str) -> Callable[[Any], Undo]:
    def change(vae: Any) -> Undo:
        part = vae.get_submodule(name)
        plain = part.forward
        part.forward = lambda x, *args, **kwargs: plain(x, *args, **kwargs) * 1.5

        def undo(ours: Any) -> None:
            with suppress(AttributeError):
                del ours.get_submodule(name).forward

        return undo

    return change


def compiled(vae: Any) -> Undo:
    vae.decoder = torch.compile(vae.decoder, backend="eager")
    return lambda ours: None


def compiled_in_place(vae: Any) -> Undo:
    vae.decoder.mid_block.compile(backend="eager")
    return lambda ours: None


def another_block(vae: Any) -> Undo:
    class Louder(nn.Module):
        def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
            return x * 1.5

    vae.decoder.mid_block = Louder()
    return lambda ours: None


def more_parts(vae: Any) -> Undo:
    vae.discriminator = nn.Conv2d(3, 1, 1)
    vae.register_buffer("steps", torch.zeros(1))
    vae.decoder.extra = nn.Linear(2, 2)
    return lambda ours: None


def dropout(vae: Any) -> Undo:
    vae.decoder.mid_block.resnets[0].dropout = nn.Dropout(0.5).eval()
    return lambda ours: None


def dropped_and_fused(vae: Any) -> Undo:
    vae.fuse_qkv_projections()
    return lambda ours: ours.unfuse_qkv_projections()


# What was done -> whether the engine may run (encode, decode) with it, and after it was undone on ours.
SITUATIONS: dict[str, tuple[Callable[[Any], Undo], tuple[bool, bool], tuple[bool, bool]]] = {
    "nothing": (nothing, ENGINE, ENGINE),
    "accelerate's offloading of each layer": (sequential_offload, (False, False), ENGINE),
    "accelerate's offloading of the model": (model_offload, ENGINE, ENGINE),
    "accelerate's dispatch": (dispatched, (False, False), ENGINE),
    "accelerate's hook on a half": (hook_on_a_block_of_accelerates, (True, False), ENGINE),
    "layerwise casting": (layerwise_casting, (False, False), (False, False)),
    "group offloading of blocks": (group_offload("block_level"), (False, False), (False, False)),
    "group offloading of layers": (group_offload("leaf_level"), (False, False), ENGINE),
    "a hook on a layer": (forward_hook("decoder.conv_in"), (True, False), ENGINE),
    "a hook on a half": (forward_hook("encoder"), (False, True), ENGINE),
    "a hook on a resnet block": (forward_hook("decoder.up_blocks.0.resnets.0"), (True, False), ENGINE),
    "a hook with keyword arguments": (pre_hook_with_kwargs, (True, False), ENGINE),
    "a LoRA": (lora, (False, False), ENGINE),
    "circular padding": (circular, (False, False), ENGINE),
    "a parametrization": (parametrized, (True, False), ENGINE),
    "a patched layer": (patched("decoder.conv_out"), (True, False), ENGINE),
    "a patched resnet block": (patched("decoder.mid_block.resnets.1"), (True, False), (True, False)),
    "a patched half": (patched("encoder"), (False, True), (False, True)),
    "a compiled half": (compiled, (True, False), (True, False)),
    "a block compiled in place": (compiled_in_place, (True, False), (True, False)),
    "a block of another class": (another_block, (True, False), (True, False)),
    "more parts than the model has": (more_parts, ENGINE, ENGINE),
    "a dropout": (dropout, (True, False), (True, False)),
    "fused projections": (dropped_and_fused, ENGINE, ENGINE),
}


def engine(ours: AutoencoderKL) -> tuple[bool, bool]:
    return encoder_half(ours).find_patch() is None, decoder_half(ours).find_patch() is None


@torch.no_grad()
def same(ours: Any, theirs: Any) -> None:
    """Within the rounding of float32 (the engine adds in another order); a change that is lost is more than 1e-2."""
    z, x = latent(), image()
    torch.testing.assert_close(ours.decode(z).sample, theirs.decode(z).sample, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.encode(x).latent_dist.mean, theirs.encode(x).latent_dist.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_was_done_to_a_model_stays_and_can_be_undone(name: str) -> None:
    change, before, after = SITUATIONS[name]
    theirs = theirs_of(CONFIGS["f4"])
    undo = change(theirs)
    ours = from_diffusers(theirs)
    shared = dict(theirs.named_parameters())
    mine = dict(ours.named_parameters())
    assert mine.keys() == shared.keys() and all(parameter is shared[key] for key, parameter in mine.items())
    same(ours, theirs)
    assert engine(ours) == before
    undo(ours)
    assert engine(ours) == after
    if after == ENGINE:  # what it computes now is what its weights say
        plain = diffusers.AutoencoderKL(**CONFIGS["f4"]).eval()
        lacking = plain.load_state_dict(ours.state_dict(), strict=False).missing_keys
        assert not lacking
        same(ours, plain)


def test_adapters_are_switched_off_and_on_by_our_methods() -> None:
    theirs = theirs_of(CONFIGS["f4"])
    plain = theirs.decode(latent()).sample
    lora_of: Any = pytest.importorskip("peft").LoraConfig(r=2, target_modules=["to_q", "to_v", "conv2"])
    theirs.add_adapter(lora_of)
    for key, weight in theirs.named_parameters():
        if "lora" in key:
            nn.init.normal_(weight, std=0.2)
    ours = from_diffusers(theirs)
    same(ours, theirs)
    assert ours.active_adapters() == ["default"] and ours.peft_config is theirs.peft_config
    ours.disable_adapters()
    torch.testing.assert_close(ours.decode(latent()).sample, plain, atol=1e-4, rtol=1e-4)
    ours.enable_adapters()
    same(ours, theirs)
    ours.fuse_lora()
    ours.unload_lora()
    assert engine(ours) == ENGINE and not torch.allclose(ours.decode(latent()).sample, plain, atol=1e-2)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("how", ["deleted", "None"])
def test_a_half_that_was_removed_is_none(half: str, how: str) -> None:
    theirs = theirs_of(CONFIGS["f4"])
    for name in (half, "quant_conv") if half == "encoder" else (half,):
        delattr(theirs, name) if how == "deleted" else setattr(theirs, name, None)
    ours = from_diffusers(theirs)
    assert getattr(ours, half) is None
    if half == "encoder":
        assert torch.allclose(ours.decode(latent()).sample, theirs.decode(latent()).sample, atol=2e-5)
    else:
        assert torch.allclose(ours.encode(image()).latent_dist.mean, theirs.encode(image()).latent_dist.mean, atol=2e-5)


class Empty(diffusers.AutoencoderKL):
    """A subclass that computes the same."""

    note = "kept by whoever made it"


class OtherDecode(diffusers.AutoencoderKL):
    def decode(self, z: Any, return_dict: bool = True, generator: Any = None) -> Any:
        return super().decode(z * 1.5, return_dict)


def test_a_subclass_is_taken_if_it_computes_the_same() -> None:
    theirs: Any = Empty(**CONFIGS["f4"]).eval()
    randomize(theirs)
    theirs.anything = ["somebody's"]
    ours = from_diffusers(theirs)
    same(ours, theirs)
    assert engine(ours) == ENGINE and ours.anything is theirs.anything and type(ours) is AutoencoderKL


@pytest.mark.parametrize("method", ["encode", "decode", "_decode", "tiled_decode", "forward"])
def test_methods_that_were_set_on_a_model_are_refused(method: str) -> None:
    theirs = theirs_of(CONFIGS["f4"])
    setattr(theirs, method, lambda *args, **kwargs: None)
    with pytest.raises(
        CheckpointError, match=rf"another `{method}` than diffusers' AutoencoderKL.*then set `{method}`"
    ):
        from_diffusers(theirs)
    delattr(theirs, method)
    same(from_diffusers(theirs), theirs)


def test_a_subclass_with_a_method_of_its_own_is_refused() -> None:
    with pytest.raises(CheckpointError, match="this OtherDecode computes by another `decode`"):
        from_diffusers(OtherDecode(**CONFIGS["f4"]))


def _patch_class(cls: type, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As packs do that patch a class of diffusers', under the name of what it was."""
    before = getattr(cls, method)

    @functools.wraps(before)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = before(self, *args, **kwargs)
        return output * 0.5 if isinstance(output, torch.Tensor) else output

    monkeypatch.setattr(cls, method, patched)


@pytest.mark.parametrize("method", ["encode", "decode", "tiled_decode", "forward"])
def test_a_class_with_a_patched_method_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = theirs_of(CONFIGS["f4"])
    _patch_class(type(theirs), method, monkeypatch)
    with pytest.raises(CheckpointError, match=rf"computes by another `{method}`"):
        from_diffusers(theirs)
    monkeypatch.undo()
    same(from_diffusers(theirs), theirs)


@pytest.mark.parametrize(
    "part", ["decoder", "decoder.mid_block", "decoder.mid_block.resnets.0", "decoder.mid_block.attentions.0"]
)
def test_a_patched_class_of_a_part_runs_as_it_is(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, z = theirs_of(CONFIGS["f4"]), latent()
    with torch.no_grad():
        before = theirs.decode(z).sample
        _patch_class(type(theirs.get_submodule(part)), "forward", monkeypatch)
        ours = from_diffusers(theirs)
        expected = theirs.decode(z).sample
        assert (expected - before).abs().max() > 1e-3
        torch.testing.assert_close(ours.decode(z).sample, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode(image()).latent_dist.mean, theirs.encode(image()).latent_dist.mean)


def test_a_model_with_other_layers_than_its_config_says_is_refused() -> None:
    theirs = theirs_of(CONFIGS["f4"])
    theirs.encoder.conv_in = nn.Conv2d(9, 16, 3, padding=1)
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.weight has the shape \(16, 9, 3, 3\)"):
        from_diffusers(theirs)
    theirs = theirs_of(CONFIGS["f4"])
    theirs.decoder.conv_norm_out.eps = 1e-5
    with pytest.raises(CheckpointError, match=r"decoder\.conv_norm_out has 8 groups and eps 1e-05"):
        from_diffusers(theirs)
