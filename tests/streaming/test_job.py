"""A run is one object: what is decided and planned is what is run, once, for the whole batch."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from given.allocations import Living
from given.counts import Calls
from given.inputs import image, latent
from given.models import SMALL, make
from given.runs import SIZE

import vae_core
from vae_core import AutoencoderKL, ImageError, Options, ShapeError, TileSpec
from vae_core.halves import decoder_half
from vae_core.streaming import prepare, source, strips
from vae_core.streaming.choose import KERNELS

BLENDED = TileSpec(size=8, overlap=2, mode="blended")
META = torch.device("meta")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each step of a run is made, in this thread and in workers."""
    calls = Calls(monkeypatch)
    calls.of(strips, "WorkerPool", "pools")
    calls.of(strips, "MapStore", "stores")
    calls.of(strips, "plan_program", "plans")
    calls.of(source, "count_not_finite", "looks for NaN")
    for kernel in KERNELS:
        calls.of(kernel, "_lay_out", "layouts")
        calls.of(kernel, "pack", "packed")
        calls.of(kernel, "compute", "strips")
        calls.of(kernel, "combine", "passes")
    return calls.counts


def counted_half(vae: AutoencoderKL, seen: Counter[str]) -> Any:
    """The decoder, whose shape checks and programs are counted."""
    half = decoder_half(vae)

    def check(shape: Any) -> None:
        seen["shape checks"] += 1
        half.check(shape)

    def program() -> Any:
        seen["programs"] += 1
        return half.program()

    return replace(half, check=check, program=program)


# Once.


@pytest.mark.usefixtures("threads")
@pytest.mark.thorough
def test_a_batch_in_parts_is_planned_and_packed_once(vae: AutoencoderKL, counts: Counter[str]) -> None:
    z = latent(8, 40, 40)  # two at once
    prepared = prepare(counted_half(vae, counts), z.shape)
    assert (prepared.plan.items, len(prepared._planned.planned.planned)) == (2, prepared.plan.passes // 4)  # type: ignore[attr-defined]
    result = prepared.run(z)
    passes = prepared.plan.passes // 4
    assert counts["shape checks"] == counts["programs"] == counts["plans"] == counts["looks for NaN"] == 1
    assert counts["pools"] == counts["stores"] == 1
    assert counts["layouts"] == counts["packed"] == passes
    assert (counts["passes"], counts["strips"]) == (prepared.plan.passes, prepared.plan.strips)
    alone = torch.cat([vae_core.decode(vae, item[None]) for item in z])
    assert (result - alone).abs().max() < 1e-5


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("options", [Options(), Options(tiling=TileSpec(size=5)), Options(circular="x")])
def test_a_plan_in_strips_is_what_is_run(
    batch: int, options: Options, vae: AutoencoderKL, counts: Counter[str]
) -> None:
    z = latent(batch, 40, 40)
    prepared = vae_core.prepare_decode(vae, z.shape, options)
    assert prepared.way.name == "strips" and prepared.plan.tiles == 0
    counts.clear()
    steps: list[vae_core.Progress] = []
    prepared.run(z, progress=steps.append)
    assert (counts["passes"], counts["strips"]) == (prepared.plan.passes, prepared.plan.strips)
    assert counts["layouts"] == 0  # as planned
    assert steps[-1] == (prepared.plan.flops, prepared.plan.flops, prepared.plan.passes, prepared.plan.passes)
    assert sorted({step.pass_index for step in steps}) == list(range(1, prepared.plan.passes + 1))


def test_a_plan_under_a_budget_takes_the_steps_that_it_needs(vae: AutoencoderKL, counts: Counter[str]) -> None:
    free = vae_core.plan_decode(vae, (1, 4, 96, 96))
    counts.clear()
    prepared = vae_core.prepare_decode(vae, (1, 4, 96, 96), Options(memory_budget=free.peak_bytes * 2 // 3))
    assert counts["plans"] == 1 and counts["layouts"] > prepared.plan.passes
    counts.clear()
    prepared.run(latent(1, 96, 96))
    assert counts["layouts"] == counts["plans"] == 0 and counts["strips"] == prepared.plan.strips


def test_layouts_do_not_depend_on_the_thread_that_asks(vae: AutoencoderKL, counts: Counter[str]) -> None:
    """They once did: three strips in a thread where torch has four threads, one in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        prepared = vae_core.prepare_decode(vae, (1, 4, 24, 24))
        counts.clear()

        def run() -> None:
            torch.set_num_threads(1)
            prepared.run(latent(1, 24, 24))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert counts["strips"] == prepared.plan.strips and counts["layouts"] == 0
    finally:
        torch.set_num_threads(before)


# Ways.


def patched(vae: AutoencoderKL) -> AutoencoderKL:
    vae.decoder.conv_out.register_forward_hook(lambda *_: None)
    return vae


@pytest.mark.parametrize("batch", [1, 3])
def test_a_plan_in_tiles_is_what_is_run(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, calls = make(SMALL), []
    vae.decoder.register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0].shape)))
    z = latent(batch, 21, 30)
    prepared = vae_core.prepare_decode(vae, z.shape, Options(tiling=BLENDED))
    assert prepared.way.name == "tiles" and prepared.plan.strips == 0
    steps: list[vae_core.Progress] = []
    prepared.run(z, progress=steps.append)
    assert len(calls) == prepared.plan.tiles == prepared.plan.passes > 4
    assert steps[-1].done == steps[-1].total == prepared.plan.flops
    assert vae_core.plan_decode(vae, z.shape, tiling=BLENDED) == prepared.plan


def test_a_plan_of_a_patched_model_is_what_is_run() -> None:
    vae, calls = make(SMALL), []
    vae.decoder.register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0].shape)))
    prepared = vae_core.prepare_decode(vae, (5, 4, 40, 40))
    assert prepared.way.name == "whole" and "has a hook" in prepared.way.reason
    assert (prepared.plan.passes, prepared.plan.strips, prepared.plan.tiles) == (3, 0, 0)
    z = latent(5, 40, 40)
    assert torch.equal(prepared.run(z), torch.cat([vae.decode_reference(part) for part in z.split(2)]))
    assert calls[:3] == [(2, 4, 40, 40), (2, 4, 40, 40), (1, 4, 40, 40)]


@pytest.mark.parametrize(("side", "tiles"), [(15, 0), (16, 0), (17, 4), (18, 4)])  # of which 16 is one tile
def test_an_image_within_one_blended_tile_runs_whole(side: int, tiles: int) -> None:
    vae = make(SMALL)
    x, calls = image(1, side, side), []
    vae.encoder.register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0].shape[2:])))
    prepared = vae_core.prepare_encode(vae, x.shape, Options(tiling=BLENDED))
    assert (prepared.way.name, prepared.plan.tiles) == ("tiles" if tiles else "whole", tiles)
    moments = prepared.run(x)
    assert len(calls) == (tiles or 1)

    calls.clear()
    vae.enable_tiling(mode="blended")
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
    vae.tile_overlap_factor = 0.25
    with torch.no_grad():
        assert torch.equal(vae.encode(x).latent_dist.parameters, moments)  # by the model's own method as well
    assert len(calls) == (tiles or 1)


@pytest.mark.parametrize("options", [Options(), Options(tiling=replace(BLENDED, size=16))], ids=["whole", "tiles"])
def test_the_planned_peak_of_the_reference_path_bounds_its_tensors(options: Options) -> None:
    vae = patched(make(SMALL))
    prepared = vae_core.prepare_decode(vae, (1, 4, 48, 48), options)
    out = torch.empty(prepared.output_shape)
    with Living() as living:
        prepared.run(latent(1, 48, 48), out)
    assert 0.5 * prepared.plan.peak_bytes < living.most < prepared.plan.peak_bytes


# Input and output.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [Options(), Options(tiling=BLENDED), Options(tiling=TileSpec(size=5))])
@pytest.mark.thorough
def test_the_result_goes_into_the_callers_memory(options: Options, dtype: torch.dtype, vae: AutoencoderKL) -> None:
    z = latent(3, 40, 40)
    prepared = vae_core.prepare_decode(vae, z.shape, options)
    want = prepared.run(z)
    images = torch.full((3, 80, 80, 4), -7.0, dtype=dtype)  # an image [B, H, W, C] of one channel more
    result = prepared.run(z, images[..., :3].permute(0, 3, 1, 2))
    assert result.data_ptr() == images.data_ptr()
    assert torch.equal(images[..., :3], want.permute(0, 2, 3, 1).to(dtype))
    assert (images[..., 3] == -7).all()


def test_moments_go_into_the_callers_memory() -> None:
    vae = make({**SMALL, "latent_channels": 16, "use_quant_conv": False})  # the last pass has a fast kernel
    x = image(2, 2 * SIZE)
    prepared = vae_core.prepare_encode(vae, x.shape)
    want, out = prepared.run(x), torch.empty(2, 24, 24, 32).permute(0, 3, 1, 2)
    assert torch.equal(prepared.run(x, out), want)
    half = torch.empty(2, 32, 24, 24, dtype=torch.bfloat16)
    assert torch.equal(prepared.run(x, half), want.bfloat16())


def test_a_batch_may_come_in_parts(vae: AutoencoderKL) -> None:
    z = latent(5, 40, 40)
    prepared = vae_core.prepare_decode(vae, z.shape)
    assert torch.equal(prepared.run(z.split([1, 3, 1])), prepared.run(z))
    with pytest.raises(ShapeError, match="prepared for"):
        prepared.run(z.split([1, 3, 1])[:2])


WRONG = {
    "uint8": (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), ImageError, "dtype uint8.*127.5"),
    "int64": (torch.zeros(1, 3, 48, 48, dtype=torch.int64), ImageError, "dtype int64"),
    "bool": (torch.zeros(1, 3, 48, 48, dtype=torch.bool), ImageError, "dtype bool"),
    "complex": (torch.zeros(1, 3, 48, 48, dtype=torch.complex64), ShapeError, "complex64"),
    "float8": (torch.zeros(1, 3, 48, 48).to(torch.float8_e4m3fn), ShapeError, "float8"),
    "sparse": (torch.zeros(1, 3, 48, 48).to_sparse(), ShapeError, "sparse"),
    "numpy": (torch.zeros(1, 3, 48, 48).numpy(), ShapeError, "ndarray, not a tensor"),
    "None": (None, ShapeError, "NoneType, not a tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_an_image(name: str, vae: AutoencoderKL) -> None:
    given, error, said = WRONG[name]
    with pytest.raises(error, match=said):
        vae_core.encode(vae, given)  # type: ignore[arg-type]
    with pytest.raises(error, match=said):
        vae_core.prepare_encode(vae, (1, 3, 48, 48)).run(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "out", [torch.empty(1, 3, 48, 47), torch.empty(1, 3, 48, 48, dtype=torch.uint8), None.__class__]
)
def test_memory_that_cannot_take_the_result(out: Any, vae: AutoencoderKL) -> None:
    with pytest.raises(ShapeError, match="out is"):
        vae_core.prepare_decode(vae, (1, 4, 24, 24)).run(latent(1, SIZE), out)


# Weights.


def test_a_model_is_planned_before_it_has_its_weights(vae: AutoencoderKL) -> None:
    with META:
        empty = AutoencoderKL(**vae.config)
    prepared = vae_core.prepare_decode(empty.eval(), (1, 4, 24, 24), device="cpu")
    empty.load_state_dict(vae.state_dict(), assign=True)
    assert torch.equal(prepared.run(latent(1, SIZE)), vae_core.decode(vae, latent(1, SIZE)))


@pytest.mark.parametrize(
    "name", ["decoder.up_blocks.1.resnets.0.conv1.weight", "post_quant_conv.bias", "decoder.conv_norm_out.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [Options(), Options(tiling=BLENDED)], ids=["strips", "tiles"])
def test_a_damaged_weight_is_named(name: str, value: float, options: Options) -> None:
    vae = make(SMALL)
    with torch.no_grad():
        vae.get_parameter(name).view(-1)[3 % vae.get_parameter(name).numel()] = value
    with pytest.raises(vae_core.DamagedWeightError, match=name.replace(".", r"\.") + ".*damaged"):
        vae_core.prepare_decode(vae, (1, 4, 24, 24), options).run(latent(1, SIZE))


@torch.no_grad()
def test_a_damaged_weight_is_named_by_the_models_own_methods() -> None:
    vae = make(SMALL)
    vae.decoder.conv_norm_out.weight[1] = float("nan")
    with pytest.raises(vae_core.DamagedWeightError, match="decoder.conv_norm_out.weight"):
        vae.decode(latent(1, 4, 4))  # by the reference path
    with vae_core.kernels("reference"), pytest.raises(vae_core.DamagedWeightError):
        vae.decode(latent(1, SIZE))


@pytest.mark.parametrize("options", [Options(), Options(tiling=BLENDED)], ids=["patched", "tiles"])
@torch.no_grad()
def test_the_reference_path_obeys_the_precision(options: Options) -> None:
    vae = make(SMALL)
    vae.decoder.conv_out.register_forward_hook(lambda *_: None)
    prepared = vae_core.prepare_decode(vae, (2, 4, 24, 24), replace(options, dtype=torch.float64))
    result, single = (
        prepared.run(latent(2, SIZE)),
        vae_core.prepare_decode(vae, (2, 4, 24, 24), options).run(latent(2, SIZE)),
    )
    assert result.dtype == prepared.dtype == torch.float64 and vae.dtype == torch.float32
    assert 0 < (result - single).abs().max() < 1e-4


@pytest.mark.parametrize("options", [Options(), Options(tiling=BLENDED)], ids=["patched", "tiles"])
@torch.no_grad()
def test_an_overflow_of_the_reference_path_is_redone_wider(options: Options, caplog: pytest.LogCaptureFixture) -> None:
    vae = make(SMALL)
    vae.decoder.conv_out.register_forward_hook(lambda *_: None)
    vae.decoder.conv_in.weight.mul_(1e5)
    vae.half()
    steps: list[vae_core.Progress] = []
    result = vae_core.prepare_decode(vae, (1, 4, 24, 24), options).run(latent(1, SIZE).half(), progress=steps.append)
    assert result.dtype == torch.float16 and result.isfinite().all()
    assert "out of the range of float16" in caplog.text and "now run in float32" in caplog.text
    assert steps[-1].done == steps[-1].total


def test_a_budget_that_cannot_be_kept_is_said(vae: AutoencoderKL, caplog: pytest.LogCaptureFixture) -> None:
    options = Options(tiling=BLENDED, memory_budget=2**20)
    vae_core.prepare_decode(vae, (1, 4, 24, 24), options).run(latent(1, SIZE))
    assert "The memory budget is ignored: you chose blended tiles" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda vae: vae.enable_tiling(mode="blended"), "you chose blended tiles"),
        (lambda vae: vae.decoder.conv_out.register_forward_hook(lambda *_: None), "the model is patched"),
    ],
)
@torch.no_grad()
def test_a_budget_of_the_model_that_cannot_be_kept_is_said(change: Any, reason: str, caplog: Any) -> None:
    vae = make(SMALL)
    change(vae)
    vae.tile_latent_min_size = 8
    vae.memory_budget = 2**20
    vae.decode(latent(1, 24, 24))
    assert f"The memory budget is ignored: {reason}" in caplog.text


@pytest.mark.parametrize("shape", [(1, 4, 8.7, 8), (1, 4, "8", 8)])
def test_a_shape_that_is_not_of_whole_numbers(shape: Any, vae: AutoencoderKL) -> None:
    with pytest.raises((ShapeError, TypeError)):
        vae_core.prepare_decode(vae, shape)
