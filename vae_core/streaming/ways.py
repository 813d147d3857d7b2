"""What choosing a run's way needs, each found out once and only where it decides: its request, and its plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from .choose import Way, kernel_choice
from .devices import numbered
from .half import Half
from .options import Options
from .plan import Plan
from .program import Pass
from .progress import Report
from .reference import Tiles, Whole
from .request import Request
from .source import Source
from .strips import Strips


class Planned(Protocol):
    """A way of running, planned: Strips, Whole or Tiles."""

    @property
    def plan(self) -> Plan: ...

    def run(self, source: Source, out: Tensor | None, report: Report) -> Tensor:
        """Run as planned, into `out` if it is given. Raises NonFiniteError if values leave the precision's range."""
        ...


class PlannedRun:
    """A run whose way is to be chosen, see `choose.Run`, and the plans of its ways, each made once."""

    def __init__(self, half: Half, shape: Sequence[int], options: Options, x: Tensor | None = None) -> None:
        self.half = half
        self.shape = shape
        self.options = options
        self.x = x
        self._patch: str | None = None
        self._request: Request | None = None
        self._passes: list[Pass] | None = None
        self._whole: Whole | None = None
        self._strips: Strips | None = None

    @classmethod
    def of(cls, request: Request) -> PlannedRun:
        """That of a job."""
        made = cls(request.half, request.shape, request.options)
        made._request = request
        made._patch = request.patch
        return made

    def find_patch(self) -> str | None:
        if self._request is None and self._patch is None:
            self._patch = self.half.find_patch()
        return self._patch

    def passes(self) -> list[Pass]:
        if self._passes is None:
            self._passes = self.half.program() if self._request is None else self._request.passes
        return self._passes

    def request(self) -> Request:
        """All that planning goes by."""
        if self._request is None:
            batch, channels, height, width = self.shape
            shape = (batch, channels, height, width)
            device = numbered(self.half.device)
            self._request = Request.of(
                self.half, shape, self.options, device, None, kernel_choice(), self._patch, self.passes()
            )
        return self._request

    def device(self) -> torch.device:
        return self.request().device

    def dtype(self) -> torch.dtype:
        return self.request().dtype

    def whole_fits(self) -> bool:
        budget = self.request().budget
        return budget is None or self.whole().plan.peak_bytes <= budget

    def strips_fit(self) -> bool:
        try:
            self.strips()
        except MemoryBudgetError:
            return False
        return True

    def whole(self) -> Whole:
        if self._whole is None:
            self._whole = Whole.of(self.request())
        return self._whole

    def strips(self) -> Strips:
        if self._strips is None:
            self._strips = Strips.of(self.request())
        return self._strips

    def planned(self, way: Way) -> Planned:
        """The plan of a way."""
        if way.name == "strips":
            return self.strips()
        return Tiles.of(self.request()) if way.name == "tiles" else self.whole()
