"""What is patched in a model is never ignored: the modules then run as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from given.changes import CHANGES, SILENT, Change, Half, conv_of, forward_hook
from given.inputs import image, latent
from given.models import SMALL, make
from given.runs import SIZE
from torch import Tensor, nn

import vae_core
from vae_core import AutoencoderKL
from vae_core.attention import AttnProcessor
from vae_core.patched import find_patch
from vae_core.streaming import executor
from vae_core.streaming.internals import products_available

pytestmark = pytest.mark.skipif(not products_available(), reason="torch has no oneDNN")


def runs(vae: AutoencoderKL, encoding: bool) -> tuple[Half, Callable[[], Tensor], tuple[Callable[[], Tensor], ...]]:
    """A half of the model, the reference path through it, and the two ways that may take the engine."""
    if encoding:
        x = image(1, 2 * SIZE)
        return (
            vae.encoder,
            lambda: vae.encode_reference(x),
            (lambda: vae.encode(x).latent_dist.parameters, lambda: vae_core.encode(vae, x).parameters),
        )
    z = latent(1, SIZE)
    return vae.decoder, lambda: vae.decode_reference(z), (lambda: vae.decode(z).sample, lambda: vae_core.decode(vae, z))


@pytest.fixture
def engine_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with a name for each program that is executed."""
    seen: list[str] = []
    real = executor.Execution.run

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append("run")
        real(self, *args, **kwargs)

    monkeypatch.setattr(executor.Execution, "run", run)
    return seen


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@torch.no_grad()
def test_an_unmodified_model_takes_the_engine(encoding: bool, engine_runs: list[str]) -> None:
    half, plain, ways = runs(make(SMALL), encoding)
    assert find_patch(half) is None
    for way in ways:
        engine_runs.clear()
        result = way()
        assert engine_runs
        assert (result - plain()).abs().max() < 1e-4


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_change_is_never_ignored(change: Change, encoding: bool, engine_runs: list[str]) -> None:
    half, plain, ways = runs(make(SMALL), encoding)
    before, calls = plain(), []
    with change(half, calls):
        assert find_patch(half)
        want = plain()
        assert (want - before).abs().max() > 1e-3  # or ignoring it would not show
        for way in ways:
            calls.clear()
            assert torch.equal(way(), want)
            assert bool(calls) is (change not in SILENT)
    assert not engine_runs


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@torch.no_grad()
def test_a_change_that_was_undone_is_forgotten(encoding: bool, engine_runs: list[str]) -> None:
    half, _, ways = runs(make(SMALL), encoding)
    with forward_hook(half, []):
        ways[0]()
    assert not engine_runs and find_patch(half) is None
    ways[0]()
    assert engine_runs


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@torch.no_grad()
def test_the_convolutions_beside_the_halves_are_looked_at_too(encoding: bool) -> None:
    vae = make(SMALL)
    conv = vae.quant_conv if encoding else vae.post_quant_conv
    assert conv is not None
    conv.register_forward_hook(lambda module, args, output: output * 1.5)  # type: ignore[operator]
    _, plain, ways = runs(vae, encoding)
    for way in ways:
        assert torch.equal(way(), plain())


@torch.no_grad()
def test_a_fused_projection_that_was_changed() -> None:
    vae = make(SMALL)
    vae.fuse_qkv_projections()
    vae.decoder.mid_block.attentions[0].to_qkv.weight.mul_(3.0)  # type: ignore[union-attr, operator]
    _, plain, ways = runs(vae, False)
    for way in ways:
        assert (way() - plain()).abs().max() < 1e-4


@torch.no_grad()
def test_offloaded_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    want = make(SMALL).decode_reference(latent(1, SIZE))
    vae = make(SMALL)
    accelerate.cpu_offload(vae, torch.device("cpu"))
    assert (vae.decode(latent(1, SIZE)).sample - want).abs().max() < 1e-4
    assert (vae_core.decode(vae, latent(1, SIZE)) - want).abs().max() < 1e-4


@torch.no_grad()
def test_a_change_in_one_half_leaves_the_engine_to_the_other(engine_runs: list[str]) -> None:
    vae = make(SMALL)
    with forward_hook(vae.encoder, []):
        vae.encode(image(1, 2 * SIZE))
        assert not engine_runs
        vae.decode(latent(1, SIZE))
        assert engine_runs


def _wider_eps(half: Half) -> None:
    half.mid_block.resnets[0].norm1.eps = 0.1


def _other_groups(half: Half) -> None:
    half.conv_norm_out.num_groups = 8


def _stock_activation(half: Half) -> None:
    half.conv_act = nn.GELU()


def _reference_processor(half: Half) -> None:
    half.mid_block.attentions[0].processor = AttnProcessor()


def _new_weights(half: Half) -> None:
    with torch.no_grad():
        conv_of(half).weight.mul_(2.0)


@pytest.mark.parametrize("encoding", [False, True], ids=["decode", "encode"])
@pytest.mark.parametrize("change", [_wider_eps, _other_groups, _stock_activation, _reference_processor, _new_weights])
@torch.no_grad()
def test_what_the_engine_knows_is_followed(
    change: Callable[[Half], None], encoding: bool, engine_runs: list[str]
) -> None:
    """Values of stock modules are read at each call, not remembered."""
    half, plain, ways = runs(make(SMALL), encoding)
    ways[1]()
    change(half)
    for way in ways:
        engine_runs.clear()
        assert (way() - plain()).abs().max() < 1e-4
        assert engine_runs


@torch.no_grad()
def test_a_patched_model_cannot_be_circular() -> None:
    vae = make(SMALL)
    with forward_hook(vae.decoder, []), pytest.raises(vae_core.TilingError, match="a hook.*circular none"):
        vae_core.decode(vae, latent(1, SIZE), circular="x")


@torch.no_grad()
def test_a_patched_model_is_reported_and_reports_its_end(caplog: pytest.LogCaptureFixture) -> None:
    vae, calls = make(SMALL), []
    with forward_hook(vae.decoder, []):
        vae_core.decode(vae, latent(1, SIZE), progress=lambda step: calls.append(step[:2]))
    assert "conv_out has a hook" in caplog.text
    assert calls and calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("part", ["decoder", "encoder", "post_quant_conv", "quant_conv"])
@torch.no_grad()
def test_a_part_that_is_exchanged_between_planning_and_running(part: str, engine_runs: list[str]) -> None:
    """As a host does that puts a compiled part into a model when it loads it, and takes it out again."""
    vae = make(SMALL)
    own, decodes = getattr(vae, part), part in ("decoder", "post_quant_conv")
    x = latent(1, SIZE) if decodes else image(1, 2 * SIZE)
    prepare = vae_core.prepare_decode if decodes else vae_core.prepare_encode

    def want() -> Tensor:
        return vae.decode_reference(x) if decodes else vae.encode_reference(x)

    class Brighter(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return own(y) + 0.25

    planned_before = prepare(vae, x.shape)
    setattr(vae, part, Brighter())
    planned_then = prepare(vae, x.shape)
    assert torch.equal(planned_before.run(x), want()) and not engine_runs
    setattr(vae, part, own)
    torch.testing.assert_close(planned_then.run(x), want(), rtol=1e-4, atol=1e-4)
    assert engine_runs
