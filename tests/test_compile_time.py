"""The seconds that numba compiles, told apart from those of a run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from vae_core.compile_time import compile_time


@pytest.fixture
def function() -> Callable[[int], int]:
    numba = pytest.importorskip("numba")

    @numba.njit
    def inner(number: int) -> int:
        return number + 1

    @numba.njit
    def outer(number: int) -> int:
        return inner(number) * 2

    return outer


def test_it_is_what_compiling_takes_and_nothing_else(function: Callable[[int], int]) -> None:
    began = time.monotonic()
    with compile_time() as compiled:
        assert compiled() == 0
        function(1)
        took = compiled()
        assert 0 < took <= time.monotonic() - began, "functions that compile each other count once"
        time.sleep(0.05)
        function(2)
        assert compiled() == took
    function(1.5)  # type: ignore[arg-type]
    assert compiled() == took, "what is compiled afterwards is not counted"


def test_other_threads_count(function: Callable[[int], int]) -> None:
    with compile_time() as compiled:
        thread = threading.Thread(target=function, args=(1,))
        thread.start()
        thread.join()
        assert compiled() > 0


@pytest.mark.parametrize("modules", [{"numba": None}, {"numba": object(), "numba.core.event": None}])
def test_without_a_numba_that_says_so_it_is_zero(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with compile_time() as compiled:
        assert compiled() == 0


def test_what_is_raised_goes_on() -> None:
    with pytest.raises(KeyError), compile_time():
        raise KeyError
