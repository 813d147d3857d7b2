"""How the engine behaves beside its numbers: when it is taken, what it reports, what it leaves as it was."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from given.inputs import image, latent
from given.models import SMALL, make
from given.runs import SIZE, StoppedError, filing_budget, workers
from torch import Tensor

import vae_core
from vae_core import AutoencoderKL, TileSpec
from vae_core.damage import COMPILERS_CALL_IT
from vae_core.streaming import store, strips
from vae_core.streaming.choose import kernel_choice
from vae_core.streaming.internals import products_available

needs_fast_kernels = pytest.mark.skipif(not products_available(), reason="torch has no oneDNN")


# Which way encode and decode take.


@needs_fast_kernels
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_engine_runs(mode: Any, vae: AutoencoderKL, engine_calls: list[str]) -> None:
    with mode():
        decoded = vae.decode(latent(1, SIZE)).sample
        moments = vae.encode(image(1, 2 * SIZE)).latent_dist.parameters
        assert engine_calls == ["decode", "encode"]
        assert (decoded - vae.decode_reference(latent(1, SIZE))).abs().max() < 1e-4
        assert (moments - vae.encode_reference(image(1, 2 * SIZE))).abs().max() < 1e-4
        assert decoded.is_inference() == moments.is_inference() == (mode is torch.inference_mode)


@needs_fast_kernels
def test_frozen_weights_and_a_plain_input_need_no_gradients(engine_calls: list[str]) -> None:
    vae = make(SMALL).requires_grad_(False)
    assert not vae.decode(latent(1, SIZE)).sample.requires_grad
    assert engine_calls == ["decode"]


def test_gradients_flow_to_weights(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    vae.decode(latent(1, SIZE)).sample.sum().backward()
    assert not engine_calls
    assert vae.decoder.conv_in.weight.grad is not None and vae.decoder.conv_in.weight.grad.abs().max() > 0
    vae.zero_grad()


def test_gradients_flow_to_the_input(engine_calls: list[str]) -> None:
    vae = make(SMALL).requires_grad_(False)
    z = latent(1, SIZE).requires_grad_()
    vae.decode(z).sample.sum().backward()
    assert not engine_calls
    assert z.grad is not None and z.grad.abs().max() > 0


@torch.no_grad()
def test_autocast_is_obeyed(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(latent(1, SIZE)).sample.dtype == torch.bfloat16
    assert not engine_calls


@torch.no_grad()
def test_tracing_sees_the_modules(engine_calls: list[str]) -> None:
    vae = make(SMALL).requires_grad_(False)  # weights become constants of the trace
    traced = torch.jit.trace(lambda z: vae.decode(z).sample, (latent(1, SIZE),), check_trace=False)
    assert not engine_calls
    other = latent(1, SIZE, seed=7)
    assert (traced(other) - vae.decode_reference(other)).abs().max() < 1e-4  # type: ignore[operator]


@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_compiling_sees_the_modules(whole: bool, vae: AutoencoderKL, engine_calls: list[str]) -> None:
    if whole and not COMPILERS_CALL_IT:
        pytest.skip("the compiler of torch < 2.6 makes no objects of a class")
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: vae.decode(z).sample, fullgraph=whole, backend="eager")
    assert (compiled(latent(1, SIZE)) - vae.decode_reference(latent(1, SIZE))).abs().max() < 1e-4
    assert not engine_calls


class Marked(Tensor):
    """A kind of tensor of its own."""


@torch.no_grad()
def test_another_kind_of_tensor_stays_what_it_is(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    assert isinstance(vae.decode(latent(1, SIZE).as_subclass(Marked)).sample, Marked)
    assert not engine_calls


def test_forward_mode_gradients() -> None:
    vae = make(SMALL).requires_grad_(False)
    vae.set_default_attn_processor()  # torch's fused attention has no forward mode
    with torch.autograd.forward_ad.dual_level():
        z = torch.autograd.forward_ad.make_dual(latent(1, SIZE), torch.ones_like(latent(1, SIZE)))
        want = torch.autograd.forward_ad.unpack_dual(vae.decode_reference(z)).tangent
        tangent = torch.autograd.forward_ad.unpack_dual(vae.decode(z).sample).tangent
    assert want is not None and want.abs().max() > 0
    assert tangent is not None and torch.equal(tangent, want)


@torch.no_grad()
def test_the_reference_path_is_the_modules_themselves(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    with vae_core.kernels("reference"):
        assert torch.equal(vae.decode(latent(1, SIZE)).sample, vae.decode_reference(latent(1, SIZE)))
        assert torch.equal(
            vae.encode(image(1, 2 * SIZE)).latent_dist.parameters, vae.encode_reference(image(1, 2 * SIZE))
        )
        with vae_core.kernels("winograd"):
            pass
        vae.decode(latent(1, SIZE))
    assert not engine_calls
    with pytest.raises(vae_core.ConfigError, match="fast"), vae_core.kernels("fast"):  # type: ignore[arg-type]
        pass


def test_a_choice_of_kernels_is_this_threads_own(vae: AutoencoderKL) -> None:
    seen = []
    with vae_core.kernels("reference"):
        other = threading.Thread(target=lambda: seen.append(kernel_choice()))
        other.start()
        other.join()
    assert seen == ["auto"]


# Progress.


def reports_of(run: Callable[[vae_core.streaming.ProgressCallback], Any]) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    run(lambda step: reports.append(step[:2]))
    return reports


def assert_even(reports: list[tuple[int, int]], largest_step: float) -> None:
    done, totals = [0, *(done for done, _ in reports)], {total for _, total in reports}
    assert len(totals) == 1
    total = totals.pop()
    assert done[-1] == total
    steps = [after - before for before, after in itertools.pairwise(done)]
    assert min(steps) > 0
    assert max(steps) <= largest_step * total


@pytest.mark.parametrize(("batch", "side"), [(1, 56), (3, 40)])
@pytest.mark.thorough
def test_progress_is_even_and_ends_at_its_total(batch: int, side: int, vae: AutoencoderKL, threads: int) -> None:
    z, x = latent(batch, side, side), image(batch, 2 * side, 2 * side)
    assert_even(reports_of(lambda report: vae_core.decode(vae, z, progress=report, tiling=TileSpec(size=4))), 0.05)
    assert_even(reports_of(lambda report: vae_core.encode(vae, x, progress=report, tiling=TileSpec(size=4))), 0.05)


def test_progress_of_blended_tiles(vae: AutoencoderKL) -> None:
    tiling = TileSpec(size=8, overlap=2, mode="blended")
    assert_even(reports_of(lambda report: vae_core.decode(vae, latent(1, SIZE), progress=report, tiling=tiling)), 0.2)


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[store.MapStore]:
    """Every store that is made."""
    made: list[store.MapStore] = []

    class Watched(store.MapStore):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.device.type != "meta":
                made.append(self)

    monkeypatch.setattr(strips, "MapStore", Watched)
    return made


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("filing", [False, True], ids=["memory", "file"])
@pytest.mark.thorough
def test_what_progress_raises_ends_the_call(
    error: type[BaseException], filing: bool, vae: AutoencoderKL, threads: int, stores: list[store.MapStore]
) -> None:
    z, calls = latent(1, 32, 32), []
    budget = filing_budget(vae, z.shape) if filing else None

    def progress(step: vae_core.Progress) -> None:
        calls.append(step.done / step.total)
        if step.done > step.total / 2:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        vae_core.decode(vae, z, progress=progress, memory_budget=budget)
    assert sum(share > 0.5 for share in calls) == 1  # it is not asked again
    assert calls[-1] < 1
    assert not workers()
    (used,) = stores
    assert not used.lent
    assert (vae_core.decode(vae, z) - vae.decode_reference(z)).abs().max() < 1e-4  # and the next call works


def test_maps_are_gone_once_an_error_is_dealt_with(vae: AutoencoderKL, stores: list[store.MapStore]) -> None:
    buffers: list[weakref.ref[Tensor]] = []

    def progress(step: vae_core.Progress) -> None:
        buffers.extend(map(weakref.ref, stores[-1].lent))
        raise StoppedError

    with pytest.raises(StoppedError):
        vae_core.decode(vae, latent(1, SIZE), progress=progress)
    stores.clear()
    gc.collect()
    assert buffers and not any(buffer() is not None for buffer in buffers)


# What is left as it was.


def settings_of_torch() -> dict[str, Any]:
    in_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return {
        "threads": torch.get_num_threads(),
        "threads of a new thread": in_new_thread[0],
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "mkldnn": torch.backends.mkldnn.enabled,
        "precision": torch.get_float32_matmul_precision(),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("end", ["result", "error"])
def test_settings_of_torch_stay(end: str, vae: AutoencoderKL, threads: int) -> None:
    before = settings_of_torch()

    def progress(step: vae_core.Progress) -> None:
        if end == "error" and step.done > step.total / 2:
            raise StoppedError

    for _ in range(2):
        try:
            vae_core.decode(vae, latent(1, SIZE), progress=progress)
            vae_core.encode(vae, image(1, 2 * SIZE), progress=progress)
        except StoppedError:
            assert end == "error"
        assert settings_of_torch() == before


def test_the_model_and_its_input_stay(threads: int) -> None:
    vae = make(SMALL).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    z, x = latent(1, SIZE), image(1, 2 * SIZE)
    before = {
        name: (weight, weight.clone(), weight.stride(), weight.requires_grad)
        for name, weight in (*vae.named_parameters(), *vae.named_buffers())
    }
    attributes = {name: set(module.__dict__) for name, module in vae.named_modules()}
    z_before, x_before = z.clone(), x.clone()
    vae_core.decode(vae, z)
    vae_core.encode(vae, x)
    after = dict((*vae.named_parameters(), *vae.named_buffers()))
    assert after.keys() == before.keys()
    for name, (weight, values, stride, requires_grad) in before.items():
        assert after[name] is weight
        assert torch.equal(weight, values) and weight.stride() == stride and weight.requires_grad == requires_grad
    assert {name: set(module.__dict__) for name, module in vae.named_modules()} == attributes
    assert torch.equal(z, z_before) and torch.equal(x, x_before)


@pytest.mark.parametrize("layout", ["channels last", "transposed", "every second", "expanded"])
@torch.no_grad()
def test_inputs_of_any_layout(layout: str, vae: AutoencoderKL) -> None:
    z = {
        "channels last": latent(1, SIZE).contiguous(memory_format=torch.channels_last),
        "transposed": latent(1, SIZE).mT,
        "every second": latent(1, 2 * SIZE)[:, :, ::2, ::2],
        "expanded": latent(1, 1, 1).expand(2, 4, 9, 9),
    }[layout]
    assert (vae_core.decode(vae, z) - vae.decode_reference(z)).abs().max() < 1e-4


@torch.no_grad()
def test_two_calls_at_once(vae: AutoencoderKL, threads: int) -> None:
    latents = [latent(1, SIZE, seed=seed) for seed in range(4)]
    results: dict[int, Tensor] = {}

    def work(index: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(2):
            results[index] = vae_core.decode(vae, latents[index])

    calls = [threading.Thread(target=work, args=(index,)) for index in range(len(latents))]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    for index, z in enumerate(latents):
        assert (results[index] - vae.decode_reference(z)).abs().max() < 1e-4
    assert not workers()


@pytest.fixture(params=["device", "dtype", "deterministic"])
def global_state(request: pytest.FixtureRequest) -> Iterator[str]:
    """A setting of torch's that is chosen for all of the process."""
    if request.param == "device":
        torch.set_default_device("meta")
    elif request.param == "dtype":
        torch.set_default_dtype(torch.float64)
    else:
        torch.use_deterministic_algorithms(True)
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("transforms")
@pytest.mark.parametrize("kernels", ["winograd", "direct"])
@pytest.mark.thorough
def test_settings_of_torch_change_nothing(kernels: Any, global_state: str, vae: AutoencoderKL) -> None:
    with torch.device("cpu"):
        z, x = latent(1, SIZE).float(), image(1, 2 * SIZE).float()
    with vae_core.kernels(kernels):
        decoded, moments = vae_core.decode(vae, z, circular="x"), vae_core.encode(vae, x).parameters
        budget = vae_core.plan_decode(vae, z.shape).peak_bytes
        again = vae_core.decode(vae, z, circular="x", memory_budget=budget)
    assert {each.device.type for each in (decoded, moments, again)} == {"cpu"}
    assert {each.dtype for each in (decoded, moments, again)} == {torch.float32}
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    with vae_core.kernels(kernels):
        assert (decoded - vae_core.decode(vae, z, circular="x")).abs().max() < 1e-5
        assert (moments - vae_core.encode(vae, x).parameters).abs().max() < 1e-5
