"""A run as one object: checked, chosen and planned once, then run."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..autocast import without_autocast
from ..errors import ConfigError, MemoryBudgetError, NonFiniteError, ShapeError, brief
from ..tiling.grid import Cuts, TileSpec
from ..units import GIB, MIB
from .choose import Way, choose_way, kernel_choice
from .devices import device_of, numbered, why_unusable
from .executed import Executed
from .forks import leave_lost_threads
from .half import Half
from .options import Options
from .plan import Places
from .progress import ProgressCallback, Report, check_progress
from .reference import run_reference
from .request import Request
from .source import Source
from .strips import Strips
from .ways import PlannedRun

logger = logging.getLogger("seamless_vae")

Result = TypeVar("Result")
_MOST_NUMBERS = 2**44  # of an input: 32 TiB in half precision
_SMALL_STRIP = 4  # rows of latent pixels


class PlannedRung(NamedTuple):
    """One way of running with less memory than the one before."""

    how: str
    request: Request


class Job:
    """One run of one half of a model on inputs of one shape. Made by `prepare`.

    Attributes:
        half: what runs.
        shape, output_shape: of the whole batch, [B, C, H, W].
        options: as given, or as they became on the way to a smaller job.
        device: where it computes.
        dtype: precision of the computation.
        way: how it runs, and why.
        plan: what it will do.
        bytes: what to ask a host for, by place: working memory, and input and output of the items that run at once.
        how: what sets it apart from the job that was asked for, such as "in smaller strips", for a log.
        executed: what its last run has done so far; None before that.
    """

    def __init__(
        self, run: PlannedRun, way: Way, how: str = "in the first attempt", ladder: Sequence[PlannedRung] | None = None
    ):
        self._request = request = run.request()
        self.how = how
        self.half = request.half
        self.shape = request.shape
        self.output_shape = request.output_shape
        self.options = request.options
        self.device = request.device
        self.dtype = request.dtype
        self.way = way
        self._planned = run.planned(way)
        self.plan = self._planned.plan
        places = self.plan.places
        self.bytes = Places(self.plan.peak_bytes + request.carried(self.plan.items), places.cpu, places.disk)
        self.executed: Executed | None = None
        self._ladder = ladder  # what is left of it; None until it is needed
        self._smallest = self.bytes.device

    @classmethod
    def of(
        cls, request: Request, how: str = "in the first attempt", ladder: Sequence[PlannedRung] | None = None
    ) -> Job:
        """Choose its way, and plan it."""
        run = PlannedRun.of(request)
        return cls(run, choose_way(run), how, ladder)

    @property
    def cuts(self) -> Cuts | None:
        """Where the strips or tiles of a chosen size are; None where each pass is cut as suits it, or nothing is."""
        tiling = self.options.tiling
        if self.way.name == "whole" or tiling is None or tiling.size is None:
            return None
        return Cuts(*self._request.latent_size, tiling)

    # Less memory.

    def within(self, free: int) -> Job:
        """The same job in so many bytes of an accelerator's memory.

        It is itself if it fits, if its budget was given, or if it cannot be cut to fit: in blended tiles, or patched.

        Raises:
            MemoryBudgetError: no way of running fits.
        """
        request = self._request
        given = self.options.memory_budget is not None
        if self.device.type == "cpu" or given or not request.can_be_cut or self.bytes.device <= free:
            return self
        for items in request.items():
            budget = max(1, free - request.carried(items))
            try:
                made = Job.of(request.but(memory_budget=budget, max_items=items), self.how, self._ladder)
            except MemoryBudgetError:
                if items == 1:
                    raise
                continue
            if made.plan.items == items:
                break
        made._smallest = min(self._smallest, made.bytes.device)
        return made

    def smaller(self) -> Job:
        """The next job that needs less of the device's memory, or has more strips; its result is the same.

        First one item of a batch at a time, then smaller strips, then maps offloaded to CPU memory and to disk, at last
        the CPU.

        Raises:
            MemoryBudgetError: there is none left.
        """
        rungs = list(_ladder(self._request, self.plan.items) if self._ladder is None else self._ladder)
        while rungs:
            how, request = rungs.pop(0)
            try:
                made = Job.of(request, how, rungs)
            except MemoryBudgetError:
                continue
            # Plans are estimates: of the same size, that of more strips may still fit.
            sizes = [(each.bytes.device, -each.plan.strips) for each in (made, self)]
            if made.device != self.device or sizes[0] < sizes[1]:
                made._smallest = min(self._smallest, made.bytes.device)
                return made
        raise MemoryBudgetError(self._out_of_memory())

    def _out_of_memory(self) -> str:
        size = self._smallest
        about = f"about {size / GIB:.2f} GiB" if size >= GIB / 10 else f"about {size / MIB:.0f} MiB"
        if self._request.can_be_cut:
            found = (
                f"Out of memory: smaller strips, disk offload and the CPU were all tried; the smallest attempt needed "
                f"{about}"
            )
        else:
            found = f"Out of memory: {self.way.reason}, so this run cannot be cut smaller; it needed {about}"
        return f"{found}. Close other programs, or work on a smaller image."

    # Running.

    def run(
        self,
        source: Tensor | Sequence[Tensor],
        out: Tensor | None = None,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """Run as planned, the batch in parts. If the model was patched since, or is no longer, it is planned again.

        Args:
            source: [B, C, H, W] on any device, or parts of the batch one after another, so that it need not be in one
                place.
            out: memory for the result, of any strides, precision and device; None for fresh memory on the device.
            progress: called with a Progress. What it raises ends the run within a strip, and everything is released.

        Returns:
            `out`, or a tensor of `output_shape`.

        Raises:
            ShapeError, ImageError: the source or `out` is not of the planned shape, or not of a type that is taken.
            NonFiniteError: the source has NaN or infinite values, or values that are out of the precision's range.
            TilingError: the model was patched since, and circular axes were asked for.
            ConfigError: the model does not have its weights yet, or the device is not there.
            MemoryBudgetError: the temporary folder has no room for what is offloaded to disk.
        """
        patch = self.half.find_patch()
        job = self if patch == self._request.patch else Job.of(self._request.patched(patch), self.how)
        return job.run_at_once(source, out, progress)

    @torch.no_grad()
    def run_at_once(
        self,
        source: Tensor | Sequence[Tensor] | Source,
        out: Tensor | None = None,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """`run` for a job that was prepared just now, so that the model is as it was."""
        with without_autocast(self.device):
            return self._run_in_own_precision(source, out, progress)

    def _run_in_own_precision(
        self, source: Tensor | Sequence[Tensor] | Source, out: Tensor | None, progress: ProgressCallback | None
    ) -> Tensor:
        leave_lost_threads()
        if self.device.type not in ("cpu", "meta") and (reason := why_unusable(self.device)) is not None:
            raise ConfigError(
                f"the device {self.device} cannot be used here: {reason}. Prepare this for a device that is there."
            )
        given = Source.of(source, self.half.takes)
        given.check_shape(self.shape)
        given.check_finite()
        if out is not None:
            given.check_output(out, self.output_shape)
        check_progress(progress)
        report = Report(progress)
        self.executed = report.executed
        if self._request.patch is not None and self.way.name == "whole":
            logger.warning("%s, so its own modules run it whole.", self.way.reason)
        _warn_of_budget(self.way, self.options)
        try:
            return self._planned.run(given, out, report)
        except NonFiniteError as error:
            if self.dtype != torch.float16:
                raise
            wider = Job.of(self._request.but(dtype="auto"), self.how)
            logger.warning("%s It is now run in %s.", error, str(wider.dtype).removeprefix("torch."))
        result = wider._planned.run(given, out, report)
        return result if out is not None else result.to(self.dtype)


def run_or_smaller(
    job: Job,
    run: Callable[[Job], Result],
    is_short: Callable[[Job, BaseException], bool],
    smaller: Callable[[Job], Job],
) -> Result:
    """What `run` gives of a job, or of the next smaller one as often as memory runs out. The result is the same.

    Args:
        run: runs a job, or raises.
        is_short: whether what it raised says that memory ran out.
        smaller: gives freed memory back, and then the next job; raises MemoryBudgetError where there is none.
    """
    while True:
        try:
            return run(job)
        except BaseException as error:
            if not is_short(job, error):
                raise
        # Outside of the handler: its traceback would keep every tensor of the failed run alive.
        following = smaller(job)
        logger.warning("Memory ran out %s; now %s. The result is the same.", job.how, following.how)
        job = following


def _ladder(request: Request, items: int) -> list[PlannedRung]:
    """What to try when memory runs out, one after the other."""
    rungs = []
    if request.can_be_cut:
        one = request.but(max_items=1)
        if items > 1:
            rungs.append(PlannedRung("one item of the batch at a time", one))
        size = min(request.options.strip_latents or _SMALL_STRIP, _SMALL_STRIP)
        strips = one.but(tiling=TileSpec(size=size))
        rungs.append(PlannedRung("in smaller strips", strips))
        for budget in _smaller_budgets(strips):
            how = f"with {budget / MIB:.0f} MiB of working memory and the rest offloaded"
            rungs.append(PlannedRung(how, strips.but(memory_budget=budget)))
    if request.device.type != "cpu":
        rungs.append(PlannedRung("on the CPU", request.on_cpu()))
    return rungs


def _smaller_budgets(request: Request) -> list[int]:
    """The largest and the smallest budget below what is needed that keep maps out of the device's memory.

    If none does, because strips are most of it, those by which strips become smaller.
    """
    given = request.options.memory_budget
    one = replace(request.but(memory_budget=None), shape=(1, *request.shape[1:]), available=None)
    needed = Strips.of(one).plan.peak_bytes
    offloading = []
    shrinking = []
    for tenths in range(9, 0, -1):
        budget = max(1, min(given or needed, needed) * tenths // 10)
        try:
            plan = Strips.of(one.but(memory_budget=budget)).plan
        except MemoryBudgetError:
            break
        if plan.places.cpu or plan.places.disk:
            offloading.append(budget)
        elif plan.peak_bytes < needed:
            shrinking.append(budget)
    found = offloading or shrinking
    return [found[0], found[-1]] if len(found) > 1 else found


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
        ConfigError: options, a device or an amount that are none.
        MemoryBudgetError: no way of running fits the budget.
    """
    leave_lost_threads()
    whole = whole_sizes(shape)
    half.check(whole)
    options = Options() if options is None else options
    if not isinstance(options, Options):
        raise ConfigError(f"options are {brief(options)}. Give vae_core.Options(...), or None.")
    if available is not None and (not isinstance(available, int) or isinstance(available, bool)):
        raise ConfigError(f"available is {brief(available)}. Give a whole number of bytes, or None.")
    place = numbered(half.device if device is None else device_of(device))
    batch, channels, height, width = whole
    return Job.of(
        Request.of(
            half, (batch, channels, height, width), options, place, available, kernel_choice(), half.find_patch()
        )
    )


def whole_sizes(shape: Any) -> tuple[int, ...]:
    """A shape as a caller gave it. Raises ShapeError for what is none, and for more than can be planned in time."""
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        raise ShapeError(f"the shape is {brief(shape)}. Give four whole numbers: (B, C, H, W).") from None
    if math.prod(sizes) > _MOST_NUMBERS:
        raise ShapeError(f"the shape is {brief(sizes)}, which is more than 2^44 numbers. Run a part of it at a time.")
    return sizes


def run_method(half: Half, x: Tensor, options: Options) -> Tensor:
    """The result of a model's own method: of a job, or of its modules as they are, by the way that `choose_way` gives.

    Args:
        x: looked at by `check_tensor` already.

    Raises:
        ShapeError: an input that does not fit the model.
        MemoryBudgetError: a budget was given, and strips do not fit it.
        NonFiniteError: it has NaN or infinite values, and is run in strips.
        DamagedWeightError: a weight has.
    """
    leave_lost_threads()
    half.check(x.shape)
    run = PlannedRun(half, x.shape, options, x)
    way = choose_way(run)
    if way.planned:
        return Job(run, way).run_at_once(Source((x,), half.takes))
    _warn_of_budget(way, options)
    return run_reference(half, x, options.tiling if way.name == "tiles" else None, options.max_items)


def _warn_of_budget(way: Way, options: Options) -> None:
    if way.ignores_budget and options.memory_budget is not None:
        logger.warning("The memory budget is ignored: %s, and only strips can be cut to fit.", way.reason)
