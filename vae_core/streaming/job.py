"""A run as one object: checked, chosen and planned once, then run."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MemoryBudgetError, NonFiniteError
from ..tiling.grid import TileSpec
from ..units import GIB, MIB
from .choose import (
    REFERENCE_MAPS,
    KernelMode,
    choose_way,
    is_faster,
    kernel_mode,
    kernels,
    may_be_faster,
    may_stand_in,
)
from .devices import numbered
from .executor import Execution, Manner, PackedWeights
from .half import Half, Shape
from .memory import DEFAULT_SHARE, available_bytes
from .options import Options
from .plan import Places, Plan, ProgramPlan, parts_of, plan_program, plan_reference
from .pool import worker_pool
from .program import Pass, largest_map
from .progress import ProgressCallback, Report, Watched, is_compiled
from .reference import check_result, run_tiles
from .source import Source
from .store import MapStore
from .winograd import drop_scratch

logger = logging.getLogger("seamless_vae")

# Batches run so many latent pixels at a time: enough for the weights' preparation to pay.
_LATENT_PIXELS_AT_ONCE = 64 * 64
# Under smaller budgets, what allocators keep between passes is a good part of them.
_TRIM_BELOW = 512 * MIB
_SMALL_STRIP = 4  # rows of latent pixels
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Request:
    """What a job was asked for, before it became smaller; see `prepare`."""

    half: Half
    shape: Shape
    options: Options
    device: torch.device
    available: int | None


class _Rung(NamedTuple):
    """One way of running with less memory than the one before."""

    how: str
    options: Options
    device: torch.device


class Job:
    """One run of one half of a model on inputs of one shape. Made by `prepare`.

    Attributes:
        half: what runs.
        shape, output_shape: of the whole batch, [B, C, H, W].
        options: as given, or as they became on the way to a smaller job.
        device: where it computes.
        dtype: precision of the arithmetic.
        way: how it runs, and why.
        plan: what it will do.
        bytes: what to ask a host for, by place: working memory, and input and output of the items that run at once.
        how: what sets it apart from the job that was asked for, such as "in smaller strips", for a log.
    """

    def __init__(self, request: _Request, options: Options, device: torch.device, how: str, rung: int) -> None:
        self.half, self.shape = request.half, request.shape
        self.options, self.device, self.how = options, device, how
        self.output_shape = self.half.output_shape(self.shape)
        self.dtype = options.precision(self.half.dtype, device)
        self._request, self._rung = request, rung
        self._kernels: KernelMode = kernel_mode()
        self._program: list[Pass] | None = None
        self._program_plan: ProgramPlan | None = None
        self._choose_and_plan(_budget(options, device, request.available))
        self._smallest = self.bytes.device

    # Planning.

    def _choose_and_plan(self, budget: int | None) -> None:
        half, size = self.half, self.half.latent_size(self.shape)
        blended = self.options.tiling if self.options.blended else None
        sides = size if blended is None or blended.size is None else tuple(min(side, blended.size) for side in size)
        items = max(1, min(self.shape[0], _LATENT_PIXELS_AT_ONCE // (sides[0] * sides[1])))
        self._patch = half.find_patch()
        by_program = self._patch is None and blended is None
        self._program = half.program() if by_program else half.nominal_program()
        tile = (items, self.shape[1], *(side * half.in_unit for side in sides))
        whole_peak = REFERENCE_MAPS * largest_map(self._program, tile, self.dtype)  # type: ignore[arg-type]
        fits = budget is None or whole_peak <= budget
        self.way = choose_way(self.options, size, self._patch, fits, self.device, (self.dtype, half.dtype))
        if self.way.name == "strips":
            trim = (
                self.device.type == "cpu"
                and self.options.memory_budget is not None
                and self.options.memory_budget < _TRIM_BELOW
            )
            manner = Manner(
                device=self.device,
                dtype=self.dtype,
                workers=torch.get_num_threads(),
                circular=self.options.axes,
                strip_latents=self.options.strip_latents,
                check_finite=self.dtype == torch.float16,
                trim=trim,
            )
            self._program_plan = plan_program(
                self._program, manner, self.shape, self.output_shape, size[0], items, budget
            )
            self.plan = self._program_plan.plan
        else:
            tiling = self.options.tiling if self.way.name == "tiles" else None
            self.plan = plan_reference(self._program, self.shape, items, tiling, half.in_unit, whole_peak)
        places, carried = self.plan.places, self._carried
        self.bytes = Places(self.plan.peak_bytes + carried, places.cpu, places.disk)

    @property
    def _carried(self) -> int:
        """Bytes of input and output of the items that run at once."""
        values = sum(side[1] * side[2] * side[3] for side in (self.shape, self.output_shape))
        if self.way.name == "tiles":
            assert self.options.tiling is not None and self.options.tiling.size is not None
            height, width = self.half.latent_size(self.shape)
            tile = min(height, self.options.tiling.size) * min(width, self.options.tiling.size)
            values = values * tile // (height * width)
        return self.plan.items * values * self.dtype.itemsize

    # Less memory.

    def within(self, free: int) -> Job:
        """The same job in so many bytes of an accelerator's memory.

        It is itself if it fits, if its budget was given, or if it cannot be cut to fit: in blended tiles, or patched.

        Raises:
            MemoryBudgetError: no way of running fits.
        """
        given = self.options.memory_budget is not None
        if self.device.type == "cpu" or given or not self._in_strips or self.bytes.device <= free:
            return self
        options = replace(self.options, memory_budget=max(1, free - self._carried))
        return self._made(_Rung(self.how, options, self.device), self._rung)

    def smaller(self) -> Job:
        """The next job that needs less of the device's memory, or has more strips; its result is the same.

        First smaller strips, then maps offloaded to CPU memory and to disk, at last the CPU.

        Raises:
            MemoryBudgetError: there is none left.
        """
        for number, rung in enumerate(self._ladder(), start=1):
            if number <= self._rung:
                continue
            try:
                made = self._made(rung, number)
            except MemoryBudgetError:
                continue
            # Plans are estimates: of the same size, that of more strips may still fit.
            sizes = [(each.bytes.device, -each.plan.strips) for each in (made, self)]
            if made.device != self.device or sizes[0] < sizes[1]:
                return made
        raise MemoryBudgetError(self._out_of_memory())

    def _out_of_memory(self) -> str:
        size = self._smallest
        about = f"about {size / GIB:.2f} GiB" if size >= GIB / 10 else f"about {size / MIB:.0f} MiB"
        if self._in_strips:
            found = (
                f"Out of memory: smaller strips, disk offload and the CPU were all tried; the smallest attempt needed "
                f"{about}"
            )
        else:
            found = f"Out of memory: {self.way.reason}, so this run cannot be cut smaller; it needed {about}"
        return f"{found}. Close other programs, or work on a smaller image."

    @property
    def _in_strips(self) -> bool:
        """Whether the job runs in strips, or could."""
        return self._patch is None and not self.options.blended

    def _made(self, rung: _Rung, number: int) -> Job:
        with kernels(self._kernels):
            made = Job(self._request, rung.options, rung.device, rung.how, number)
        made._smallest = min(self._smallest, made.bytes.device)
        return made

    def _ladder(self) -> Iterator[_Rung]:
        request = self._request
        if self._in_strips:
            strips = self._in_smaller_strips(request.options)
            yield _Rung("in smaller strips", strips, request.device)
            for budget in self._offloading_budgets(strips):
                how = f"with {budget / MIB:.0f} MiB of working memory and the rest offloaded"
                yield _Rung(how, replace(strips, memory_budget=budget), request.device)
        if request.device.type != "cpu":
            yield _Rung("on the CPU", replace(request.options, dtype=self.dtype), _CPU)

    def _in_smaller_strips(self, options: Options) -> Options:
        size = min(options.strip_latents or _SMALL_STRIP, _SMALL_STRIP)
        return replace(options, tiling=TileSpec(size=size))

    def _offloading_budgets(self, options: Options) -> list[int]:
        """The largest and the smallest budget below what is needed that keep maps out of the device's memory."""
        request = self._request
        one = replace(request, shape=(1, *request.shape[1:]))

        def plan(budget: int | None) -> Plan:
            with kernels(self._kernels):
                limited = replace(options, memory_budget=budget)
                return Job(one if budget else replace(one, available=_NO_LIMIT), limited, request.device, "", 0).plan

        needed, found = plan(None).peak_bytes, []
        for tenths in range(9, 0, -1):
            budget = min(options.memory_budget or needed, needed) * tenths // 10
            try:
                places = plan(max(1, budget)).places
            except MemoryBudgetError:
                break
            if places.cpu or places.disk:
                found.append(budget)
        return [found[0], found[-1]] if len(found) > 1 else found

    # Running.

    @torch.no_grad()
    def run(
        self,
        source: Tensor | Sequence[Tensor],
        out: Tensor | None = None,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """Run as planned, the batch in parts.

        Args:
            source: [B, C, H, W] on any device, or parts of the batch one after another, so that it need not be in one
                place.
            out: memory for the result, of any strides, precision and device; None for fresh memory on the device.
            progress: called with a Progress. What it raises ends the run within a strip, and everything is released.

        Returns:
            `out`, or a tensor of `output_shape`.

        Raises:
            ShapeError: the source or `out` is not of the planned shape, or not of a type that is taken.
            NonFiniteError: the source has NaN or infinite values.
            MemoryBudgetError: the temporary folder has no room for what is offloaded to disk.
        """
        given = Source.of(source, self.shape, self.half.takes)
        given.check_finite()
        if out is not None:
            given.check_output(out, self.output_shape)
        report = Report(progress)
        if self._patch is not None and self.way.name == "whole":
            logger.warning("%s, so its own modules run it whole.", self.way.reason)
        if self.way.name != "strips" and self.options.memory_budget is not None:
            logger.warning("the memory budget is not kept to: %s, and only strips can be cut to fit.", self.way.reason)
        try:
            return self._execute(given, out, report)
        except NonFiniteError as error:
            options = replace(self.options, dtype="auto")
            wider = self._made(_Rung(self.how, options, self.device), self._rung)
            logger.warning("%s It is now run in %s.", error, str(wider.dtype).removeprefix("torch."))
        result = wider._execute(given, out, report)
        return result if out is not None else result.to(self.dtype)

    def _execute(self, source: Source, out: Tensor | None, report: Report) -> Tensor:
        """Raise NonFiniteError if values go out of float16's range."""
        if self.way.name != "strips":
            return self._run_reference(source, out, report)
        if out is None:
            out = torch.empty(self.output_shape, dtype=self.dtype, device=self.device)
        self._stream(source, out, report)
        return out

    def _stream(self, source: Source, out: Tensor, report: Report) -> None:
        """Fill `out` strip by strip: one store, one pool, and weights packed once for all parts of the batch."""
        planned = self._program_plan
        assert self._program is not None and planned is not None
        manner, items = planned.manner, planned.plan.items
        store = MapStore(self.device, planned.map_limit, planned.cpu_limit)
        weights = PackedWeights(planned.packed_limit)
        report.expect(planned.plan.flops, planned.plan.passes)
        rows = self.half.latent_size(self.shape)[0]
        try:
            with worker_pool(manner.workers) as pool:
                for start in range(0, self.shape[0], items):
                    part = slice(start, min(start + items, self.shape[0]))
                    passes = planned.planned if start + items <= self.shape[0] else planned.rest
                    execution = Execution(
                        self._program, manner, store, planned=passes, find_damage=self.half.find_damage
                    )
                    x = source.part(part).to(self.device, self.dtype)
                    execution.run(x, out[part], rows, pool, report, weights)
        finally:
            store.drop_free()  # an exception's traceback may keep the store
            drop_scratch()

    def _run_reference(self, source: Source, out: Tensor | None, report: Report) -> Tensor:
        # Where an offloading hook has the weights, it moves what comes in.
        stays = self.half.device.type == "meta"
        half = self.half if stays else self.half.on(self.device, self.dtype)
        watched = report.progress is not None and not any(map(is_compiled, half.modules.values()))
        report.expect(self.plan.flops, self.plan.passes)

        def reference(x: Tensor) -> Tensor:
            report.begin_pass()
            return half.reference(x if stays else x.to(self.device, half.dtype))

        results, start = [], 0
        for count in parts_of(self.shape[0], self.plan.items):
            part = source.part(slice(start, start + count))
            place = None if out is None else out[start : start + count]
            start += count
            with Watched(self.device, report) if watched else nullcontext() as watch:
                results.append(self._placed(reference, part, place))
            if watch is not None:
                watch.finish()
            check_result(half, results[-1], self.dtype)
        report.finish()
        if out is not None:
            return out
        return results[0] if len(results) == 1 else torch.cat(results)

    def _placed(self, reference: Callable[[Tensor], Tensor], part: Tensor, place: Tensor | None) -> Tensor:
        """The reference path on a part of the batch, whole or in tiles, in its place if there is one."""
        if self.way.name == "whole":
            result = reference(part)
            return result if place is None else place.copy_(result)
        assert self.options.tiling is not None
        shape = (len(part), *self.output_shape[1:])
        return run_tiles(reference, part, self.options.tiling, (self.half.in_unit, self.half.out_unit), shape, place)


_NO_LIMIT = 2**62


def _budget(options: Options, device: torch.device, available: int | None) -> int | None:
    """Bytes of working memory: what the options say, or a share of what is free; None where nothing is known."""
    if options.memory_budget is not None:
        return options.memory_budget
    free = available_bytes(device) if available is None else available
    return None if free is None else int(free * DEFAULT_SHARE)


def prepare(
    half: Half,
    shape: Sequence[int],
    options: Options | None = None,
    device: torch.device | str | None = None,
    available: int | None = None,
) -> Job:
    """Check, choose and plan a run.

    Args:
        shape: of the input, [B, C, H, W].
        options: None for the defaults.
        device: where it computes; None for where the weights are.
        available: bytes of the device's memory to count on where the options have no budget; None for what is free now.

    Raises:
        ShapeError: inputs of this shape do not fit the model.
        TilingError: circular axes for a patched model.
        MemoryBudgetError: no way of running fits the budget.
    """
    half.check(shape)
    options = Options() if options is None else options
    place = numbered(half.device if device is None else torch.device(device))
    batch, channels, height, width = map(operator.index, shape)
    request = _Request(half, (batch, channels, height, width), options, place, available)
    return Job(request, options, place, "in the first attempt", 0)


def prepare_faster(half: Half, x: Tensor) -> Job | None:
    """A job that gives the reference path's result for x sooner; None where there is none."""
    if not may_stand_in(half, x) or not may_be_faster(half, x):
        return None
    job = prepare(half, x.shape)
    return job if is_faster(job.plan.fast_share) else None
