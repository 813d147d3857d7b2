"""A job under the host: memory asked for as planned, progress reported, and a smaller job when memory runs out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from ..vae_core import Job
from ..vae_core.errors import MemoryBudgetError
from . import host, speeds
from .status import NodeStatus

logger = logging.getLogger("seamless_vae")


def run_job(
    job: Job,
    source: Tensor,
    out: Tensor,
    status: NodeStatus,
    loaded_for: Callable[[Job], AbstractContextManager[None]],
) -> None:
    """Run a job, or the next smaller one as often as memory runs out. The result is the same.

    Args:
        source: images or raw z, [B, C, H, W], on any device.
        out: memory for the result, of `job.output_shape`.
        loaded_for: while its context is open, the model has its weights and the job its memory.

    Raises:
        NonFiniteError: NaN or infinite values in the source.
        MemoryBudgetError: no job is small enough, or the disk has no room for what a budget leaves.
    """
    budget = job.options.memory_budget
    while True:
        status.begin(job.device)
        try:
            with loaded_for(job):
                made = _within_free_memory(job)
                began = time.monotonic()
                made.run(source, out=out, progress=status)
                speeds.record(made, time.monotonic() - began)
            return
        except MemoryBudgetError:
            if budget is not None and job.options.memory_budget == budget:  # the message says what budget to set
                raise
        except BaseException as error:
            if not host.is_out_of_memory(error):
                raise
        # Outside of the handlers: their traceback would keep every tensor of the failed run alive.
        host.soft_empty_cache()
        smaller = job.smaller()
        logger.warning("Memory ran out %s; now %s. The result is the same.", job.how, smaller.how)
        job = smaller


def _within_free_memory(job: Job) -> Job:
    """The job, or a smaller one if the host could not free as much as was asked for."""
    free = host.free_memory(job.device)
    return job if free is None else job.within(free)
