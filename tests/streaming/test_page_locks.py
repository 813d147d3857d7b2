"""Page-locked memory, by stand-ins for runtimes and accelerators that write down every call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from vae_core.streaming import devices, page_locks
from vae_core.streaming import store as store_module
from vae_core.streaming.page_locks import PageLocks, RuntimeLocks, TorchLocks
from vae_core.streaming.store import MapStore

KIB = 2**10
META = torch.device("meta")


def plain(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


class Recorded(PageLocks):
    """Locks everything, and knows what of it is alive."""

    def __init__(self) -> None:
        self.locked: list[weakref.ref[Tensor]] = []
        self.ended: list[weakref.ref[Tensor]] = []
        self.given_back = 0

    def make(self, size: int, make: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        data = make()
        self.locked.append(weakref.ref(data))
        return data, True

    def unlock(self, data: Tensor) -> None:
        self.ended.append(weakref.ref(data))

    def give_back(self) -> None:
        assert all(each() is None for each in self.ended), "memory that is still held cannot be given back"
        self.given_back += 1


def test_what_is_locked_is_unlocked_before_it_goes_and_given_back_after(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = Recorded()
    monkeypatch.setattr(store_module, "page_locks", lambda device: locks)
    store = MapStore(META, limit=0, cpu_limit=128 * KIB)
    kept, idle = (store.allocate((1, 16, 32, 32), torch.float32) for _ in range(2))
    assert kept.devices == {"cpu"} and len(locks.locked) == 2
    store.release(idle)
    del idle
    store.drop_free()
    assert locks.ended == locks.locked[1:] and locks.given_back == 1
    store.drop_free()
    assert locks.given_back == 1, "nothing was dropped"
    store.release(kept)
    del kept
    store.drop_free()
    assert len(locks.ended) == locks.given_back == 2


@pytest.mark.parametrize("code", [0, 2])
def test_a_refused_registration_leaves_no_error_behind(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: calls.append(("register", address, size)) or code,
        cudaHostUnregister=lambda address: calls.append(("unregister", address)) or code,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    locks = page_locks.page_locks(torch.device("cuda:0"))
    assert isinstance(locks, RuntimeLocks)
    monkeypatch.setattr(locks, "take_error", lambda: calls.append("take"))
    made = plain(8)
    data, locked = locks.make(8, lambda: made)
    assert data is made and locked == (code == 0)
    locks.unlock(data)
    locks.give_back()
    address = made.data_ptr()
    expected = [("register", address, 8), "take", ("unregister", address), "take"]
    assert calls == (expected if code else [each for each in expected if each != "take"])


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch with an accelerator of Intel's, whose page-locked memory is written down and given by the CPU."""
    seen = SimpleNamespace(pinned=[], emptied=0, refuses=False)

    def empty_host_cache() -> None:
        seen.emptied += 1

    def empty(size: int, dtype: torch.dtype, device: str, pin_memory: bool) -> Tensor:
        if seen.refuses:
            raise RuntimeError("Cannot access accelerator device when none is available.")
        seen.pinned.append(size)
        return torch.zeros(size, dtype=dtype, device=device)

    monkeypatch.setattr(
        page_locks,
        "torch",
        SimpleNamespace(
            accelerator=SimpleNamespace(
                current_accelerator=lambda: torch.device("xpu"), empty_host_cache=empty_host_cache
            ),
            empty=empty,
            uint8=torch.uint8,
        ),
    )
    return seen


@pytest.mark.parametrize("size, pinned", [(64 * KIB, True), (64 * KIB + 4, False), (48 * KIB, False), (1, True)])
def test_torch_is_asked_for_sizes_that_it_does_not_round_up(
    accelerator: SimpleNamespace, size: int, pinned: bool
) -> None:
    locks = page_locks.page_locks(torch.device("xpu:0"))
    assert isinstance(locks, TorchLocks)
    data, locked = locks.make(size, lambda: plain(size))
    assert (locked, accelerator.pinned) == (pinned, [size] if pinned else [])
    assert data.numel() == size and data.dtype == torch.uint8


def test_memory_that_torch_refuses_to_lock_is_memory_as_any(accelerator: SimpleNamespace) -> None:
    accelerator.refuses = True
    made = plain(64)
    assert TorchLocks().make(64, lambda: made) == (made, False)


def test_a_run_in_bands_gives_back_what_torch_keeps(accelerator: SimpleNamespace) -> None:
    store = MapStore(META, limit=0, cpu_limit=128 * KIB)
    store._locks = page_locks.page_locks(torch.device("xpu"))
    lent = store.allocate((1, 16, 32, 32), torch.float32)
    assert accelerator.pinned == [64 * KIB]
    store.release(lent)
    store.drop_free()
    assert accelerator.emptied == 1


@pytest.mark.parametrize("kind", ["cpu", "meta", "mps", "xpu", "hpu"])
def test_other_devices_lock_nothing_here(kind: str) -> None:
    """What has the CPU's memory, what is not torch's current accelerator, and what this machine does not have."""
    assert type(page_locks.page_locks(torch.device(kind))) is PageLocks


def test_a_torch_that_cannot_give_back_is_not_asked(
    accelerator: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(page_locks.torch.accelerator, "empty_host_cache")
    assert type(page_locks.page_locks(torch.device("xpu"))) is PageLocks
    monkeypatch.delattr(page_locks.torch, "accelerator")
    assert type(page_locks.page_locks(torch.device("xpu"))) is PageLocks


def test_the_device_module_is_asked_not_cuda_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of another name whose module has the runtime is locked by it."""
    monkeypatch.setattr(page_locks, "module_of", lambda device: SimpleNamespace(cudart=lambda: None))
    assert isinstance(page_locks.page_locks(torch.device("privateuseone")), RuntimeLocks)
    assert devices.module_of(torch.device("meta")) is None
