"""What a job will do, found out by a dry run: passes, strips, places of maps, peak memory, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..errors import MemoryBudgetError
from ..tiling.blend import cut_tiles, kept_positions
from ..units import MIB
from .executor import Execution, Manner, PlannedPass
from .kernel import Kernel
from .ledger import PlannedStore
from .maps import FeatureMap, PlannedMap
from .program import Pass, largest_map, program_flops
from .request import Request

_SMALLEST_STRIP = 2**18  # bytes
# Memory that allocators keep between uses, as `benchmarks/memory.py` measures it: a quarter of what is planned up to
# a limit in bytes, and a share. It is less where passes give back what they have freed.
_KEPT_LIMIT = 16 * MIB
_KEPT_SHARE = 0.05
_TRIMMED_LIMIT = 12 * MIB
_TRIMMED_SHARE = 0.03


class Places(NamedTuple):
    """Bytes by the place that they are in.

    Attributes:
        device: the device that computes.
        cpu: CPU memory, for an accelerator; 0 where the CPU is the device.
        disk: temporary files.
    """

    device: int
    cpu: int = 0
    disk: int = 0


@dataclass(frozen=True)
class Plan:
    """A run before it happens.

    Attributes:
        passes: how often a whole map is gone through; each time that the reference path runs counts as one.
        strips: into how many pieces these are cut, together; 0 where the reference path runs.
        tiles: how many blended tiles are run; 0 where there are none.
        places: most bytes of feature maps in each place.
        peak_bytes: most working memory of the device at any time, beside weights, input and output.
        terms: what is in memory at that time, in bytes, by what it is for.
        flops: multiplications and additions, counted as plain convolutions need them.
        untiled_flops: those of a run without blended tiles, which share parts of the image.
        pass_flops: those of each pass, in their order.
        fast_share: the share of `flops` that takes a kernel with fewer multiplications.
        items: how many of the batch run at once.
    """

    passes: int
    strips: int
    tiles: int
    places: Places
    peak_bytes: int
    terms: Mapping[str, int]
    flops: int
    untiled_flops: int
    pass_flops: tuple[int, ...]
    fast_share: float
    items: int


class Room(NamedTuple):
    """Most bytes that a pass needs of each block of scratch memory, and for its packed weights."""

    scratch: int = 0
    weights: int = 0


@dataclass(frozen=True)
class ProgramPlan:
    """A program's plan, and all that running it as planned needs.

    Attributes:
        manner: how, with the size of strips that the budget leaves.
        planned: each pass of a part of `plan.items` items.
        rest: each pass of the last part, if it has fewer.
        map_limit: bytes of maps for the store; see MapStore.
        packed_limit: bytes of packed weights to keep from one part of a batch to the next.
        room: most bytes that passes need of memory that they hand on.
    """

    plan: Plan
    manner: Manner
    planned: tuple[PlannedPass, ...]
    rest: tuple[PlannedPass, ...]
    map_limit: int | None
    packed_limit: int
    room: Room


@dataclass
class _DryRun:
    """What a dry run of one part of a batch has found.

    Attributes:
        workspace: the largest of all passes, in bytes.
        terms: of the pass at the peak.
        packed: bytes of packed weights of all passes.
    """

    store: PlannedStore
    planned: list[PlannedPass] = field(default_factory=list)
    pass_flops: list[int] = field(default_factory=list)
    fast: int = 0
    workspace: int = 0
    peak: int = 0
    terms: dict[str, int] = field(default_factory=dict)
    packed: int = 0
    room: Room = field(default_factory=Room)

    def add(self, step: Pass, kernel: Kernel, target: FeatureMap) -> None:
        """The next pass, with its maps allocated."""
        batch, height, width = target.shape[:3]
        flops = batch * step.flops(height * width)
        terms = {"maps": self.store.used["device"], **kernel.workspace()}
        total = sum(terms.values())
        self.planned.append(PlannedPass(type(kernel), kernel.layout, terms))
        self.pass_flops.append(flops)
        self.fast += flops if kernel.fast else 0
        self.packed += kernel.packed_bytes()
        self.room = Room(max(self.room.scratch, kernel.scratch_bytes()), max(self.room.weights, kernel.packed_bytes()))
        self.workspace = max(self.workspace, total - terms["maps"])
        if total > self.peak:
            self.peak = total
            self.terms = terms

    @property
    def strips(self) -> int:
        return sum(len(each.layout) for each in self.planned)


def plan_program(request: Request, manner: Manner) -> ProgramPlan:
    """Plan a program without computing anything.

    Over the budget, fewer items of the batch run at once; then strips are smaller, and what is left over goes to maps.

    Raises:
        MemoryBudgetError: what a pass needs beside its maps is over the budget.
    """
    passes = request.passes
    shape = request.shape
    output_shape = request.output_shape
    budget = request.budget
    latent_rows = request.latent_size[0]
    cpu_limit = request.offload

    def dry_run(manner: Manner, limit: int | None, items: int, like: _DryRun | None = None) -> _DryRun:
        offload = None if limit is None else cpu_limit
        key = "dry run", shape[1:], items, manner, limit, offload, like is not None
        return request.once(key, lambda: made(manner, limit, items, like))

    def made(manner: Manner, limit: int | None, items: int, like: _DryRun | None) -> _DryRun:
        source, target = (PlannedMap.whole((items, each[2], each[3], each[1])) for each in (shape, output_shape))
        found = _DryRun(PlannedStore(limit, cpu_limit))
        execution = Execution(passes, manner, found.store, like=like and like.planned)
        for _, step, kernel in execution.kernels(source, target, latent_rows):
            found.add(step, kernel, execution.maps[step.target])
        return found

    limit = None
    for items in request.items():
        found = dry_run(manner, None, items)
        peak = found.peak + _reserve(found.peak, manner)
        if budget is None or peak <= budget:
            break
    if budget is not None and peak > budget:
        left = budget - _reserve(budget, manner)
        # What is left over by then goes to maps.
        while found.workspace > left // 2 and manner.bytes_per_strip > _SMALLEST_STRIP:
            manner = replace(manner, strip_bytes=manner.bytes_per_strip // 4)
            found = dry_run(manner, None, items)
        if found.workspace > left:
            raise MemoryBudgetError(_too_small(request, budget, found.workspace, manner))
        limit = left - found.workspace
        found = dry_run(manner, limit, items)
        peak = found.peak + _reserve(found.peak, manner)
    full, rest = divmod(shape[0], items)
    runs = full + (rest > 0)
    # Packed weights serve every part of a batch, where there is room for them.
    packed = found.packed if runs > 1 and (budget is None or peak + found.packed <= budget) else 0
    terms = {**found.terms, "kept by allocators": peak - found.peak}
    if packed:
        terms["packed weights"] = packed
    last = dry_run(manner, limit, rest, found) if rest else _DryRun(found.store)
    pass_flops = found.pass_flops * full + last.pass_flops
    places = found.store.peak
    plan = Plan(
        passes=len(passes) * runs,
        strips=full * found.strips + last.strips,
        tiles=0,
        places=Places(places["device"], places["cpu"], places["disk"]),
        peak_bytes=peak + packed,
        terms=terms,
        flops=sum(pass_flops),
        untiled_flops=sum(pass_flops),
        pass_flops=tuple(pass_flops),
        fast_share=found.fast / sum(found.pass_flops),
        items=items,
    )
    # Where passes give back what they have freed, no page of a block should be larger than what is written to.
    room = Room() if manner.trim else found.room
    return ProgramPlan(plan, manner, tuple(found.planned), tuple(last.planned), limit, packed, room)


# The reference path has so many of the largest map at once: the input of the last level and of its last block, the
# result of the block's first convolution, its norm, its activation, and what the convolution's kernel needs.
REFERENCE_MAPS = 6


def plan_whole(request: Request, items: int) -> Plan:
    """The plan of the reference path on whole images, so many at once."""
    key = "whole", request.shape, request.dtype, items
    return request.once(key, lambda: _planned_whole(request, items))


def _planned_whole(request: Request, items: int) -> Plan:
    parts = parts_of(request.shape[0], items)
    flops = program_flops(request.passes, request.shape)
    maps = _reference_bytes(request, items)
    pass_flops = tuple(flops // request.shape[0] * count for count in parts)
    return _reference_plan(request, {"maps": maps}, passes=len(parts), flops=flops, pass_flops=pass_flops, items=items)


def plan_tiles(request: Request, items: int) -> Plan:
    """The plan of the reference path on blended tiles, of so many images at once."""
    tiling = request.options.tiling
    half = request.half
    shape = request.shape
    assert tiling is not None
    sizes = cut_tiles(shape[2:], tiling, half.in_unit)
    tiles = sum(sizes.values()) * len(parts_of(shape[0], items))
    flops = sum(count * program_flops(request.passes, (*shape[:2], *size)) for size, count in sizes.items())
    edges = kept_positions(request.output_shape[2:], tiling, half.out_unit)
    kept = items * half.out_channels * edges * request.dtype.itemsize
    terms = {"maps": _reference_bytes(request, items), "edges": kept}
    return _reference_plan(request, terms, passes=tiles, tiles=tiles, flops=flops, items=items)


def _reference_bytes(request: Request, items: int) -> int:
    height, width = (side * request.half.in_unit for side in request.tile)
    return REFERENCE_MAPS * largest_map(request.passes, (items, request.shape[1], height, width), request.dtype)


def _reference_plan(
    request: Request,
    terms: dict[str, int],
    passes: int,
    flops: int,
    items: int,
    tiles: int = 0,
    pass_flops: tuple[int, ...] = (),
) -> Plan:
    return Plan(
        passes=passes,
        strips=0,
        tiles=tiles,
        places=Places(terms["maps"]),
        peak_bytes=sum(terms.values()),
        terms=terms,
        flops=flops,
        untiled_flops=program_flops(request.passes, request.shape),
        pass_flops=pass_flops,
        fast_share=0.0,
        items=items,
    )


def parts_of(batch: int, items: int) -> list[int]:
    """How many items each part of a batch has."""
    full, rest = divmod(batch, items)
    return [items] * full + [rest] * (rest > 0)


def _reserve(size: int, manner: Manner) -> int:
    limit, share = (_TRIMMED_LIMIT, _TRIMMED_SHARE) if manner.trim else (_KEPT_LIMIT, _KEPT_SHARE)
    return int(min(size / 4, limit) + share * size)


def _too_small(request: Request, budget: int, workspace: int, manner: Manner) -> str:
    needed = workspace
    while needed - _reserve(needed, manner) < workspace:
        needed += MIB
    there = f"{budget / MIB:.0f} MiB"
    least = f"at least {math.ceil(needed / MIB)} MiB"
    if request.budget_given:
        return (
            f"the memory budget is too small: a single strip of this model does not fit into {there}. Give {least}, "
            f"or no budget."
        )
    return (
        f"too little memory is free: without a memory budget {there} of the memory of {request.device} can be used, "
        f"and a single strip of this model needs {least}. Close other programs, raise the limit of this process or "
        f"container, or give a memory budget if you know that more is free."
    )
