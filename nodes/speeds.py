"""How fast this machine has been: what its last runs took, and what that says of one that is planned.

Kept in a file of the host's user folder, so that it is known after a restart too; without such a folder, in memory.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ..vae_core import Job
from ..vae_core.atomic import write_file
from ..vae_core.errors import in_one_line
from . import host

logger = logging.getLogger("seamless_vae")

FILE = "seamless_vae_speeds.json"
MOST_RUNS = 24  # that are remembered of one kind
NEAREST = 8  # that are asked, those of the most similar size
LEAST_SPREAD = 0.15  # of the estimate, to both sides: no two runs take the same time
LEAST_SECONDS = 0.05  # shorter runs tell more of the clock than of the machine
SAVED_EVERY = 10.0  # seconds, where many runs follow each other

Run = tuple[float, float]  # FLOPs, seconds


class Estimate(NamedTuple):
    """Seconds that a run will take: likely, and from `low` to `high` by what the last runs differed."""

    likely: float
    low: float
    high: float


_lock = threading.Lock()
_runs: dict[Path | None, dict[str, list[Run]]] = {}
_saved: dict[Path, float] = {}  # when each file was written last


def record(job: Job, seconds: float) -> None:
    """Remember what a run took."""
    if seconds < LEAST_SECONDS or job.plan.flops <= 0:
        return
    with _lock:
        place, runs = _known()
        runs.setdefault(kind_of(job), []).append((float(job.plan.flops), seconds))
        del runs[kind_of(job)][:-MOST_RUNS]
        now = time.monotonic()
        if place is None or now - _saved.get(place, -SAVED_EVERY) < SAVED_EVERY:
            return
        _saved[place] = now
        data = json.dumps(runs).encode()
        try:
            write_file(place, lambda file: file.write(data))
        except OSError as error:
            logger.debug("cannot remember how long runs take: %s", in_one_line(error))


def estimate(job: Job) -> Estimate | None:
    """What a run will probably take; None as long as no such run was made on this machine."""
    with _lock:
        runs = list(_known()[1].get(kind_of(job), ()))
    return estimated(runs, job.plan.flops)


def estimated(runs: Sequence[Run], flops: float) -> Estimate | None:
    """From runs of so many FLOPs and seconds, the seconds of one of `flops`."""
    if not runs or flops <= 0:
        return None
    nearest = sorted(runs, key=lambda run: abs(math.log(run[0] / flops)))[:NEAREST]
    found = sorted(seconds * flops / done for done, seconds in nearest)
    likely = median(found)
    # Fewer runs tell less; so do runs of quite another size.
    distance = abs(math.log2(median(run[0] for run in nearest) / flops))
    spread = likely * (LEAST_SPREAD + 0.3 / len(found) + 0.05 * distance)
    return Estimate(likely, max(0.0, min(found[0], likely - spread)), max(found[-1], likely + spread))


def kind_of(job: Job) -> str:
    """Runs whose speeds can be compared: of one half of the model, on one device, in one precision and way."""
    return f"{job.half.takes} {job.device} {str(job.dtype).removeprefix('torch.')} {job.way.name}"


def _known() -> tuple[Path | None, dict[str, list[Run]]]:
    """Where runs are remembered, and which are."""
    folder = host.user_directory()
    place = None if folder is None else folder / FILE
    if place not in _runs:
        _runs[place] = _read(place)
    return place, _runs[place]


def _read(place: Path | None) -> dict[str, list[Run]]:
    try:
        found = {} if place is None else json.loads(place.read_bytes())
        runs = {
            str(kind): [(float(flops), float(seconds)) for flops, seconds in each][-MOST_RUNS:]
            for kind, each in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # none yet, or a damaged one
        return {}
    return {
        kind: [run for run in each if all(math.isfinite(number) and number > 0 for number in run)]
        for kind, each in runs.items()
    }
