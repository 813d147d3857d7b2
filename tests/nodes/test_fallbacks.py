"""Out of memory, and cancelling: every step by fault injection."""

from __future__ import annotations

import errno
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from given.nodes import CLOSE, Makers
from host.stand_in import Host, Pack

SHAPE = (1, 4, 80, 40)
ACCELERATOR = torch.device("meta")  # stands for a device whose memory is small: nothing is computed on it here


class Fault:
    """Makes runs fail with an error as long as a condition on their job is true."""

    def __init__(self, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[Any] = []
        self.ballast: Callable[[], torch.Tensor | None] = lambda: None
        self.error: Callable[[], BaseException] = torch.cuda.OutOfMemoryError
        self.fails: Callable[[Any], bool] = lambda job: True
        job_class = pack.module("vae_core").Job
        original = job_class.run

        def faulty(job: Any, source: Any, out: Any = None, progress: Any = None) -> Any:
            self.jobs.append(job)
            ballast = torch.zeros(10)
            self.ballast = weakref.ref(ballast)
            if self.fails(job):
                raise self.error()
            return original(job, source, out, progress)

        monkeypatch.setattr(job_class, "run", faulty)

    @property
    def budgets(self) -> list[int | None]:
        return [job.options.memory_budget for job in self.jobs]


@pytest.fixture
def fault(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(pack, monkeypatch)


def untiled(job: Any) -> bool:
    return job.options.tiling is None


def unlimited(job: Any) -> bool:
    return job.options.memory_budget is None


def decode(pack: Pack, make: Makers, vae: Any, **options: Any) -> torch.Tensor:
    node = "SeamlessVAEDecodeTiled" if options else "SeamlessVAEDecode"
    return pack.run(node, samples=make.latent(*SHAPE), vae=vae, **options)[0]


ERRORS = {
    "cuda": torch.cuda.OutOfMemoryError,
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    "python": MemoryError,
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.thorough
def test_smaller_strips_first(
    host: Host, pack: Pack, make: Makers, fault: Fault, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    vae = make.vae()
    fault.fails = lambda job: False
    expected = decode(pack, make, vae)
    fault.jobs.clear()
    fault.error, fault.fails = ERRORS[error], untiled
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        image = decode(pack, make, vae)
    assert [None if untiled(job) else job.options.tiling.size for job in fault.jobs] == [None, 4]
    torch.testing.assert_close(image, expected, **CLOSE)
    assert "Memory ran out in the first attempt; now in smaller strips. The result is the same." in caplog.text


class CodedError(RuntimeError):
    """What newer torch raises for an error of a device, whose text need not say which."""

    error_code = 2


def test_new_hosts_know_codes_and_clear_the_device(new_host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    fault.error, fault.fails = lambda: CodedError("CUDA error"), untiled
    decode(pack, make, make.vae())
    assert len(fault.jobs) == 2 and new_host.cleared == 1


def test_a_job_works_in_what_the_host_made_room_for(
    host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator that computes nothing here. Another program may have taken some of what the host freed."""
    vae, jobs = make.vae(), []
    vae.patcher.load_device = ACCELERATOR

    def run(job: Any, source: torch.Tensor, out: torch.Tensor, progress: Any) -> None:
        assert job.device == ACCELERATOR and source.device.type == "cpu"
        assert out.shape == job.output_shape and out.movedim(1, -1).is_contiguous()
        jobs.append(job)
        out.zero_()

    monkeypatch.setattr(pack.module("vae_core").Job, "run", run)
    decode(pack, make, vae)
    ((_, required),) = host.loads
    assert jobs[0].options.memory_budget is None and jobs[0].bytes.device == required > jobs[0].plan.peak_bytes
    host.free = required - 1000
    decode(pack, make, vae)
    assert jobs[1].bytes.device <= host.free and host.loads[1][1] == required
    decode(pack, make, vae, memory_budget=0.25)
    assert jobs[2].options.memory_budget == 2**28, "the user's budget is kept to"


@pytest.mark.thorough
def test_then_feature_maps_on_disk(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    vae = make.vae()
    fault.fails = lambda job: False
    expected = decode(pack, make, vae)
    fault.jobs.clear()
    fault.fails = unlimited
    image = decode(pack, make, vae)
    assert len(fault.jobs) == 3 and [unlimited(job) for job in fault.jobs] == [True, True, False]
    strips, last = fault.jobs[1:]
    assert last.plan.places.disk > 0 == strips.plan.places.disk and last.bytes.device < strips.bytes.device
    torch.testing.assert_close(image, expected, **CLOSE)


@pytest.mark.thorough
def test_then_the_cpu(host: Host, pack: Pack, make: Makers, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make.vae()
    fault.fails = lambda job: False
    expected = decode(pack, make, vae)
    weights = {id(weight) for weight in vae.first_stage_model.autoencoder.parameters()}
    monkeypatch.setattr(pack.module("nodes.autoencoder").Autoencoder, "device", ACCELERATOR)  # where it should run
    fault.jobs.clear()
    host.loads.clear()
    fault.fails = lambda job: job.device == ACCELERATOR
    image = decode(pack, make, vae)
    assert len(fault.jobs) > 3 and len(host.loads) == len(fault.jobs) - 1, "nothing is brought to it for the CPU"
    assert fault.jobs[-1].device.type == "cpu" and untiled(fault.jobs[-1])
    torch.testing.assert_close(image, expected, **CLOSE)
    assert {id(weight) for weight in vae.first_stage_model.autoencoder.parameters()} == weights


@pytest.mark.thorough
def test_the_last_error_says_so(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    with pytest.raises(
        MemoryError, match="Out of memory: smaller strips, disk offload and the CPU were all tried; .* smaller image"
    ):
        decode(pack, make, make.vae())
    assert len(fault.jobs) == 4, "the first attempt, in strips, and with two smaller budgets"
    assert fault.jobs[2].options.memory_budget > fault.jobs[3].options.memory_budget


@pytest.mark.thorough
def test_nothing_of_a_failed_attempt_is_held_in_the_next(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    held = []

    def fails(job: Any) -> bool:
        held.append(fault.ballast)
        gc.collect()
        return len(held) < 3 and not (len(held) > 1 and held[-2]() is not None)

    fault.fails = fails
    decode(pack, make, make.vae())
    assert len(held) == 3 and held[0]() is None and held[1]() is None


@pytest.mark.thorough
def test_the_users_budget_is_not_exceeded(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    given = 2**24
    fault.fails = lambda job: untiled(job) or job.options.memory_budget == given
    decode(pack, make, make.vae(), memory_budget=given / 2**30)
    *first, last = fault.budgets
    assert first == [given, given] and last is not None and last < given


def test_a_budget_that_is_too_small_says_what_is_needed(host: Host, pack: Pack, make: Makers) -> None:
    with pytest.raises(MemoryError, match="memory budget is too small.*Give at least"):
        decode(pack, make, make.vae(), memory_budget=0.0001)


@pytest.mark.thorough
def test_the_hosts_tiled_and_plain_calls_fall_back_too(host: Host, make: Makers, fault: Fault) -> None:
    vae, z = make.vae(), make.latent(*SHAPE)["samples"]
    fault.fails = lambda job: False
    expected = vae.decode(z)
    fault.fails = lambda job: untiled(job) or job.options.tiling.size > 4
    torch.testing.assert_close(vae.decode(z), expected, **CLOSE)
    torch.testing.assert_close(vae.decode_tiled(z, tile_x=16, tile_y=16, overlap=4), expected, **CLOSE)


@pytest.mark.thorough
def test_encoding_falls_back(host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, pixels = make.vae(), make.image(1, 160, 80, 3)
    expected = vae.encode(pixels)
    fault = Fault(pack, monkeypatch)
    fault.fails = unlimited
    torch.testing.assert_close(vae.encode(pixels), expected, **CLOSE)
    assert len(fault.jobs) == 3


def test_other_errors_are_not_swallowed(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    fault.error = lambda: RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        decode(pack, make, make.vae())
    assert len(fault.jobs) == 1


# Cancelling.


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cancelling_passes_through(host: Host, pack: Pack, make: Makers, after: int) -> None:
    vae, latent = make.vae(), make.latent(1, 4, 64, 64)
    decoded = pack.run("SeamlessVAEDecode", samples=latent, vae=vae)[0]
    assert len(host.progress) > 1
    host.progress.clear()
    host.cancel_after = after
    with pytest.raises(host.interrupt):
        pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    assert len(host.progress) <= after
    torch.testing.assert_close(pack.run("SeamlessVAEDecode", samples=latent, vae=vae)[0], decoded, rtol=0, atol=0)


def test_cancelling_a_core_node(host: Host, make: Makers) -> None:
    vae, z = make.vae(), make.latent(1, 4, 64, 64)["samples"]
    host.cancel_after = 3
    with pytest.raises(host.interrupt):
        vae.decode(z)


# Progress.


def test_progress_and_status(host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
    status = pack.module("nodes.status")
    monkeypatch.setattr(status, "BAR_SECONDS", 0)
    monkeypatch.setattr(status, "STATUS_SECONDS", 0)
    vae, latent = make.vae(), make.latent(3, 4, 40, 40)
    pack.run("SeamlessVAEDecode", samples=latent, vae=vae, unique_id="12")
    values = [value for value, *_ in host.progress]
    assert values == sorted(values) and values[-1] == 1000 and len(values) > 10
    assert {node for *_, node in host.progress} == {"12"}
    previews = [preview for _, _, preview, _ in host.progress if preview is not None]
    assert [(kind, image.size) for kind, image, _ in previews] == [("JPEG", (240, 240)), ("JPEG", (80, 80))]
    events = [data for name, data in host.events if name == "seamless_vae.status"]
    plan = pack.module("vae_core").plan_decode(vae.first_stage_model.autoencoder, (3, 4, 40, 40))
    for event in events:
        assert event.keys() == pack.module("nodes.answers").StatusEvent.__annotations__.keys()
        assert event["node"] == "12" and 0 < event["done"] <= event["total"] == plan.flops
        assert 1 <= event["pass"] <= event["passes"] == plan.passes
        assert [event[each] for each in ("width", "height", "batch")] == [80, 80, 3]
    passes = [event["pass"] for event in events]
    assert passes == sorted(passes) and passes[0] <= 2 and passes[-1] == plan.passes
    assert events[-1]["seconds_left"] == 0


def test_a_core_node_is_named_by_the_host(host: Host, make: Makers) -> None:
    make.vae().decode(make.latent()["samples"])
    assert {node for *_, node in host.progress} == {"7"}
    assert host.events[0][1]["node"] == "7"


def test_status_at_most_four_times_a_second(
    host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    status = pack.module("nodes.status")
    reporter = status.NodeStatus("1")
    monkeypatch.setattr(status.time, "monotonic", clock)
    reporter.stage()
    for done in range(1, 401):
        reporter(pack.module("vae_core").Progress(done, 400, 1, 1))
    assert 14 <= len(host.events) <= 4 * 4 + 1
    assert 35 <= len(host.progress) <= 42


def test_two_stages_share_one_bar(host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack.module("nodes.status"), "BAR_SECONDS", 0)
    vae = make.vae()
    pack.run("SeamlessVAESwap", samples=make.latent(1, 4, 30, 30), from_vae=vae, to_vae=vae)
    values = [value for value, *_ in host.progress]
    assert values == sorted(values) and 700 in values and values[-1] == 1000
    previews = [(value, preview[1]) for value, _, preview, _ in host.progress if preview is not None]
    # The latent; the image, once it is decoded; the image that is encoded.
    assert [image.size for _, image in previews] == [(240, 240), (60, 60), (60, 60)]
    decoded, encoded = (np.asarray(image) for _, image in previews[1:])
    assert previews[1][0] == 700 and np.array_equal(decoded, encoded)
