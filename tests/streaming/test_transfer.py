"""Transfers between CPU memory and a GPU, and what is asked of CUDA, by stand-ins that write down every call."""

from __future__ import annotations

import contextlib
import mmap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from given.passes import pass_inputs
from torch import nn

from vae_core.streaming import devices, memory, transfer
from vae_core.streaming.ledger import PlannedStore
from vae_core.streaming.maps import FeatureMap, PlannedMap
from vae_core.streaming.memory import available_bytes
from vae_core.streaming.options import Options
from vae_core.streaming.program import Attend
from vae_core.streaming.store import MapStore, Store
from vae_core.streaming.stored_attention import StoredAttention
from vae_core.streaming.transfer import _IN_FLIGHT, Transfers

CPU = torch.device("cpu")


class Stream:
    """Of a GPU that does nothing before it is waited for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending = 0
        self.most = 0

    def record_event(self) -> Stream:
        self.pending += 1
        self.most = max(self.most, self.pending)
        return self

    def wait_event(self, event: Stream) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:  # of an event or of the whole stream
        self.pending = max(0, self.pending - 1)


@pytest.fixture
def gpu() -> SimpleNamespace:
    """Transfers for a GPU whose memory is the CPU's, so that every map counts as lying on it."""
    streams = SimpleNamespace(current=Stream("current"), up=Stream("up"), down=Stream("down"))
    transfers = Transfers(CPU, torch.float32)
    transfers._module = SimpleNamespace(
        current_stream=lambda device: streams.current, stream=lambda stream: contextlib.nullcontext()
    )
    transfers._up, transfers._down = streams.up, streams.down
    streams.transfers = transfers
    return streams


def test_the_host_does_not_run_ahead_where_results_stay_on_the_device(gpu: SimpleNamespace) -> None:
    target = torch.zeros(1, 20, 3, 4)
    for row in range(20):
        gpu.transfers.download(torch.full((1, 1, 3, 4), float(row)), target[:, row : row + 1])
        assert gpu.current.pending <= _IN_FLIGHT
    assert gpu.current.most == _IN_FLIGHT + 1
    assert torch.equal(target[0, :, 0, 0], torch.arange(20.0))


def test_the_end_of_a_pass_waits_for_uploads_too(gpu: SimpleNamespace) -> None:
    gpu.up.record_event()
    gpu.down.record_event()
    gpu.transfers.finish()
    assert (gpu.up.pending, gpu.down.pending) == (0, 0)


def test_what_lies_on_the_device_is_not_copied_beside_it(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    def copy(pieces: list[torch.Tensor], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        copied.extend(pieces)
        return torch.zeros(pieces[0].shape)

    monkeypatch.setattr("vae_core.streaming.transfer.copied_to", copy)
    here, elsewhere = torch.ones(1, 2, 3, 4), torch.empty(1, 2, 3, 4, device="meta")
    arriving = gpu.transfers.upload([here[:, 1:]], [elsewhere])
    assert len(copied) == 1 and copied[0] is elsewhere
    assert arriving.event is gpu.up
    assert arriving.windows[0][0].data_ptr() == here[:, 1:].data_ptr()


def test_all_passes_share_two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(Stream("new")) or made[-1])
    transfer._streams.cache_clear()
    try:
        passes = [Transfers(torch.device("cuda:0"), torch.float32) for _ in range(3)]
    finally:
        transfer._streams.cache_clear()
    assert len(made) == 2 and all((each._up, each._down) == tuple(made) for each in passes)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="memory is asked of torch here")
def test_memory_that_the_system_refuses_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="MiB for feature maps cannot be allocated"):
        MapStore(CPU).allocate((1, 1, 2**60, 1), torch.float32)


KINDS: dict[str, tuple[SimpleNamespace, int | None, int | None]] = {
    "cuda": (
        SimpleNamespace(
            mem_get_info=lambda device: (100, 1000),
            memory_reserved=lambda device: 70,
            current_device=lambda: 0,
            memory_allocated=lambda device: 30,
        ),
        140,
        30,
    ),
    "xpu": (  # one whose driver does not say what is free
        SimpleNamespace(
            mem_get_info=lambda device: (_ for _ in ()).throw(RuntimeError("doesn't support querying")),
            memory_reserved=lambda device: 70,
            current_device=lambda: 0,
            memory_allocated=lambda device: 30,
            get_device_properties=lambda device: SimpleNamespace(total_memory=1000),
        ),
        970,
        30,
    ),
    "mps": (SimpleNamespace(recommended_max_memory=lambda: 100, current_allocated_memory=lambda: 30), 70, 30),
    "vulkan": (SimpleNamespace(), None, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_every_kind_of_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, free, allocated = KINDS[kind]
    monkeypatch.setattr(devices, "module_of", lambda device: module)
    assert available_bytes(torch.device(kind)) == free
    assert devices.allocated_bytes(torch.device(kind)) == allocated


def test_apples_memory_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(recommended_max_memory=lambda: 2**60, current_allocated_memory=lambda: 0)
    monkeypatch.setattr(devices, "module_of", lambda device: module)
    monkeypatch.setattr(memory, "available_on_cpu", lambda: 1000)
    assert available_bytes(torch.device("mps")) == 1000
    assert memory.offload_bytes(torch.device("mps")) == memory.offload_bytes(CPU) == 0
    assert memory.offload_bytes(torch.device("cuda")) == 700


@pytest.mark.parametrize(
    ("names", "streams"),
    [(("Stream", "current_stream", "stream"), True), (("Event",), False), (("Stream", "stream"), False), ((), False)],
)
def test_streams_where_a_kind_of_device_has_them(
    names: tuple[str, ...], streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(**dict.fromkeys(names))
    monkeypatch.setattr(devices, "module_of", lambda device: module)
    assert devices.with_streams(torch.device("xpu")) is (module if streams else None)
    assert devices.with_streams(CPU) is None
    if not streams:
        assert not Transfers(torch.device("xpu"), torch.float32).overlap


@pytest.mark.parametrize(
    ("answers", "good"),
    [
        (lambda including_emulation=True: including_emulation, False),
        (lambda including_emulation=True: True, True),
        (lambda: True, True),  # without the argument
        (lambda: False, False),
        (None, False),
    ],
)
def test_bfloat16_where_a_device_computes_in_it(answers: Any, good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace() if answers is None else SimpleNamespace(is_bf16_supported=answers)
    monkeypatch.setattr(devices, "module_of", lambda device: module)
    wanted = torch.bfloat16 if good else torch.float32
    assert Options(dtype="auto").precision(torch.float16, torch.device("xpu:0")) == wanted
    assert Options(dtype="auto").precision(torch.float16, CPU) == torch.float32


def test_a_device_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.numbered(CPU) == CPU
    assert devices.numbered(torch.device("mps")) == torch.device("mps:0")
    assert devices.numbered(torch.device("cuda:2")) == torch.device("cuda:2")
    monkeypatch.setattr(devices, "module_of", lambda device: SimpleNamespace(current_device=lambda: 3))
    assert devices.numbered(torch.device("xpu")) == torch.device("xpu:3")


def attention(positions: int, device: str, store: Store) -> StoredAttention:
    """The kernel of an attention over one row of positions, of 8 channels."""
    source = PlannedMap.whole((1, positions, 1, 8))
    step = Attend("map", "map", 8, nn.GroupNorm(1, 8), None)  # type: ignore[arg-type]
    on = torch.device(device)
    return StoredAttention(pass_inputs(step, source, source, strip_bytes=2**28, device=on, workers=1, store=store))


def test_keys_without_values_are_given_back() -> None:
    class Full(MapStore):
        def allocate(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> FeatureMap:
            if self.lent:
                raise MemoryError
            return super().allocate(shape, dtype)

    maps = Full(CPU)
    with pytest.raises(MemoryError):
        attention(16, "cpu", maps)
    assert not maps.lent
    maps.drop_free()
    assert maps.used == {"device": 0, "cpu": 0, "disk": 0}


@pytest.mark.parametrize("positions", [20_000, 2**15, 2**15 + 1])
def test_a_dry_run_counts_scores_for_keys_on_the_device(positions: int) -> None:
    kernel = attention(positions, "cuda", PlannedStore())
    assert kernel.queries == 4096
    # Up to 2**29 bytes of them may be made at once; beyond that, those of a block, twice.
    assert kernel.workspace()["scores"] >= (4 * 4096 * positions if positions <= 2**15 else 4 * 4096 * 2 * 8192)
