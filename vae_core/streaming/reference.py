"""The reference path: the modules as they are, on whole images or on blended tiles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DamagedWeightError, NonFiniteError
from ..tiling.blend import run_blended
from ..tiling.grid import TileSpec
from .choose import is_watched
from .executor import damaged_message
from .half import Half
from .plan import Plan, parts_of, plan_tiles, plan_whole
from .progress import Report, Watched
from .request import Request
from .source import Source, count_not_finite


def run_reference(half: Half, x: Tensor, tiling: TileSpec | None = None, max_items: int | None = None) -> Tensor:
    """The reference path's result for x, as gradients, compilers and transformations of functions see it.

    Args:
        tiling: blended tiles; None for the whole image.
        max_items: how many of the batch run at once; None for all.

    Raises:
        DamagedWeightError: the result is not finite, because a weight is not.
    """
    parts = [x] if max_items is None or len(x) <= max_items else list(x.split(max_items))
    results = [_placed(half.reference, half, part, tiling, None) for part in parts]
    result = results[0] if len(results) == 1 else torch.cat(results)
    if not is_watched(x):
        check_result(half, result)
    return result


def _placed(
    run: Callable[[Tensor], Tensor], half: Half, x: Tensor, tiling: TileSpec | None, place: Tensor | None
) -> Tensor:
    """A function of x, whole or in blended tiles, in its place if there is one."""
    if tiling is not None:
        return run_blended(run, x, tiling, half.in_unit, half.out_unit, place)
    result = run(x)
    return result if place is None else place.copy_(result)


def check_result(half: Half, result: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise DamagedWeightError or, for float16, NonFiniteError if the reference path's result is not finite."""
    if not count_not_finite(result):
        return
    if (damaged := half.find_damage()) is not None:
        raise DamagedWeightError(damaged_message(damaged))
    if dtype == torch.float16:
        raise NonFiniteError("values went out of the range of float16. Run this model in bfloat16 or float32.")


@dataclass(frozen=True)
class Whole:
    """The reference path on whole images."""

    request: Request
    plan: Plan

    @classmethod
    def of(cls, request: Request) -> Whole:
        """Plan it, with as many items at once as fit, or with one."""
        for items in request.items():
            made = cls(request, plan_whole(request, items))
            if request.budget is None or made.plan.peak_bytes <= request.budget:
                break
        return made

    @property
    def tiling(self) -> TileSpec | None:
        return None

    def run(self, source: Source, out: Tensor | None, report: Report) -> Tensor:
        """The result, in `out` if that is given.

        Raises:
            NonFiniteError: values went out of float16's range, or are too large for norms in another precision.
        """
        request = self.request
        source.check_range(request.dtype)
        if request.patch is None:  # a hook may bring weights in
            request.half.check_weights()
        # Where an offloading hook has the weights, it moves what comes in.
        stays = request.half.device.type == "meta"
        half = request.half if stays else request.half.on(request.device, request.dtype)
        watched = report.progress is not None and not half.is_compiled
        report.expect(self.plan.flops, self.plan.passes)

        def reference(x: Tensor) -> Tensor:
            report.begin_pass()
            report.executed.tiles += self.tiling is not None
            return half.reference(x if stays else x.to(request.device, half.dtype))

        results = []
        start = 0
        for count in parts_of(request.shape[0], self.plan.items):
            part = source.part(slice(start, start + count))
            place = None if out is None else out[start : start + count]
            start += count
            with Watched(request.device, report) if watched else nullcontext() as watch:
                results.append(_placed(reference, half, part, self.tiling, place))
            if watch is not None:
                watch.finish()
            check_result(half, results[-1], request.dtype)
        report.finish()
        if out is not None:
            return out
        return results[0] if len(results) == 1 else torch.cat(results)


@dataclass(frozen=True)
class Tiles(Whole):
    """The reference path on blended tiles."""

    @classmethod
    def of(cls, request: Request) -> Tiles:
        return cls(request, plan_tiles(request, next(request.items())))

    @property
    def tiling(self) -> TileSpec | None:
        return self.request.options.tiling
