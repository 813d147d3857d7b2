"""What is simulated on a device that does not exist: a run, and where its maps are."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from vae_core.streaming import ledger, maps, store, stored_attention, strips
from vae_core.streaming.executor import PlannedPass
from vae_core.streaming.job import Job
from vae_core.streaming.stored_attention import StoredAttention

KIND = "sim"


class Case(NamedTuple):
    """A run: of one direction of a model, on inputs of a shape.

    Attributes:
        config: constructor arguments of the model.
        size: of the image, in pixels.
        budget: bytes of working memory; None for no limit.
        streams: whether the device has several queues.
        rows: of latent pixels in a strip; None for what suits each pass.
        offloaded: all maps are in CPU memory, whatever was planned.
        scattered: maps are in bands of some KiB, each on the device or in CPU memory by chance, of which this is the
            seed; whatever was planned.
        kernels: those of Triton are taken for working.
        free: bytes that the device is found to have when the job is about to run; None for enough.
        weights, given, out: the devices that they are on; None for an output that the job allocates.
    """

    config: Mapping[str, Any]
    direction: str
    size: tuple[int, int]
    budget: int | None = None
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16
    circular: str = "none"
    streams: bool = True
    rows: int | None = None
    offloaded: bool = False
    scattered: int | None = None
    kernels: bool = False
    free: int | None = None
    weights: str = KIND
    given: str = "cpu"
    out: str | None = "cpu"


@dataclass
class Seen:
    """What a run did.

    Attributes:
        peak: most living bytes on the device, beside what was there before: weights, and input and output if they were.
        planned: what the plan counts, but for what allocators keep.
        launches, strips: operations that compute on the device; pieces that the plan has.
        blocks: of keys that strips of attention look at one by one, and of tokens that keys are made of.
        uploaded, downloaded: bytes of maps, input and output that went to the device and back.
        beside: those of them that went on a queue of their own.
        places: the plan's bytes of maps.
        dry_runs: of planning, each by what it depends on; `wholes`, how often the reference path was planned.
        faults: what was wrong, in words.
        shape, device: of the result.
    """

    peak: int = 0
    planned: int = 0
    launches: int = 0
    strips: int = 0
    blocks: int = 0
    uploaded: int = 0
    downloaded: int = 0
    beside: int = 0
    places: tuple[int, ...] = (0, 0, 0)
    dry_runs: list[str] = field(default_factory=list)
    wholes: int = 0
    faults: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    device: str = ""


def unlike_the_plan(case: Case, job: Job) -> list[str]:
    """What of a job was executed otherwise than planned, in words: strips, places, and bytes that the engine owns."""
    if case.offloaded or case.scattered is not None:
        return []
    plan, executed = job.plan, job.executed
    assert executed is not None
    found = executed.passes, executed.strips, tuple(executed.places[place] for place in ledger.PLACES)
    planned = plan.passes, plan.strips, tuple(plan.places)
    faults = [] if found == planned else [f"passes, strips and places are {found}, and {planned} were planned"]
    first: Any = job._planned
    for number, (each, record) in enumerate(zip(first.planned.planned, executed.records, strict=False)):
        of_kernel = {name: each.terms[name] for name in record.held}
        if dict(record.held) != of_kernel:
            faults.append(f"pass {number} has {dict(record.held)}, and {of_kernel} were planned")
    return faults


def blocks_of(planned: PlannedPass) -> int:
    """Blocks of keys in a pass: each strip of queries goes through all of them, and the first one makes them."""
    if planned.kernel is not StoredAttention:
        return 0
    rows = planned.layout.rows
    return len(planned.layout.items) * len(rows) * (1 + -(-rows.length // stored_attention.KEY_BLOCK))


def _offloading(device: torch.device, limit: int | None, cpu_limit: int, *rest: Any) -> store.MapStore:
    return store.MapStore(device, 0, 2**50, *rest)


class _Scattered(store.MapStore):
    """A store whose bands are on the device or in CPU memory by chance."""

    def __init__(self, seed: int, device: torch.device, limit: int | None, cpu_limit: int, *rest: Any) -> None:
        super().__init__(device, limit, 2**50, *rest)
        self._chance = random.Random(seed)

    def _band(self, shape: tuple[int, ...], dtype: torch.dtype, capacity: int) -> torch.Tensor:
        self._ledger.limits["device"] = self._chance.choice((0, None))
        return super()._band(shape, dtype, capacity)


@contextmanager
def placed_otherwise(case: Case) -> Iterator[None]:
    """Maps are elsewhere than planned, where a case asks for that."""
    with ExitStack() as stack:
        if case.offloaded:
            stack.enter_context(patch.object(strips, "MapStore", _offloading))
        if case.scattered is not None:
            stack.enter_context(patch.object(strips, "MapStore", functools.partial(_Scattered, case.scattered)))
            stack.enter_context(patch.object(maps, "BAND_BYTES", 2**14))
        yield
