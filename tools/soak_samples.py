"""What a soak in another process looks at, and what may not grow (Linux: it reads /proc)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SETTLED = 600  # seconds after which memory is expected to stand still; half of a run that is shorter than 20 minutes
MOST_GROWN = 24  # MiB; a leaked image of the smallest is 0.05 MB, and an hour has thousands of rounds


@dataclass(frozen=True)
class Sample:
    """The host's process once everything is unloaded and what is free in its heap is given back.

    Attributes:
        seconds: since the first round.
        anonymous: bytes that it has and no file; `peak` is what it had at most since it started.
        handles: open files.
        files: files in its temporary folder.
        models: models of ours that exist.
    """

    seconds: float
    rounds: int
    anonymous: int
    peak: int
    handles: int
    threads: int
    files: int
    models: int

    @classmethod
    def of(cls, pid: int, seconds: float, rounds: int, files: int, models: int) -> Sample:
        place = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text(encoding="utf-8").splitlines())
        anonymous, peak = (int(status[name].split()[0]) * 1024 for name in ("RssAnon", "VmHWM"))
        handles, threads = (len(os.listdir(place / name)) for name in ("fd", "task"))
        return cls(round(seconds, 1), rounds, anonymous, peak, handles, threads, files, models)


def slope(samples: list[Sample]) -> float:
    """By how many MiB an hour memory grows: the line of least squares."""
    mean = sum(each.seconds for each in samples) / len(samples)
    spread = sum((each.seconds - mean) ** 2 for each in samples)
    return sum((each.seconds - mean) * each.anonymous for each in samples) / max(spread, 1e-9) * 3600 / 2**20


def verdict(samples: list[Sample]) -> list[str]:
    """A sentence for each thing that grew once the run had settled."""
    end = samples[-1].seconds
    settled = [each for each in samples if each.seconds >= min(SETTLED, end / 2)]
    if len(settled) < 4:
        return [f"the run was too short: {len(settled)} samples after it had settled."]
    quarter = max(1, len(settled) // 4)
    found, early, late = [], settled[:quarter], settled[-quarter:]
    grown = min(each.anonymous for each in late) - min(each.anonymous for each in early)
    # A short run has too few samples for a slope, and a long one must not grow by what a line through noise hides.
    if grown > MOST_GROWN << 20 or (end > 2 * SETTLED and slope(settled) > MOST_GROWN):
        found.append(f"memory grew by {grown / 2**20:.1f} MiB, {slope(settled):.1f} MiB an hour.")
    for name in ("handles", "threads"):
        first, last = (max(getattr(each, name) for each in part) for part in (early, late))
        least = min(getattr(each, name) for each in late)
        if least > first:
            found.append(f"{name} grew from {first} to {last}.")
    for name in ("files", "models"):
        left = max(getattr(each, name) for each in samples)
        if left:
            found.append(f"{left} {name} were left.")
    return found
