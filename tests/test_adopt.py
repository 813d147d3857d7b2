"""`from_diffusers`: a pipeline's VAE as ours, around the very same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from given.inputs import image, latent
from given.pairs import CONFIGS, model, theirs_of
from torch import nn

import vae_core
from vae_core import AutoencoderKL, CheckpointError, from_diffusers
from vae_core.streaming import job


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_same_weights_and_the_same_numbers(name: str) -> None:
    theirs = theirs_of(CONFIGS[name])
    ours = from_diffusers(theirs)
    shared = dict(theirs.named_parameters())
    assert all(parameter is shared[key] for key, parameter in ours.named_parameters())
    assert len(shared) == len(list(ours.parameters())) and list(shared) == [key for key, _ in ours.named_parameters()]
    assert {key: buffer.data_ptr() for key, buffer in theirs.named_buffers()} == {
        key: buffer.data_ptr() for key, buffer in ours.named_buffers()
    }
    assert {key: ours.config[key] for key in theirs.config if key in ours.config and not key.startswith("_")} == {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in theirs.config.items()
        if key in ours.config and not key.startswith("_")
    }
    z, x = latent(channels=ours.config.latent_channels), image(channels=ours.config.in_channels)
    with torch.no_grad():
        assert torch.allclose(ours.decode(z).sample, theirs.decode(z).sample, atol=1e-5)
        assert torch.allclose(ours.encode(x).latent_dist.mean, theirs.encode(x).latent_dist.mean, atol=1e-5)
        next(theirs.decoder.parameters()).mul_(2)
        assert torch.allclose(ours.decode(z).sample, theirs.decode(z).sample, atol=1e-4)


def test_everything_else_is_kept() -> None:
    theirs = theirs_of(CONFIGS["f4"]).to(torch.float64)
    theirs.enable_slicing()
    theirs.enable_tiling()
    theirs.tile_latent_min_size, theirs.tile_overlap_factor = 6, 0.5
    theirs.encoder.requires_grad_(False)
    theirs.decoder.train()
    theirs.enable_gradient_checkpointing()
    theirs.register_to_config(_name_or_path="org/name", decay=0.9, scaling_factor=0.5)
    ours = from_diffusers(theirs)
    assert (ours.use_slicing, ours.use_tiling, ours.tiling_mode) == (True, True, "exact")
    assert (ours.tile_latent_min_size, ours.tile_overlap_factor) == (6, 0.5) and ours.dtype == torch.float64
    assert ours.decoder.training and not ours.encoder.training and ours.is_gradient_checkpointing
    assert not any(p.requires_grad for p in ours.encoder.parameters())
    assert all(p.requires_grad for p in ours.decoder.parameters())
    assert (ours.config.scaling_factor, ours.config.decay, ours.config._name_or_path) == (0.5, 0.9, "org/name")
    assert type(ours) is AutoencoderKL and from_diffusers(ours) is ours


def test_processors_and_fused_projections() -> None:
    theirs, z = theirs_of(CONFIGS["f4"]), latent()
    expected = theirs.decode(z).sample
    theirs.fuse_qkv_projections()
    ours = from_diffusers(theirs)
    assert {type(p).__name__ for p in ours.attn_processors.values()} == {"FusedAttnProcessor2_0"}
    assert torch.allclose(ours.decode(z).sample, expected, atol=1e-5)
    theirs = theirs_of(CONFIGS["f4"])
    custom = AttnProcessor()
    theirs.set_attn_processor(custom)
    assert set(from_diffusers(theirs).attn_processors.values()) == {custom}


def test_exact_tiling_and_a_budget() -> None:
    ours, z = from_diffusers(theirs_of(CONFIGS["sd"])), latent(1, 24, 24)
    whole = ours.decode(z).sample
    ours.enable_tiling()
    assert torch.allclose(ours.decode(z).sample, whole, atol=1e-5)
    budget = vae_core.plan_decode(ours, z.shape).peak_bytes // 2
    assert torch.allclose(vae_core.decode(ours, z, memory_budget=budget), whole, atol=1e-5)


@torch.no_grad()
def test_a_budget_for_the_model_itself() -> None:
    """As in a pipeline, which calls its methods alone: what they plan with is what the function plans with."""
    ours, z = from_diffusers(theirs_of(CONFIGS["sd"])), latent(1, 24, 24)
    whole = ours.decode(z).sample
    least = vae_core.plan_decode(ours, z.shape, memory_budget=vae_core.plan_decode(ours, z.shape).peak_bytes // 2)
    ours.memory_budget = least.peak_bytes
    with planned() as plans:
        assert torch.allclose(ours.decode(z).sample, whole, atol=1e-5)
    assert [plan.peak_bytes <= least.peak_bytes for plan in plans] == [True]
    ours.memory_budget = 1000
    for run in (lambda: ours.decode(z), lambda: ours.encode(image(1, 64, 64))):
        with pytest.raises(vae_core.MemoryBudgetError, match="Give at least"):
            run()


@contextmanager
def planned() -> Iterator[list[vae_core.Plan]]:
    """The plans of what runs in the `with` block."""
    plans: list[vae_core.Plan] = []
    run = job.Job.run_at_once
    with patch.object(job.Job, "run_at_once", lambda self, *a, **k: (plans.append(self.plan), run(self, *a, **k))[1]):
        yield plans


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: diffusers.AutoencoderTiny(), "AutoencoderTiny"),
        (lambda: diffusers.AsymmetricAutoencoderKL(), "AsymmetricAutoencoderKL"),
        (lambda: nn.Linear(2, 2), "Linear"),
    ],
)
def test_other_models_are_refused_by_name(other: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=f"{says}.*"):
        from_diffusers(other())


def test_weights_of_their_own_type_are_refused() -> None:
    class Packed(nn.Parameter):
        pass

    theirs = theirs_of(CONFIGS["f4"])
    theirs.decoder.conv_in.weight = Packed(theirs.decoder.conv_in.weight.data)
    with pytest.raises(CheckpointError, match="quantised"):
        from_diffusers(theirs)


def test_a_pipeline_saves_it_as_its_own(tmp_path: Any) -> None:
    ours = from_diffusers(theirs_of(CONFIGS["sd"]))
    ours.save_pretrained(tmp_path)
    again: Any = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert torch.allclose(again.decode(latent()).sample, ours.decode(latent()).sample, atol=1e-5)
    assert model("sd").config == ours.config


class Pipe:
    vae = None


NOT_VAES: dict[str, tuple[Any, str]] = {
    "a pipeline": (Pipe(), r"type Pipe\. Pass the VAE in it: from_diffusers\(pipe\.vae\)"),
    "a name": ("org/name", r"type str\. Pass pipe\.vae"),
    "nothing": (None, "type NoneType"),
    "another model": (diffusers.AutoencoderTiny(), "of the class AutoencoderTiny. Use it as it is"),
    "a compiled one": (torch.compile(theirs_of(CONFIGS["f4"]), backend="eager"), r"from_diffusers\(vae\._orig_mod\)"),
    "a wrapper": (nn.DataParallel(theirs_of(CONFIGS["f4"])), r"DataParallel is wrapped.*from_diffusers\(vae\.module\)"),
}


@pytest.mark.parametrize("name", NOT_VAES)
def test_what_is_not_a_pipelines_vae_is_said(name: str) -> None:
    given, says = NOT_VAES[name]
    with pytest.raises(CheckpointError, match=says):
        from_diffusers(given)


@pytest.mark.parametrize(
    "call",
    [
        lambda vae, path: vae_core.decode(vae, latent()),
        lambda vae, path: vae_core.encode(vae, image()),
        lambda vae, path: vae_core.prepare_decode(vae, (1, 4, 8, 8)),
        lambda vae, path: vae_core.plan_encode(vae, (1, 3, 16, 16)),
        lambda vae, path: vae_core.save_single_file(vae, path),
    ],
)
def test_functions_take_our_model_and_say_how_to_make_one(call: Any, tmp_path: Any) -> None:
    path = tmp_path / "a.safetensors"
    theirs = theirs_of(CONFIGS["f4"])
    for other, says in (
        (theirs, r"type diffusers\.AutoencoderKL\. Pass vae_core\.from_diffusers\(vae\)"),
        (Pipe(), r"Pass vae_core\.from_diffusers\(pipe\.vae\)"),
        ("vae.safetensors", r"Load one with vae_core\.load_vae"),
    ):
        with pytest.raises(vae_core.ConfigError, match=says):
            call(other, path)
    call(nn.DataParallel(from_diffusers(theirs)), path)


@pytest.mark.parametrize("how", ["deleted", "None"])
def test_one_half_may_be_removed(how: str) -> None:
    """As people do to save memory: the other half runs, and the missing one is named."""
    for half, run, other in (
        ("decoder", lambda vae: vae_core.decode(vae, latent()), lambda vae: vae.encode(image())),
        ("decoder", lambda vae: vae.decode(latent()), lambda vae: vae_core.encode(vae, image())),
        ("encoder", lambda vae: vae.encode(image()), lambda vae: vae.decode(latent())),
    ):
        vae = model("f4")
        delattr(vae, half) if how == "deleted" else setattr(vae, half, None)
        with pytest.raises(vae_core.ConfigError, match=f"the {half} was removed from this model"):
            run(vae)
        other(vae)
