"""What a soak looks at, and what may not grow (Linux: it reads /proc)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Seconds and rounds after which memory is expected to stand still, or half of a run's that is shorter than twice those.
# Before, each kind of round is run for the first time with each of its options, and libraries keep what they load then:
# in two runs of a real host, of 72 and 44 minutes, steps became rarer until the two-thousandth round.
SETTLED, SETTLED_ROUNDS = 600, 2000
# Between the first and the last samples of a run that has settled, or by a line through all of them an hour.
MOST_IN_USE = 4  # MiB; a leaked image of the smallest is 0.05 MB, and an hour has thousands of rounds
MOST_BLOCKS = 20_000  # a leaked object a round would be tens of thousands in an hour
MOST_RESIDENT = 24  # MiB; fragments of the allocators are in it


@dataclass(frozen=True)
class Sample:
    """A process once everything is unloaded and what is free in its heap is given back.

    Attributes:
        seconds: since the first round.
        in_use: bytes that were allocated from the C library and not freed (`given.in_use`).
        blocks: of Python's allocator that are not free.
        resident: bytes that it has and no file, with what its allocators keep of freed memory.
        peak: what it had at most since it started.
        handles: open files.
        files: files in its temporary folder.
        models: models of ours that exist and should not.
    """

    seconds: float
    rounds: int
    in_use: int
    blocks: int
    resident: int
    peak: int
    handles: int
    threads: int
    files: int
    models: int

    @classmethod
    def of(
        cls, pid: int, seconds: float, rounds: int, *, in_use: int, blocks: int, temporary: Path, models: int
    ) -> Sample:
        place = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text(encoding="utf-8").splitlines())
        resident, peak = (int(status[name].split()[0]) * 1024 for name in ("RssAnon", "VmHWM"))
        handles, threads = (len(os.listdir(place / name)) for name in ("fd", "task"))
        files = sum(each.is_file() for each in temporary.rglob("*"))
        return cls(round(seconds, 1), rounds, in_use, blocks, resident, peak, handles, threads, files, models)


def slope(samples: list[Sample], name: str) -> float:
    """By how much something grows in an hour: the line of least squares."""
    mean = sum(each.seconds for each in samples) / len(samples)
    spread = sum((each.seconds - mean) ** 2 for each in samples)
    return sum((each.seconds - mean) * getattr(each, name) for each in samples) / max(spread, 1e-9) * 3600


def verdict(samples: list[Sample]) -> list[str]:
    """A sentence for each thing that grew once the run had settled.

    What is in use may not grow by either measure. What is resident may not grow from floor to floor: allocators keep
    fragments for a while and give them back, which a line through all samples takes for growth.
    """
    end, rounds = samples[-1].seconds, samples[-1].rounds
    settled = [
        each
        for each in samples
        if each.seconds >= min(SETTLED, end / 2) and each.rounds >= min(SETTLED_ROUNDS, rounds / 2)
    ]
    if len(settled) < 4:
        return [f"the run was too short: {len(settled)} samples after it had settled."]
    quarter = max(1, len(settled) // 4)
    found, early, late = [], settled[:quarter], settled[-quarter:]
    # A short run has too few samples for a slope, and a long one must not grow by what floors hide.
    long = end > 2 * SETTLED
    for name, what, most, unit in (
        ("in_use", "memory in use", MOST_IN_USE, 2**20),
        ("blocks", "blocks of Python's", MOST_BLOCKS, 1),
        ("resident", "resident memory", MOST_RESIDENT, 2**20),
    ):
        grown = (min(getattr(each, name) for each in late) - min(getattr(each, name) for each in early)) / unit
        by_line = slope(settled, name) / unit
        if grown > most or (long and name != "resident" and by_line > most):
            of = " MiB" if unit > 1 else ""
            found.append(f"{what} grew by {grown:.1f}{of}, by a line {by_line:.1f}{of} an hour.")
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
