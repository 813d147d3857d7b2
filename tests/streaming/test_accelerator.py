"""What the engine does on an accelerator: the parts that a CPU can check, and, where CUDA is there, the whole."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from given.inputs import latent
from given.models import SMALL, make
from torch import nn

import vae_core
from vae_core import AutoencoderKL, ConfigError, MemoryBudgetError, TileSpec
from vae_core.streaming.activation import act_of_batch_norm
from vae_core.streaming.devices import accelerators, is_captured, module_of, why_unusable
from vae_core.streaming.kernel import even_size
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.store import MapStore
from vae_core.streaming.stored_attention import attend_in_blocks

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99", "xpu", "mps"])
def test_a_device_that_is_not_there_is_planned_for_and_not_run_on(name: str) -> None:
    if why_unusable(torch.device(name)) is None:
        pytest.skip("it is there")
    vae, z = make(SMALL), latent(1, 8, 8)
    assert vae_core.plan_decode(vae, z.shape, device=name).peak_bytes > 0
    job = vae_core.prepare_decode(vae, z.shape, device=name)
    with pytest.raises(ConfigError, match=f"the device {job.device} cannot be used here: .+ Prepare this"):
        job.run(z)


def test_maps_go_to_the_device_then_to_cpu_memory_then_to_a_file() -> None:
    store = MapStore(CPU, limit=3 * MIB, cpu_limit=2 * MIB)
    maps = [store.allocate((1, MIB // 4, 1, 1), torch.float32) for _ in range(7)]
    assert store.used == {"device": 3 * MIB, "cpu": 2 * MIB, "disk": 2 * MIB}
    for index, each in enumerate(maps):
        each.bands[0].fill_(index)
    assert [each.bands[0].mean().item() for each in maps] == list(range(7))
    for each in maps[1:]:
        store.release(each)
    again = store.allocate((1, MIB // 4, 1, 1), torch.float32)
    assert store.used["device"] == 3 * MIB  # an idle buffer of the nearest place
    store.release(again)
    store.drop_free()
    assert store.used == {"device": MIB, "cpu": 0, "disk": 0}
    assert store.peak == {"device": 3 * MIB, "cpu": 2 * MIB, "disk": 2 * MIB}


def test_a_plan_for_an_accelerator(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, limits = (1, 4, 256, 256), {"device": "cuda", "dtype": torch.bfloat16, "tiling": TileSpec(size=None)}
    free = vae_core.plan_decode(vae, shape, memory_budget=2**40, **limits)
    assert free.places.device and not free.places.cpu and not free.places.disk
    budget = 60 * MIB
    plan = vae_core.plan_decode(vae, shape, memory_budget=budget, **limits)
    assert plan.places.cpu and not plan.places.disk and plan.peak_bytes <= budget
    monkeypatch.setattr("vae_core.streaming.request.offload_bytes", lambda device: MIB // 2)
    plan = vae_core.plan_decode(vae, shape, memory_budget=budget, **limits)
    assert plan.places.disk and not plan.places.cpu and plan.peak_bytes <= budget


def test_without_triton_the_reference_path_runs_where_it_fits(
    vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_core.streaming.fused.can_finish", lambda device, dtype: False)
    shape = (2, 4, 64, 64)
    largest = 128 * 128 * 32 * 4  # of one item, which is what runs at once; float32
    plan = vae_core.plan_decode(vae, shape, device="cuda", memory_budget=6 * largest)
    assert (plan.passes, plan.strips, plan.peak_bytes) == (2, 0, 6 * largest)
    assert plan.pass_flops == (plan.flops // 2,) * 2
    for options in ({"memory_budget": 6 * largest - 1}, {"dtype": torch.float16}, {"tiling": TileSpec(size=None)}):
        assert vae_core.plan_decode(vae, shape, **{"device": "cuda", "memory_budget": 2**40, **options}).strips > 0


@pytest.mark.parametrize("capturing", [True, False])
@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_graph_that_is_captured_has_the_modules_in_it(
    kind: str, capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(torch, kind), "is_current_stream_capturing", lambda: capturing, raising=False)
    assert is_captured(torch.device(kind, 0)) is capturing
    assert not is_captured(CPU) and not is_captured(torch.device("mps"))


@torch.no_grad()
def test_nothing_is_tried_out_where_operations_are_watched(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are launched meanwhile would become part of what is captured, or fail for good."""
    monkeypatch.setattr("vae_core.streaming.choose.may_be_faster", lambda *given: pytest.fail("was asked"))
    z = latent(1, 20, 20)
    with monkeypatch.context() as capture:
        capture.setattr("vae_core.streaming.choose.is_captured", lambda device: True)
        assert torch.equal(vae.decode(z).sample, vae.decode_reference(z))
    with pytest.raises(pytest.fail.Exception, match="was asked"):
        vae.decode(z)


@torch.no_grad()
def test_a_models_own_method_where_strips_have_no_room(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs by its modules, as if strips were not faster; a budget that was asked for is an error."""
    z = latent(1, 20, 20)
    want = vae.decode_reference(z)
    monkeypatch.setattr("vae_core.streaming.request.available_bytes", lambda device: 1000)
    monkeypatch.setattr("vae_core.streaming.choose.is_faster", lambda *given: True)
    assert torch.equal(vae.decode(z).sample, want)
    vae = copy.deepcopy(vae)
    vae.memory_budget = 700
    with pytest.raises(MemoryBudgetError):
        vae.decode(z)


def test_with_triton_strips_run_but_for_small_images(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_core.streaming.fused.can_finish", lambda device, dtype: dtype != torch.float64)
    plans = {
        (side, dtype): vae_core.plan_decode(
            copy.deepcopy(vae).to(dtype), (1, 4, side, side), device="cuda", memory_budget=2**40
        )
        for side in (32, 256)
        for dtype in (torch.float32, torch.float64)
    }
    assert [key for key, plan in plans.items() if plan.strips] == [(256, torch.float32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_keys_that_come_in_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_core.streaming.stored_attention.KEY_BLOCK", 30)
    query, keys, values = (torch.randn(rows, 16).to(dtype) for rows in (7, 101, 101))
    in_map = [FeatureMap.of(each[None, :, None]) for each in (keys, values / 3)]
    got = attend_in_blocks(query * 3, *in_map)  # scores far apart
    far = [each.double()[None, None] for each in (query * 3, keys, values / 3)]
    want = F.scaled_dot_product_attention(far[0], far[1], far[2])[0, 0]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU()])
def test_norm_and_activation_in_batch_norms_kernel(dtype: torch.dtype, act: nn.Module) -> None:
    x = (5 * torch.randn(1, 6, 5, 8)).to(dtype)
    scale, shift = torch.randn(8), torch.randn(8)
    want = act(x.float() * scale + shift)
    got = act_of_batch_norm(x, scale, shift, act)
    assert got.dtype == dtype and got.shape == x.shape
    # In half precision the norm is rounded before the activation, as torch's own modules do it.
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (2**-7, 2**-7)
    torch.testing.assert_close(got.float(), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("length", "size", "multiple", "want"),
    [(1024, 100, 1, 64), (1024, 100, 2, 64), (96, 96, 2, 96), (96, 200, 2, 96), (97, 20, 1, 20), (90, 17, 2, 10)],
)
def test_strips_of_one_shape(length: int, size: int, multiple: int, want: int) -> None:
    assert even_size(length, size, multiple) == want


@pytest.mark.skipif(not accelerators(), reason="needs an accelerator")
@pytest.mark.parametrize("device", accelerators())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1.5, 0.6, 0.35])
@torch.no_grad()
def test_on_an_accelerator_within_a_budget(vae: AutoencoderKL, device: str, dtype: torch.dtype, share: float) -> None:
    z, module = latent(1, 256, 160).to(dtype), module_of(torch.device(device))
    exact = copy.deepcopy(vae).double().decode_reference(z.double())
    there = copy.deepcopy(vae).to(device).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = z.to(device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        plain = there.decode_reference(given).cpu()
    budget = int(share * vae_core.plan_decode(there, z.shape, memory_budget=2**40).peak_bytes)
    tells, before = hasattr(module, "max_memory_allocated"), 0
    if tells:
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        got = vae_core.decode(there, given, memory_budget=budget, tiling=TileSpec(size=None))
    if tells:
        assert module.max_memory_allocated(device) - before - got.nbytes <= 1.15 * budget
    assert (got.cpu() - exact).abs().max() <= 1.5 * (plain - exact).abs().max() + 1e-4


@pytest.mark.skipif(not accelerators(), reason="needs an accelerator")
@pytest.mark.parametrize("device", accelerators())
@pytest.mark.parametrize("where", ["early", "late"])
@torch.no_grad()
def test_on_an_accelerator_values_out_of_range_are_found(
    vae: AutoencoderKL, device: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However late the device is looked at, the warning names the pass that made them."""
    there = copy.deepcopy(vae).to(device).half()
    block = there.decoder.mid_block.resnets[0] if where == "early" else there.decoder.up_blocks[-1].resnets[0]
    block.conv1.weight.fill_(6e4)
    for tiling in (TileSpec(size=None), TileSpec(size=1)):  # a strip for each pass, and many, which are looked at
        vae_core.decode(there, latent(1, 24, 20).to(device).half(), tiling=tiling)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == second and f"in pass {3 if where == 'early' else 13} of 17" in first
