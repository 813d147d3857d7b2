"""Interruptions where a function of Python's own threads returns: nothing stays locked, and no thread stays."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest
from given.runs import workers

from vae_core.streaming.pool import Flag, WorkerPool


class Interruption:
    """Raises KeyboardInterrupt at the nth return of a function of `threading` in this thread, as a signal may."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        return self.step if frame.f_code.co_filename == threading.__file__ else None

    def step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "return":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.step


def interrupted(at: int) -> bool:
    interruption = Interruption(at)
    sys.settrace(interruption)
    try:
        with WorkerPool(3):
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interruption.left <= 0


def test_interruptions_at_every_return() -> None:
    at = 1
    while interrupted(at):
        latest = time.monotonic() + 5
        while workers() and time.monotonic() < latest:
            time.sleep(0.001)
        assert not workers(), at
        at += 1
    assert at > 10


@pytest.mark.parametrize("timeout", [0.0, 0.02, 0.2])
def test_a_flag_that_is_never_set(timeout: float) -> None:
    start = time.monotonic()
    assert not Flag().wait(timeout) and time.monotonic() - start >= timeout


def test_a_flag_wakes_all_who_wait_and_can_be_used_again() -> None:
    flag = Flag()
    for _ in range(3):
        woken: list[bool] = []
        threads = [threading.Thread(target=lambda woken=woken: woken.append(flag.wait(20))) for _ in range(4)]
        for thread in threads:
            thread.start()
        flag.set()
        flag.set()
        for thread in threads:
            thread.join(20)
        assert woken == [True] * 4 and flag.is_set()
        flag.clear()
        assert not flag.is_set() and not flag.wait(0)
