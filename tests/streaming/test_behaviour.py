"""How the engine behaves beside its numbers: when it is taken, what it tells, and what it leaves behind."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vaes import fields, make

import vae_core
from vae_core import AutoencoderKL, MemoryBudgetError, NonFiniteError, TileSpec, TilingError
from vae_core.streaming import engine, store, winograd

CONFIG = fields(32, 32, layers_per_block=1)
SIZE = 24  # latent positions along a side: enough for the engine to take it

needs_fast_kernels = pytest.mark.skipif(not winograd.available(), reason="numba is not installed")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return make(CONFIG)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def latent(batch: int = 1, height: int = SIZE, width: int = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))


def image(batch: int = 1, height: int = 2 * SIZE, width: int = 2 * SIZE, seed: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def filing_budget(vae: AutoencoderKL, shape: tuple[int, ...]) -> int:
    """A budget under which maps go to a file."""
    free = vae_core.plan_decode(vae, shape).peak_bytes
    for tenths in range(9, 0, -1):
        budget = free * tenths // 10
        if vae_core.plan_decode(vae, shape, memory_budget=budget).file_bytes:
            return budget
    raise AssertionError("no budget sends maps to a file")


# Which way encode and decode take.


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    for name in ("encode", "decode"):
        real = getattr(engine, name)

        def spy(*args: Any, name: str = name, real: Callable = real, **kwargs: Any) -> Any:
            seen.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(engine, name, spy)
    return seen


@needs_fast_kernels
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_engine_runs(mode: Any, vae: AutoencoderKL, engine_calls: list[str]) -> None:
    with mode():
        decoded = vae.decode(latent()).sample
        moments = vae.encode(image()).latent_dist.parameters
        assert engine_calls == ["decode", "encode"]
        assert (decoded - vae.decode_plain(latent())).abs().max() < 1e-4
        assert (moments - vae.encode_plain(image())).abs().max() < 1e-4
        assert decoded.is_inference() == moments.is_inference() == (mode is torch.inference_mode)


@needs_fast_kernels
def test_frozen_weights_and_a_plain_input_need_no_gradients(engine_calls: list[str]) -> None:
    vae = make(CONFIG).requires_grad_(False)
    assert not vae.decode(latent()).sample.requires_grad
    assert engine_calls == ["decode"]


def test_gradients_flow_to_weights(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    vae.decode(latent()).sample.sum().backward()
    assert not engine_calls
    assert vae.decoder.conv_in.weight.grad is not None and vae.decoder.conv_in.weight.grad.abs().max() > 0
    vae.zero_grad()


def test_gradients_flow_to_the_input(engine_calls: list[str]) -> None:
    vae = make(CONFIG).requires_grad_(False)
    z = latent().requires_grad_()
    vae.decode(z).sample.sum().backward()
    assert not engine_calls
    assert z.grad is not None and z.grad.abs().max() > 0


@torch.no_grad()
def test_autocast_is_obeyed(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(latent()).sample.dtype == torch.bfloat16
    assert not engine_calls


@torch.no_grad()
def test_tracing_sees_the_modules(engine_calls: list[str]) -> None:
    vae = make(CONFIG).requires_grad_(False)  # weights become constants of the trace
    traced = torch.jit.trace(lambda z: vae.decode(z).sample, (latent(),), check_trace=False)
    assert not engine_calls
    other = latent(seed=7)
    assert (traced(other) - vae.decode_plain(other)).abs().max() < 1e-4


@torch.no_grad()
def test_compiling_sees_the_modules(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: vae.decode(z).sample, fullgraph=True, backend="eager")
    assert (compiled(latent()) - vae.decode_plain(latent())).abs().max() < 1e-4
    assert not engine_calls


class Marked(Tensor):
    """A kind of tensor of its own."""


@torch.no_grad()
def test_another_kind_of_tensor_stays_what_it_is(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    assert isinstance(vae.decode(latent().as_subclass(Marked)).sample, Marked)
    assert not engine_calls


@pytest.mark.xfail(reason="functorch's tensors are of torch's own class", strict=False)
@torch.no_grad()
def test_vmap(vae: AutoencoderKL) -> None:
    z = latent(batch=2)
    mapped = torch.vmap(lambda item: vae.decode(item[None]).sample[0])(z)
    assert (mapped - vae.decode_plain(z)).abs().max() < 1e-4


@pytest.mark.xfail(reason="tangents are not looked for", strict=False)
def test_forward_mode_gradients() -> None:
    vae = make(CONFIG).requires_grad_(False)
    with torch.autograd.forward_ad.dual_level():
        z = torch.autograd.forward_ad.make_dual(latent(), torch.ones_like(latent()))
        tangent = torch.autograd.forward_ad.unpack_dual(vae.decode(z).sample).tangent
    assert tangent is not None and tangent.abs().max() > 0


@torch.no_grad()
def test_plain_kernels_are_the_modules_themselves(vae: AutoencoderKL, engine_calls: list[str]) -> None:
    with vae_core.kernels("plain"):
        assert torch.equal(vae.decode(latent()).sample, vae.decode_plain(latent()))
        assert torch.equal(vae.encode(image()).latent_dist.parameters, vae.encode_plain(image()))
        with vae_core.kernels("auto"):
            pass
        vae.decode(latent())
    assert not engine_calls
    with pytest.raises(vae_core.ConfigError, match="fast"), vae_core.kernels("fast"):  # type: ignore[arg-type]
        pass


def test_a_choice_of_kernels_is_this_threads_own(vae: AutoencoderKL) -> None:
    seen = []
    with vae_core.kernels("plain"):
        other = threading.Thread(target=lambda: seen.append(engine.plain_kernels()))
        other.start()
        other.join()
    assert seen == [False]


# Progress.


def reports_of(run: Callable[[Callable[[int, int], None]], Any]) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    run(lambda done, total: reports.append((done, total)))
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
def test_progress_is_even_and_ends_at_its_total(batch: int, side: int, vae: AutoencoderKL, threads: int) -> None:
    z, x = latent(batch, side, side), image(batch, 2 * side, 2 * side)
    assert_even(reports_of(lambda report: vae_core.decode(vae, z, progress=report, tiling=TileSpec(size=4))), 0.05)
    assert_even(reports_of(lambda report: vae_core.encode(vae, x, progress=report, tiling=TileSpec(size=4))), 0.05)


@pytest.mark.xfail(reason="the number of tiles is not counted beforehand", strict=False)
def test_progress_of_blended_tiles(vae: AutoencoderKL) -> None:
    tiling = TileSpec(size=8, overlap=2, mode="blended")
    assert_even(reports_of(lambda report: vae_core.decode(vae, latent(), progress=report, tiling=tiling)), 0.2)


class StoppedError(Exception):
    pass


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[store.MapStore]:
    """Every store that is made."""
    made: list[store.MapStore] = []

    class Watched(store.MapStore):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.device.type != "meta":
                made.append(self)

    monkeypatch.setattr(engine, "MapStore", Watched)
    return made


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("seamless-vae")]


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("filing", [False, True], ids=["memory", "file"])
def test_what_progress_raises_ends_the_call(
    error: type[BaseException], filing: bool, vae: AutoencoderKL, threads: int, stores: list[store.MapStore]
) -> None:
    z, calls = latent(1, 32, 32), []
    budget = filing_budget(vae, z.shape) if filing else None

    def progress(done: int, total: int) -> None:
        calls.append(done / total)
        if done > total / 2:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        vae_core.decode(vae, z, progress=progress, memory_budget=budget)
    assert sum(share > 0.5 for share in calls) == 1  # it is not asked again
    assert calls[-1] < 1
    assert not workers()
    (used,) = stores
    assert not used._lent
    assert (vae_core.decode(vae, z) - vae.decode_plain(z)).abs().max() < 1e-4  # and the next call works


def test_maps_are_gone_once_an_error_is_dealt_with(vae: AutoencoderKL, stores: list[store.MapStore]) -> None:
    buffers: list[weakref.ref[Tensor]] = []

    def progress(done: int, total: int) -> None:
        buffers.extend(weakref.ref(buffer.data) for buffer in stores[-1]._lent.values())
        raise StoppedError

    with pytest.raises(StoppedError):
        vae_core.decode(vae, latent(), progress=progress)
    stores.clear()
    gc.collect()
    assert buffers and not any(buffer() is not None for buffer in buffers)


# Temporary files.


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_no_file_stays(vae: AutoencoderKL, temporary: Path) -> None:
    z = latent(1, 32, 32)
    budget, during = filing_budget(vae, z.shape), []

    def progress(done: int, total: int) -> None:
        during.append(os.listdir(temporary))

    result = vae_core.decode(vae, z, memory_budget=budget, progress=progress)
    assert (result - vae_core.decode(vae, z)).abs().max() < 1e-5
    if os.name == "posix":
        assert not any(during)  # without a name from the start
    gc.collect()
    assert not os.listdir(temporary)


def test_no_file_stays_after_an_error(vae: AutoencoderKL, temporary: Path) -> None:
    z = latent(1, 32, 32)

    def progress(done: int, total: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        vae_core.decode(vae, z, memory_budget=filing_budget(vae, z.shape), progress=progress)
    gc.collect()
    assert not os.listdir(temporary)


DECODE_FOR_EVER = """
import sys, time
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from test_behaviour import CONFIG, filing_budget, latent, make
import vae_core
from vae_core.streaming import store
def mapped(size, real=store._mapped_file):
    result = real(size)
    print("mapped", flush=True)
    return result
store._mapped_file = mapped
vae, z = make(CONFIG), latent(1, 32, 32)
vae_core.decode(vae, z, memory_budget=filing_budget(vae, z.shape), progress=lambda *_: time.sleep(0.2))
"""


@pytest.mark.skipif(os.name != "posix", reason="files without a name, and SIGKILL")
def test_no_file_stays_after_a_kill(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", DECODE_FOR_EVER, str(tests.parent), str(tests)]
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tests / "streaming"), str(tests), str(tests.parent)]),
    }
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert line.strip() == "mapped"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("seamless-vae")]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only there is room asked for beforehand")
def test_a_full_disk(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    z = latent(1, 32, 32)
    with pytest.raises(MemoryBudgetError, match=r"MiB of feature maps.*No space left on device.*TMPDIR"):
        vae_core.decode(vae, z, memory_budget=filing_budget(vae, z.shape))
    assert not workers()


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
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "precision": torch.get_float32_matmul_precision(),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("end", ["result", "error"])
def test_settings_of_torch_stay(end: str, vae: AutoencoderKL, threads: int) -> None:
    before = settings_of_torch()

    def progress(done: int, total: int) -> None:
        if end == "error" and done > total / 2:
            raise StoppedError

    for _ in range(2):
        try:
            vae_core.decode(vae, latent(), progress=progress)
            vae_core.encode(vae, image(), progress=progress)
        except StoppedError:
            assert end == "error"
        assert settings_of_torch() == before


def test_the_model_and_its_input_stay(threads: int) -> None:
    vae = make(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    z, x = latent(), image()
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
        "channels last": latent().contiguous(memory_format=torch.channels_last),
        "transposed": latent().mT,
        "every second": latent(1, 2 * SIZE, 2 * SIZE)[:, :, ::2, ::2],
        "expanded": latent(1, 1, 1).expand(2, 4, 9, 9),
    }[layout]
    assert (vae_core.decode(vae, z) - vae.decode_plain(z)).abs().max() < 1e-4


@torch.no_grad()
def test_two_calls_at_once(vae: AutoencoderKL, threads: int) -> None:
    latents = [latent(seed=seed) for seed in range(4)]
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
        assert (results[index] - vae.decode_plain(z)).abs().max() < 1e-4
    assert not workers()


# Numbers that are not finite.


def overflowing(scale: float) -> AutoencoderKL:
    """A half-precision model whose middle overflows for a large scale, and whose output does not."""
    vae = make(CONFIG)
    with torch.no_grad():
        vae.decoder.mid_block.resnets[0].conv2.weight.mul_(scale)  # type: ignore[union-attr, operator]
    return vae.half()


@torch.no_grad()
def test_an_overflow_in_half_precision_is_redone_wider(caplog: pytest.LogCaptureFixture) -> None:
    vae, z = overflowing(1e7**0.5 * 1e2), latent().half()
    assert not vae.decode_plain(z).isfinite().all()
    result = vae_core.decode(vae, z)
    assert result.dtype == torch.float16 and result.isfinite().all()
    assert "out of the range of float16" in caplog.text and "now run in float32" in caplog.text
    want = vae.float().decode_plain(z.float())
    assert (result.float() - want).abs().max() < 2e-2 * want.abs().max()


@torch.no_grad()
def test_half_precision_without_overflow_stays(caplog: pytest.LogCaptureFixture) -> None:
    vae, z = overflowing(1.0), latent().half()
    result = vae_core.decode(vae, z)
    assert result.dtype == torch.float16 and not caplog.text
    assert (result.float() - vae.float().decode_plain(z.float())).abs().max() < 2e-2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_input_that_is_not_finite(value: float, vae: AutoencoderKL) -> None:
    z, x = latent(), image()
    z[0, 0, 0, :3], x[0, 0, 0, :5] = value, value
    with pytest.raises(NonFiniteError, match=f"latent already holds 3 values .* of {z.numel()}"):
        vae_core.decode(vae, z)
    with pytest.raises(NonFiniteError, match=f"image already holds 5 values .* of {x.numel()}"):
        vae_core.encode(vae, x)


# Budgets.


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing(budget: int, vae: AutoencoderKL) -> None:
    for run in (
        lambda: vae_core.decode(vae, latent(), memory_budget=budget),
        lambda: vae_core.encode(vae, image(), memory_budget=budget),
        lambda: vae_core.plan_decode(vae, (1, 4, 8, 8), memory_budget=budget),
        lambda: vae_core.plan_encode(vae, (1, 3, 16, 16), memory_budget=budget),
    ):
        with pytest.raises(MemoryBudgetError, match=f"budget of {budget} bytes"):
            run()


def test_a_budget_that_is_too_small_tells_one_that_works(vae: AutoencoderKL, threads: int) -> None:
    z = latent(1, 32, 32)
    with pytest.raises(MemoryBudgetError, match=r"Give at least \d+ MiB") as caught:
        vae_core.decode(vae, z, memory_budget=10_000)
    least = int(str(caught.value).rpartition("at least ")[2].split()[0]) * 2**20
    plan = vae_core.plan_decode(vae, z.shape, memory_budget=least)
    assert plan.peak_bytes <= least
    with torch.no_grad():
        assert (vae_core.decode(vae, z, memory_budget=least) - vae.decode_plain(z)).abs().max() < 1e-4


def test_a_plan_follows_its_budget(vae: AutoencoderKL) -> None:
    shape = (1, 4, 96, 96)
    free = vae_core.plan_decode(vae, shape, memory_budget=2**40)
    assert free.store == "memory" and not free.file_bytes
    in_files = []
    for percent in range(100, 0, -5):
        budget = free.peak_bytes * percent // 100
        try:
            plan = vae_core.plan_decode(vae, shape, memory_budget=budget)
        except MemoryBudgetError:
            break
        assert plan.peak_bytes <= budget
        assert plan.arithmetic == free.arithmetic
        assert (plan.store == "memory") == (not plan.file_bytes)
        in_files.append(plan.file_bytes)
    assert len(in_files) > 3 and in_files[-1] > 0 == in_files[0]


def test_a_plan_grows_with_the_image(vae: AutoencoderKL) -> None:
    plans = [vae_core.plan_decode(vae, (1, 4, side, side), memory_budget=2**40) for side in (16, 32, 64, 128)]
    for field in ("peak_bytes", "arithmetic"):
        values = [getattr(plan, field) for plan in plans]
        assert values == sorted(values) and values[0] < values[-1]
    assert vae_core.plan_decode(vae, (3, 4, 64, 64)).arithmetic == 3 * plans[2].arithmetic


MEASURE_GROWTH = """
import sys, threading, time
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(2)
from vaes import fields, make
import vae_core
vae = make(fields(64, 128, 128, layers_per_block=1)).requires_grad_(False)
z = torch.randn(1, 4, 160, 160)
vae_core.decode(vae, z[..., :32, :32])  # compiled code and pools of threads are not working memory
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:")) * 1024
budget = None if sys.argv[3] == "none" else int(sys.argv[3])
plan = vae_core.plan_decode(vae, z.shape, memory_budget=budget)
output_bytes = 3 * (4 * 160) ** 2 * 4
before, peak, stop = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
vae_core.decode(vae, z, memory_budget=budget)
stop.set()
thread.join()
print(plan.peak_bytes, peak - before - output_bytes)
"""
# Beside what is planned: slack of the allocator in every thread, and what oneDNN keeps. Measured: 16 to 77 MiB.
UNPLANNED = 64 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("budget", [None, 256 * 2**20], ids=["unbounded", "under a budget"])
def test_the_planned_peak_is_the_true_one(budget: int | None) -> None:
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", MEASURE_GROWTH, str(tests.parent), str(tests), str(budget).lower()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    planned, true = map(int, result.stdout.split())
    assert true <= 1.15 * planned + UNPLANNED
    assert true >= 0.85 * planned - UNPLANNED


# Wrong arguments.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wrap": "z"}, "wrap is 'z'"),
        ({"wrap": None}, "wrap is None"),
        ({"wrap": "x", "tiling": TileSpec(size=8, overlap=2, mode="blended")}, "blended tiling cannot wrap"),
    ],
)
def test_wrong_wrapping(options: dict[str, Any], said: str, vae: AutoencoderKL) -> None:
    with pytest.raises(TilingError, match=said):
        vae_core.decode(vae, latent(), **options)
    with pytest.raises(TilingError, match=said):
        vae_core.encode(vae, image(), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size 0"),
        ({"size": -3}, "size -3"),
        ({"mode": "exactly"}, "'exactly'"),
        ({"size": None, "mode": "blended"}, "needs a tile size"),
        ({"size": 8, "overlap": 8, "mode": "blended"}, "overlap of 8"),
        ({"size": 8, "overlap": -1, "mode": "blended"}, "overlap of -1"),
    ],
)
def test_wrong_tiles(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TilingError, match=said):
        TileSpec(**options)


@pytest.mark.parametrize("dtype", ["float23", torch.int64, 16])
def test_a_precision_that_is_none(dtype: Any, vae: AutoencoderKL) -> None:
    with pytest.raises((vae_core.VAEError, TypeError, RuntimeError)):
        vae_core.decode(vae, latent(), dtype=dtype)


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 3, 8, 8), (0, 4, 8, 8), (1, 4, 0, 8)])
def test_wrong_shapes(shape: tuple[int, ...], vae: AutoencoderKL) -> None:
    with pytest.raises(vae_core.ShapeError, match="latent"):
        vae_core.decode(vae, torch.zeros(shape))
    with pytest.raises(vae_core.ShapeError, match="latent"):
        vae_core.plan_decode(vae, shape)  # type: ignore[arg-type]


# Blended tiles.


def test_blended_tiles_are_those_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    from pairs import images, latents, pair

    ours, theirs = pair("sd")
    theirs.tile_latent_min_size, theirs.tile_sample_min_size, theirs.tile_overlap_factor = 8, 64, 0.25
    theirs.enable_tiling()
    tiling = TileSpec(size=8, overlap=2, mode="blended")
    with torch.no_grad():
        want = theirs.decode(latents(1, 13, 19)).sample
        moments = theirs.encode(images(1, 104, 152)).latent_dist.parameters
    decoded = vae_core.decode(ours, latents(1, 13, 19), tiling=tiling)
    assert (decoded - want).abs().max() < 1e-5
    encoded = vae_core.encode(ours, images(1, 104, 152), tiling=tiling).parameters
    assert (encoded - moments).abs().max() < 1e-5
    assert (decoded - vae_core.decode(ours, latents(1, 13, 19))).abs().max() > 1e-3  # which exact tiles are not
