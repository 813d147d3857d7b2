"""Memory that runs out, and somebody who cancels: every step by fault injection."""

from __future__ import annotations

import errno
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from host.stand_in import Host, Pack
from node_makers import CLOSE, Makers

SHAPE = (1, 4, 80, 40)
ACCELERATOR = torch.device("meta")  # stands for a device whose memory is small: nothing is computed on it here


class Fault:
    """Lets the engine fail with an error as long as a condition on its arguments holds."""

    def __init__(self, pack: Pack, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self.ballast: Callable[[], torch.Tensor | None] = lambda: None
        self.error: Callable[[], BaseException] = torch.cuda.OutOfMemoryError
        self.fails: Callable[[dict[str, Any]], bool] = lambda call: True
        core = pack.module("vae_core")
        original = getattr(core, name)

        def faulty(model: Any, x: Any, **options: Any) -> Any:
            call = {**options, "device": model.device, "model": model}
            self.calls.append(call)
            ballast = torch.zeros(10)
            self.ballast = weakref.ref(ballast)
            if self.fails(call):
                raise self.error()
            return original(model, x, **options)

        monkeypatch.setattr(core, name, faulty)


@pytest.fixture
def fault(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(pack, monkeypatch, "decode")


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
def test_smaller_strips_first(
    host: Host, pack: Pack, make: Makers, fault: Fault, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    vae = make.vae()
    fault.fails = lambda call: False
    expected = decode(pack, make, vae)
    fault.calls.clear()
    fault.error, fault.fails = ERRORS[error], lambda call: call["tiling"] is None
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        image = decode(pack, make, vae)
    assert [None if call["tiling"] is None else call["tiling"].size for call in fault.calls] == [None, 4]
    torch.testing.assert_close(image, expected, **CLOSE)
    assert "Memory ran out as planned; now in smaller strips. The result is the same." in caplog.text


class CodedError(RuntimeError):
    """What newer torch raises for an error of a device, whose text need not say which."""

    error_code = 2


def test_new_hosts_know_codes_and_clear_the_device(new_host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    fault.error, fault.fails = lambda: CodedError("CUDA error"), lambda call: call["tiling"] is None
    decode(pack, make, make.vae())
    assert len(fault.calls) == 2 and new_host.cleared == 1


class Accelerator:
    """A VAE on a device that computes nothing here: what the engine is told, and zeros for what it would give."""

    def __init__(self, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vae, self.budgets = make.vae(), []
        self.vae.patcher.load_device = ACCELERATOR

        def told(model: Any, z: torch.Tensor, **options: Any) -> torch.Tensor:
            assert model.device == z.device == ACCELERATOR
            self.budgets.append(options["memory_budget"])
            return torch.zeros(z.shape[0], 3, 2 * z.shape[2], 2 * z.shape[3])

        monkeypatch.setattr(pack.module("vae_core"), "decode", told)


def test_the_engine_works_in_what_the_host_made_room_for(
    host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a share of what is free, for a host frees what it was asked for and no more."""
    on = Accelerator(pack, make, monkeypatch)
    decode(pack, make, on.vae)
    ((_, required),) = host.loads
    carried = 80 * 40 * (3 * 4 + 8) * 4  # the image, the latent
    assert on.budgets == [required - carried]
    host.free = required - 1000  # another program took some
    decode(pack, make, on.vae)
    assert on.budgets[1] == required - carried - 1000
    decode(pack, make, on.vae, memory_budget=0.25)
    assert on.budgets[2] == 2**28, "a person's budget is kept to"


def test_then_maps_in_a_file(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    vae = make.vae()
    fault.fails = lambda call: False
    expected = decode(pack, make, vae)
    fault.calls.clear()
    fault.fails = lambda call: call["memory_budget"] is None
    image = decode(pack, make, vae)
    budgets = [call["memory_budget"] for call in fault.calls]
    model, core = vae.first_stage_model.autoencoder, pack.module("vae_core")
    strips = core.TileSpec(size=4)
    peak = core.plan_decode(model, SHAPE, tiling=strips, memory_budget=2**60).peak_bytes
    assert budgets[:2] == [None, None] and len(budgets) == 3 and budgets[2] < peak
    assert core.plan_decode(model, SHAPE, tiling=strips, memory_budget=budgets[2]).places.disk > 0
    torch.testing.assert_close(image, expected, **CLOSE)


def test_then_the_cpu(host: Host, pack: Pack, make: Makers, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make.vae()
    fault.fails = lambda call: False
    expected = decode(pack, make, vae)
    weights = {id(weight) for weight in vae.first_stage_model.autoencoder.parameters()}

    autoencoder = pack.module("nodes.adopt").Autoencoder
    monkeypatch.setattr(autoencoder, "device", ACCELERATOR)  # where it is meant to run
    fault.calls.clear()
    fault.fails = lambda call: call["model"] is vae.first_stage_model.autoencoder
    image = decode(pack, make, vae)
    assert fault.calls[-1]["device"].type == "cpu" and fault.calls[-1]["tiling"] is None
    assert len(fault.calls) > 3
    torch.testing.assert_close(image, expected, **CLOSE)
    assert {id(weight) for weight in vae.first_stage_model.autoencoder.parameters()} == weights


def test_an_end_that_says_so(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    with pytest.raises(
        MemoryError, match="Out of memory: smaller strips, disk offload and the CPU were all tried; .* smaller image"
    ):
        decode(pack, make, make.vae())
    assert len(fault.calls) == 4, "as planned, in strips, and with two smaller budgets"
    assert fault.calls[2]["memory_budget"] > fault.calls[3]["memory_budget"]


def test_nothing_of_a_failed_attempt_is_held_in_the_next(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    held = []

    def fails(call: dict[str, Any]) -> bool:
        held.append(fault.ballast)
        gc.collect()
        return len(held) < 3 and not (len(held) > 1 and held[-2]() is not None)

    fault.fails = fails
    decode(pack, make, make.vae())
    assert len(held) == 3 and held[0]() is None and held[1]() is None


def test_a_budget_of_the_person_is_not_exceeded(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    fault.fails = lambda call: call["tiling"] is None or call["memory_budget"] == given
    given = 2**24
    decode(pack, make, make.vae(), memory_budget=given / 2**30)
    budgets = [call["memory_budget"] for call in fault.calls]
    assert len(budgets) == 3 and budgets[:2] == [given, given] and budgets[2] < given


def test_a_budget_that_is_too_small_says_what_is_needed(host: Host, pack: Pack, make: Makers) -> None:
    with pytest.raises(MemoryError, match="memory budget is too small.*Give at least"):
        decode(pack, make, make.vae(), memory_budget=0.0001)


def test_the_hosts_tiled_and_plain_calls_fall_back_too(host: Host, make: Makers, fault: Fault) -> None:
    vae, z = make.vae(), make.latent(*SHAPE)["samples"]
    fault.fails = lambda call: False
    expected = vae.decode(z)
    fault.fails = lambda call: call["tiling"] is None or call["tiling"].size > 4
    torch.testing.assert_close(vae.decode(z), expected, **CLOSE)
    torch.testing.assert_close(vae.decode_tiled(z, tile_x=16, tile_y=16, overlap=4), expected, **CLOSE)


def test_encoding_falls_back(host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, pixels = make.vae(), make.image(1, 160, 80, 3)
    expected = vae.encode(pixels)
    fault = Fault(pack, monkeypatch, "encode")
    fault.fails = lambda call: call["memory_budget"] is None
    torch.testing.assert_close(vae.encode(pixels), expected, **CLOSE)
    assert len(fault.calls) == 3


def test_other_errors_are_not_swallowed(host: Host, pack: Pack, make: Makers, fault: Fault) -> None:
    fault.error = lambda: RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        decode(pack, make, make.vae())
    assert len(fault.calls) == 1


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
    watch = pack.module("nodes.watch")
    monkeypatch.setattr(watch, "BAR_SECONDS", 0)
    monkeypatch.setattr(watch, "STATUS_SECONDS", 0)
    vae, latent = make.vae(), make.latent(3, 4, 40, 40)
    pack.run("SeamlessVAEDecode", samples=latent, vae=vae, unique_id="12")
    values = [value for value, *_ in host.progress]
    assert values == sorted(values) and values[-1] == 1000 and len(values) > 10
    assert {node for *_, node in host.progress} == {"12"}
    previews = [preview for _, _, preview, _ in host.progress if preview is not None]
    assert len(previews) == 1 and previews[0][0] == "JPEG" and previews[0][1].size == (240, 240)
    events = [data for name, data in host.events if name == "seamless_vae.status"]
    plan = pack.module("vae_core").plan_decode(vae.first_stage_model.autoencoder, (2, 4, 40, 40))
    for event in events:
        assert event["node"] == "12" and 0 < event["done"] <= event["total"]
        assert 1 <= event["pass"] <= event["passes"] == 2 * plan.passes
    passes = [event["pass"] for event in events]
    assert passes == sorted(passes) and passes[0] <= 2 and passes[-1] == 2 * plan.passes
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

    watch = pack.module("nodes.watch").Watch("1")
    monkeypatch.setattr(pack.module("nodes.watch").time, "monotonic", clock)
    watch.stage()
    for done in range(1, 401):
        watch(done, 400)
    assert 14 <= len(host.events) <= 4 * 4 + 1
    assert 35 <= len(host.progress) <= 42


def test_two_stages_share_one_bar(host: Host, pack: Pack, make: Makers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack.module("nodes.watch"), "BAR_SECONDS", 0)
    vae = make.vae()
    pack.run("SeamlessVAESwap", samples=make.latent(1, 4, 30, 30), from_vae=vae, to_vae=vae)
    values = [value for value, *_ in host.progress]
    assert values == sorted(values) and 700 in values and values[-1] == 1000
    assert len([1 for _, _, preview, _ in host.progress if preview is not None]) == 2
