"""Threads for strips: starts that fail, interruptions at any moment, and everybody's number of threads."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest
import torch
from given.inputs import latent
from given.runs import workers

import vae_core
from vae_core import AutoencoderKL
from vae_core.streaming import internals, pool
from vae_core.streaming.kernel import Layout, Strip, cut
from vae_core.streaming.pool import WorkerPool, run_each, run_strips

ROOT = Path(__file__).resolve().parents[2]


class Squares:
    """A kernel of numbers."""

    parallel: ClassVar[bool] = True

    def __init__(self, count: int = 12, fails_at: int | None = None) -> None:
        self.layout = Layout(cut(1, 1), cut(count, 1), cut(1, 1))
        self.fails_at = fails_at
        self.computing = 0
        self.closed = False

    def compute(self, strip: Strip) -> int:
        assert not self.closed, "a strip is computed after the pass"
        if strip.rows[0] == self.fails_at:
            raise ZeroDivisionError
        return strip.rows[0] ** 2

    def flops(self, strip: Strip) -> int:
        return 1


def run(count: int, kernel: Any = None, advance: Callable[[int], None] = lambda flops: None) -> list[Any]:
    kernel = kernel or Squares()
    try:
        with WorkerPool(count) as workers:
            return run_strips(kernel, workers, advance)
    finally:
        kernel.closed = True


def numbers_of_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    pool.missing_threads.reset()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    try:
        assert not workers()
        assert torch.get_num_threads() == 2
        assert numbers_of_new_thread() == 2
    finally:
        torch.set_num_threads(before)


WANTED = [row**2 for row in range(12)]


class Without(list[Any]):
    """A list for which there is no memory, from the n-th change on or at that one alone."""

    def __init__(self, nth: int, once: bool) -> None:
        super().__init__()
        self.left, self.once = nth, once

    def _changes(self) -> None:
        self.left -= 1
        if self.left == 0 or (self.left < 0 and not self.once):
            raise MemoryError

    def append(self, value: Any) -> None:
        self._changes()
        super().append(value)

    def remove(self, value: Any) -> None:
        self._changes()
        super().remove(value)


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("name", ["at_work", "errors", "computed"])
@pytest.mark.parametrize("fails_at", [None, 4])
def test_a_worker_has_no_memory_to_say_how_it_ends(
    fails_at: int | None, name: str, nth: int, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = pool._InThreads.__init__

    def broken(self: Any, *given: Any) -> None:
        begin(self, *given)
        setattr(self, name, Without(nth, once))

    monkeypatch.setattr(pool._InThreads, "__init__", broken)
    with contextlib.suppress(MemoryError, ZeroDivisionError):
        assert run(3, Squares(fails_at=fails_at)) == WANTED


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_results_are_in_the_order_of_strips(count: int) -> None:
    done: list[int] = []
    assert run(count, advance=done.append) == WANTED
    assert sum(done) == 12


@pytest.mark.parametrize("fails_at", range(12))
def test_an_error_of_a_strip_is_raised(fails_at: int) -> None:
    with pytest.raises(ZeroDivisionError):
        run(3, Squares(fails_at=fails_at))


# Starts that fail.


@pytest.fixture
def failing_starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool, Exception], None]:
    def arrange(first: int, once: bool, error: Exception) -> None:
        real, started = threading.Thread.start, [0]

        def start(thread: threading.Thread) -> None:
            started[0] += 1
            if started[0] == first or (started[0] > first and not once):
                raise error
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)

    return arrange


@pytest.mark.parametrize("once", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize("first", range(1, 8))
@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), OSError(11, "Resource temporarily unavailable")]
)
def test_the_nth_start_fails(
    error: Exception, first: int, once: bool, failing_starts: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    failing_starts(first, once, error)
    numbers: list[int] = []
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        for _ in range(2):  # warned of once
            assert run(4, advance=lambda flops: numbers.append(torch.get_num_threads())) == WANTED
    monkeypatch.undo()
    (record,) = caplog.records
    assert "ulimit -u" in record.getMessage()
    if first <= 5:  # four workers, and one thread that torch might start
        assert numbers[0] == 1, "OpenMP ends the process where it cannot start a thread"


def test_the_result_is_the_same_without_threads(vae: AutoencoderKL, failing_starts: Any, monkeypatch: Any) -> None:
    z = latent(1, 24)
    wanted = vae_core.decode(vae, z)
    failing_starts(1, False, RuntimeError("can't start new thread"))
    found = vae_core.decode(vae, z)
    monkeypatch.undo()
    assert (found - wanted).abs().max() < 1e-5
    assert torch.get_num_threads() == 2


# Interruptions.


class Interruption:
    """Raises KeyboardInterrupt at the nth instruction of the pool's code in this thread."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.came = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != pool.__file__ or frame.f_code.co_name in {"__del__", "_tell_to_end"}:
            return None
        frame.f_trace_opcodes = True
        return self.step

    def step(self, frame: FrameType, event: str, _: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.came = True
            sys.settrace(None)
            raise KeyboardInterrupt
        return self.step


def interrupted(at: int) -> bool:
    """Whether there was an nth instruction to be interrupted at."""
    interruption = Interruption(at)
    kernel = Squares(4)
    sys.settrace(interruption)
    try:
        run(2, kernel)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interruption.came


@pytest.mark.parametrize("where", ["start", "work"])
def test_an_interruption_of_a_wait_is_an_interruption(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:  # as Python's `Event.wait` does, if one comes while it takes its lock again
        error = RuntimeError("release unlocked lock")
        error.__context__ = KeyboardInterrupt()
        raise error

    if where == "start":
        monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(KeyboardInterrupt):
        run(2, advance=fail)


def check_interruptions(step: int) -> None:
    at = 1
    while interrupted(at):
        latest = time.monotonic() + 5
        while workers() and time.monotonic() < latest:  # forgotten just before its end, a pool does not wait
            time.sleep(0.001)
        assert not workers(), at
        assert torch.get_num_threads() == 2
        at += step
    assert at > 200  # the instructions were seen
    assert numbers_of_new_thread() == 2
    assert run(2) == WANTED


@pytest.mark.parametrize("number_is_each_threads_own", [True, False], ids=["own", "default"])
def test_interruptions_at_every_instruction(number_is_each_threads_own: bool, monkeypatch: Any) -> None:
    if not number_is_each_threads_own:
        monkeypatch.setattr(internals, "thread_setters", list)
    check_interruptions(step=5)


@pytest.mark.slow
@pytest.mark.parametrize("number_is_each_threads_own", [True, False], ids=["own", "default"])
def test_interruptions_at_every_single_instruction(number_is_each_threads_own: bool, monkeypatch: Any) -> None:
    if not number_is_each_threads_own:
        monkeypatch.setattr(internals, "thread_setters", list)
    check_interruptions(step=1)


# Numbers of threads.


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the default is another for a moment")
def test_threads_that_others_start_meanwhile_keep_their_own_number() -> None:
    if not internals.thread_setters():
        pytest.skip("this torch has no number of threads for one thread alone")
    wrong: list[int] = []
    stop = threading.Event()

    def start_others() -> None:
        while not stop.is_set():
            thread = threading.Thread(target=lambda: wrong.append(torch.get_num_threads()))
            thread.start()
            thread.join()

    others = threading.Thread(target=start_others)
    others.start()
    for _ in range(50):
        assert run(4) == WANTED
    stop.set()
    others.join()
    assert len(wrong) > 50 and set(wrong) == {2}


@pytest.mark.parametrize("own", [True, False], ids=["own", "default"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_number_for_this_thread_alone(count: int, own: bool, monkeypatch: Any) -> None:
    if not own:
        monkeypatch.setattr(internals, "thread_setters", list)
    found: list[int] = []

    def work() -> None:
        internals.set_threads_of_this_thread(count)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [count]
    assert numbers_of_new_thread() == 2


def test_workers_use_one_thread_each() -> None:
    class Asks(Squares):
        def compute(self, strip: Strip) -> int:
            return torch.get_num_threads() if threading.current_thread().name.startswith("seamless") else 1

    assert set(run(3, Asks())) == {1}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_work_that_is_shared(count: int, threads: int) -> None:
    done: list[int] = []
    with WorkerPool(threads) as pool:
        run_each(pool, done.append, count)
        assert sorted(done) == list(range(count))
        if count:
            with pytest.raises(ZeroDivisionError):
                run_each(pool, lambda number: number // 0, count)
