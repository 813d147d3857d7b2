"""The exact way: a program, strip by strip."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, VAEError, in_one_line
from ..units import MIB
from .choose import computing_dtype
from .executor import Execution, Manner, PackedWeights
from .limits import free_within_own
from .plan import Plan, ProgramPlan, plan_program
from .pool import WorkerPool
from .progress import Report
from .request import Request
from .scratch import Spare
from .shortage import is_out_of_memory
from .source import Source
from .store import MapStore

logger = logging.getLogger("seamless_vae")

# Under smaller budgets, what allocators keep between passes is a good part of them.
_TRIM_BELOW = 512 * MIB

_CHANGED = "the weights of this model were changed while it ran"
_REMEDY = "Run it again, and change weights between runs, or those of a copy."


@dataclass(frozen=True)
class Strips:
    """A program as it was planned."""

    request: Request
    planned: ProgramPlan

    @classmethod
    def of(cls, request: Request) -> Strips:
        """Plan it. Raises MemoryBudgetError if no size of strips fits the budget."""
        options = request.options
        budget = options.memory_budget
        manner = Manner(
            device=request.device,
            dtype=computing_dtype(request.dtype, request.device, request.kernels),
            map_dtype=request.dtype,
            workers=request.workers,
            kernels=request.kernels,
            circular=options.axes,
            strip_latents=options.strip_latents,
            trim=request.device.type == "cpu" and budget is not None and budget < _TRIM_BELOW,
            keep=request.device.type == "cpu" and budget is None,
        )
        return cls(request, plan_program(request, manner))

    @property
    def plan(self) -> Plan:
        return self.planned.plan

    def run(self, source: Source, out: Tensor | None, report: Report) -> Tensor:
        """Fill `out` strip by strip: one store, one pool, and weights packed once for all parts of the batch.

        Raises:
            NonFiniteError: values went out of the precision's range.
            ConfigError: weights have no values, or were changed meanwhile so that nothing could be computed.
        """
        request = self.request
        planned = self.planned
        manner = planned.manner
        items = planned.plan.items
        batch = request.shape[0]
        request.half.check_weights()
        written = request.half.written()
        if out is None:
            out = torch.empty(request.output_shape, dtype=manner.map_dtype, device=manner.device)
        room = planned.room
        keep = manner.keep and free_within_own() is None
        disk = planned.plan.places.disk
        store = MapStore(manner.device, planned.map_limit, request.offload, disk, room.scratch, keep)
        weights = PackedWeights(planned.packed_limit, spare=Spare(room.weights, keep))
        report.expect(planned.plan.flops, planned.plan.passes)
        rows = request.latent_size[0]
        try:
            with WorkerPool(manner.workers if manner.device.type == "cpu" else 1) as pool:
                for start in range(0, batch, items):
                    part = slice(start, min(start + items, batch))
                    passes = planned.planned if start + items <= batch else planned.rest
                    find_damage = request.half.find_damage
                    execution = Execution(request.passes, manner, store, planned=passes, find_damage=find_damage)
                    execution.run(source.part(part), out[part], rows, pool, report, weights)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, VAEError) or is_out_of_memory(error):
                raise
            request.half.check_weights()
            if request.half.written() != written:
                raise ConfigError(f"{_CHANGED}, which ended it ({in_one_line(error)}). {_REMEDY}") from error
            raise
        finally:
            report.executed.places = {**store.peak}
            store.drop_free()  # an exception's traceback may keep the store
        if request.half.written() != written:
            logger.warning("%s, so the result may be of both. %s", _CHANGED, _REMEDY)
        return out
