"""A short soak in a process of its own: nothing grows. `python tools/soak.py` goes on for as long as you like."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.append(str(TOOLS))  # last: `fuzz` is a package of the tests, too

from soak_samples import Sample, slope, verdict  # noqa: E402

SOAK = TOOLS / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.thorough
def test_nothing_grows() -> None:
    command = [sys.executable, str(SOAK), "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.endswith("nothing grew\n")


def hour(**changed: Callable[[float], float]) -> list[Sample]:
    """Samples of an hour, a minute apart; what grows for ten minutes and then stands still but for noise, or changes
    as a function of the hour says.
    """
    still = {"in_use": 300 << 20, "blocks": 900_000, "resident": 500 << 20, "peak": 1 << 30}
    still |= {"handles": 9, "threads": 7, "files": 0, "models": 0}
    samples = []
    for minute in range(61):
        warm = min(minute, 9) * (5 << 20)
        noise = {"in_use": warm + minute % 2 * (1 << 20), "blocks": warm // 512 + minute % 3 * 5000}
        noise |= {"resident": warm + minute % 3 * (4 << 20), "handles": minute % 5}
        of_this = {name: value + noise.get(name, 0) for name, value in still.items()}
        of_this |= {name: int(of_this[name] + change(minute / 60)) for name, change in changed.items()}
        samples.append(Sample(minute * 60.0, minute * 100, **of_this))
    return samples


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"in_use": lambda hour: hour * (2 << 20)}, []),
        ({"in_use": lambda hour: hour * (8 << 20)}, ["memory in use grew by "]),
        ({"in_use": lambda hour: (hour > 0.9) * (40 << 20)}, ["memory in use grew by "]),
        ({"blocks": lambda hour: hour * 10_000}, []),
        ({"blocks": lambda hour: hour * 60_000}, ["blocks of Python's grew by "]),
        ({"resident": lambda hour: hour * (20 << 20)}, []),
        ({"resident": lambda hour: hour * (60 << 20)}, ["resident memory grew by "]),
        ({"resident": lambda hour: (0.3 < hour < 0.9) * (90 << 20)}, []),  # fragments that were given back
        ({"handles": lambda hour: hour * 30}, ["handles grew from "]),
        ({"threads": lambda hour: hour * 4}, ["threads grew from 8 to "]),
        ({"threads": lambda hour: hour == 1}, []),  # one that was ending when it was looked at
        ({"files": lambda hour: hour > 0.5, "models": lambda hour: hour == 1}, ["1 files were left.", "1 models were"]),
    ],
)
def test_what_is_called_growth(changed: dict[str, Callable[[float], float]], found: list[str]) -> None:
    said = verdict(hour(**changed))
    assert len(said) == len(found)
    for sentence, start in zip(said, found, strict=True):
        assert sentence.startswith(start)


def test_the_slope_is_of_a_line() -> None:
    samples = [
        Sample(seconds, 0, (3 << 20) + int(seconds * 1000), 0, 0, 0, 0, 0, 0, 0) for seconds in (0.0, 10.0, 50.0)
    ]
    assert slope(samples, "in_use") == pytest.approx(3.6e6, rel=1e-4)


def test_a_run_that_is_too_short_shows_nothing() -> None:
    assert verdict(hour()[:3])[0].startswith("the run was too short")
