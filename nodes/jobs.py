"""A job under the host: memory asked for as planned, progress reported, and a smaller job when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from ..vae_core import Job
from ..vae_core.errors import MemoryBudgetError
from ..vae_core.streaming.job import run_or_smaller
from . import host, speeds
from .status import NodeStatus


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

    def run(job: Job) -> None:
        status.begin(job.device, job.shape if job.half.takes == "image" else job.output_shape)
        with loaded_for(job):
            made = _within_free_memory(job)
            with speeds.timed(made):
                made.run(source, out=out, progress=status)

    def is_short(job: Job, error: BaseException) -> bool:
        if isinstance(error, MemoryBudgetError):  # of the budget that was asked for it says what to set
            return budget is None or job.options.memory_budget != budget
        return host.is_out_of_memory(error)

    run_or_smaller(job, run, is_short, _smaller)


def _smaller(job: Job) -> Job:
    host.soft_empty_cache()
    return job.smaller()


def _within_free_memory(job: Job) -> Job:
    """The job, or a smaller one if the host could not free as much as was asked for."""
    free = host.free_memory(job.device)
    return job if free is None else job.within(free)
