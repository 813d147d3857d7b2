"""How fast this machine has been: what its last runs took, and what that says of one that is planned.

Kept in a file of the host's user folder, so that it is known after a restart too; without such a folder, in memory.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ..vae_core import Job
from ..vae_core.atomic import write_file
from ..vae_core.compile_time import compile_time
from ..vae_core.errors import in_one_line
from ..vae_core.regular_files import read_regular
from ..vae_core.units import MIB
from . import host

logger = logging.getLogger("seamless_vae")

FILE = "seamless_vae_speeds.json"
MOST_RUNS = 24  # that are remembered of one kind
NEAREST = 8  # that are asked, the most similar ones
LEAST_SPREAD = 0.15  # of the estimate, to both sides: no two runs take the same time
FEW_SPREAD = 0.3  # more for a single run, half of that for two, and so on
SIZE_SPREAD = 0.05  # more for each doubling of the FLOPs
MODEL_SPREAD = 0.25  # more for each doubling of the FLOPs a pixel: another model's products go at another rate
LEAST_SECONDS = 0.05  # shorter runs tell more of the clock than of the machine
SAVED_EVERY = 10.0  # seconds, where many runs follow each other


class Workload(NamedTuple):
    """What there is to do: FLOPs, and pixels of a whole batch."""

    flops: float
    pixels: float

    @classmethod
    def of(cls, job: Job) -> Workload:
        """Of a job."""
        area = max(math.prod(job.shape[2:]), math.prod(job.output_shape[2:]))
        return cls(float(job.plan.flops), float(job.shape[0] * area))

    def doublings(self, other: Workload) -> tuple[float, float]:
        """How often the FLOPs, and the FLOPs a pixel, double from the smaller of both to the larger."""
        flops = abs(math.log2(self.flops / other.flops))
        return flops, abs(math.log2(self.flops / self.pixels * other.pixels / other.flops))


class PastRun(NamedTuple):
    """What was done in so many seconds."""

    flops: float
    pixels: float
    seconds: float

    @property
    def work(self) -> Workload:
        return Workload(self.flops, self.pixels)


class Estimate(NamedTuple):
    """Seconds that a run will take: likely, and from `low` to `high` by what the last runs differed."""

    likely: float
    low: float
    high: float


_lock = threading.Lock()
_runs: dict[Path | None, dict[str, list[PastRun]]] = {}
_firsts: dict[tuple[Path | None, str], PastRun] = {}  # the first run of each kind in this process
_saved: dict[Path, float] = {}  # when each file was written last


@contextmanager
def timed(job: Job) -> Iterator[None]:
    """Remember what a run took, without what was compiled for it: that is compiled once on a machine."""
    with compile_time() as compiled:
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began - compiled()
    record(job, seconds)


def record(job: Job, seconds: float) -> None:
    """Remember what a run took. The first of a process also warms up, so it counts only until there is another."""
    if seconds < LEAST_SECONDS or job.plan.flops <= 0:
        return
    run = PastRun(*Workload.of(job), seconds)
    kind = kind_of(job)
    with _lock:
        place, known = _known()
        runs = known.setdefault(kind, [])
        first = _firsts.setdefault((place, kind), run)
        if first is not run and first in runs:
            runs.remove(first)
        runs.append(run)
        del runs[:-MOST_RUNS]
        now = time.monotonic()
        if place is None or now - _saved.get(place, -SAVED_EVERY) < SAVED_EVERY:
            return
        _saved[place] = now
        data = json.dumps(known).encode()
        try:
            write_file(place, lambda file: file.write(data))
        except OSError as error:
            logger.debug("cannot remember how long runs take: %s", in_one_line(error))


def estimate(job: Job) -> Estimate | None:
    """What a run will probably take; None as long as no such run was made on this machine."""
    with _lock:
        runs = list(_known()[1].get(kind_of(job), ()))
    return estimated(runs, Workload.of(job))


def estimated(runs: Sequence[PastRun], work: Workload) -> Estimate | None:
    """From what runs took, the seconds of some work."""
    if not runs or work.flops <= 0 or work.pixels <= 0:
        return None

    def uncertainty(run: PastRun) -> float:
        size, model = run.work.doublings(work)
        return SIZE_SPREAD * size + MODEL_SPREAD * model

    nearest = sorted(runs, key=uncertainty)[:NEAREST]
    found = sorted(run.seconds * work.flops / run.flops for run in nearest)
    likely = median(found)
    # Fewer runs tell less; so do runs of quite another size, or of another model.
    spread = LEAST_SPREAD + FEW_SPREAD / len(found) + median(map(uncertainty, nearest))
    # Below by the exponential, which is the same for small spreads and does not say zero for large ones.
    return Estimate(likely, min(found[0], likely * math.exp(-spread)), max(found[-1], likely * (1 + spread)))


def kind_of(job: Job) -> str:
    """Runs whose speeds can be compared: of one half of the model, on one device, in one precision and way."""
    return f"{job.half.takes} {job.device} {str(job.dtype).removeprefix('torch.')} {job.way.name}"


def _known() -> tuple[Path | None, dict[str, list[PastRun]]]:
    """Where runs are remembered, and which are."""
    folder = host.user_directory()
    place = None if folder is None else folder / FILE
    if place not in _runs:
        _runs[place] = _read(place)
    return place, _runs[place]


def _read(place: Path | None) -> dict[str, list[PastRun]]:
    try:
        found = {} if place is None else json.loads(read_regular(place, MIB))
        runs = {str(kind): [PastRun(*map(float, run)) for run in each][-MOST_RUNS:] for kind, each in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # none yet, or a damaged one
        return {}
    return {
        kind: [run for run in each if all(math.isfinite(number) and number > 0 for number in run)]
        for kind, each in runs.items()
    }
