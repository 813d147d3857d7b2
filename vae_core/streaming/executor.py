"""Runs a program: allocates maps, runs each pass strip by strip, and frees what no later pass reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .attend import AttentionPass, PackedAttentionPass
from .convolution import DirectConvolution, choose_kernel
from .maps import FeatureMap
from .memory import give_back_freed
from .program import INPUT, OUTPUT, Attend, Convolve, Pass, output_size, sources
from .stats import ChannelStats
from .store import MapStore
from .strips import NO_WRAP, STRIP_BYTES, PassInputs, Wrap
from .winograd import drop_scratch


@dataclass(frozen=True)
class Settings:
    """How a program is run.

    Attributes:
        device: where the arithmetic happens; maps lie where the store puts them.
        wrap: the axes along which the image continues at its other side.
        strip_latents: most latent rows in a strip; None for what suits each pass.
        strip_bytes: size of a strip where the kernel leaves it open; None for what suits the device.
        plain_kernels: use torch's convolutions alone.
        check_finite: raise NonFiniteError in the pass that first makes a number that is not finite.
        trim: give freed memory back to the system after every pass, which costs some percent of the time.
    """

    device: torch.device
    wrap: Wrap = NO_WRAP
    strip_latents: int | None = None
    strip_bytes: int | None = None
    plain_kernels: bool = False
    check_finite: bool = False
    trim: bool = False

    @property
    def bytes_per_strip(self) -> int:
        """`strip_bytes`, or what suits the device: a CPU's cache, a GPU's need of much to do at once."""
        return self.strip_bytes or (STRIP_BYTES if self.device.type == "cpu" else 2**28)


@contextmanager
def worker_pool() -> Iterator[ThreadPoolExecutor | None]:
    """As many threads as torch uses in the calling thread, each using one itself; None where that is one.

    torch keeps its number of threads per thread, with a common default for threads to come, which is put back.
    """
    count = torch.get_num_threads()
    if count == 1:
        yield None
        return
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    with ThreadPoolExecutor(count, thread_name_prefix="seamless-vae", initializer=start) as pool:
        for _ in range(count):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(count)
        yield pool


class Execution:
    """A program at work on one batch: its maps, and the statistics of what was written."""

    def __init__(self, passes: list[Pass], settings: Settings, store: MapStore, dtype: torch.dtype) -> None:
        self.passes = passes
        self.settings = settings
        self.store = store
        self.dtype = dtype
        self.maps: dict[str, FeatureMap] = {}
        self._owned: dict[str, FeatureMap] = {}  # what the store lent, by the map that it now holds
        self.stats: dict[str, ChannelStats] = {}

    def run(
        self,
        batch: Tensor,
        output: Tensor,
        latent_rows: int,
        pool: ThreadPoolExecutor | None,
        advance: Callable[[int], None],
    ) -> None:
        """Fill `output` [B, K, H', W'] from `batch` [B, C, H, W].

        Args:
            latent_rows: height of the latent, by which strips are measured.
            pool: from `worker_pool`.
            advance: told of the arithmetic done; what it raises ends the run within a strip.

        Raises:
            NonFiniteError: a number went out of range, and the settings ask to look for it.
        """
        for index, (step, kernel) in enumerate(self.kernels(batch, output, latent_rows)):
            kernel.prepare()
            stats = kernel.combine(_run_strips(kernel, pool, advance, self.settings.trim))
            if self.settings.check_finite and not stats.finite:
                raise NonFiniteError(_overflow_message(index, len(self.passes), self.dtype))
            self.stats[step.target] = stats
            if self.settings.trim:
                del kernel
                give_back_freed()

    def kernels(self, batch: Tensor, output: Tensor, latent_rows: int) -> Generator[tuple[Pass, Any], None, None]:
        """Each pass with its kernel, its maps allocated; maps that no later pass reads are released after it.

        With tensors and a store on the device "meta" this is a rehearsal that computes nothing.
        """
        ends = {INPUT: batch, OUTPUT: output}
        self.maps = {name: FeatureMap.of(each.permute(0, 2, 3, 1)) for name, each in ends.items()}
        last_use = {name: index for index, step in enumerate(self.passes) for name in sources(step)}
        try:
            for index, step in enumerate(self.passes):
                self._allocate_target(step)
                kernel = self._kernel(step, latent_rows)
                try:
                    yield step, kernel
                finally:
                    kernel.close()
                    del kernel
                for name in [name for name, last in last_use.items() if last == index]:
                    self._release(name)
        finally:
            for name in list(self.maps):
                self._release(name)

    def _allocate_target(self, step: Pass) -> None:
        if step.target in self.maps:  # in place, or the output
            return
        batch, height, width, channels = self.maps[step.source].shape
        if isinstance(step, Convolve):
            channels = step.conv.out_channels
            if step.reuses is not None:
                self._owned[step.target] = self._owned.pop(step.reuses)
                self.maps[step.target] = self.maps[step.reuses].narrowed(channels)
                return
        height, width = output_size(step, height, width)
        owned = self.store.allocate((batch, height, width, channels), self.dtype)
        self.maps[step.target] = self._owned[step.target] = owned

    def _release(self, name: str) -> None:
        self.maps.pop(name, None)
        owned = self._owned.pop(name, None)
        if owned is not None:
            self.store.release(owned)

    def _coefficients(self, step: Pass) -> tuple[Tensor, Tensor] | None:
        norm = step.attention.group_norm if isinstance(step, Attend) else step.norm
        stats = self.stats.get(step.source)  # none in a rehearsal
        return None if norm is None or stats is None else stats.affine(norm)

    def _kernel(self, step: Pass, latent_rows: int) -> Any:
        source, target = self.maps[step.source], self.maps[step.target]
        settings, coefficients = self.settings, self._coefficients(step)
        if isinstance(step, Attend):
            if PackedAttentionPass.suits(source, settings.device) and not settings.plain_kernels:
                return PackedAttentionPass(step.attention, source, target, coefficients, settings.bytes_per_strip)
            return AttentionPass(
                step.attention, source, target, coefficients, self.store, settings.device, settings.bytes_per_strip
            )
        max_rows = settings.strip_latents
        if max_rows is not None:
            max_rows = max(1, max_rows * target.shape[1] // latent_rows)
        precision = torch.float64 if self.dtype == torch.float64 else torch.float32
        inputs = PassInputs(
            step=step,
            source=source,
            target=target,
            residual=None if step.residual is None else self.maps[step.residual],
            coefficients=coefficients and (coefficients[0].to(precision), coefficients[1].to(precision)),
            wrap=settings.wrap,
            max_rows=max_rows,
            strip_bytes=settings.bytes_per_strip,
            device=settings.device,
        )
        kernel = (
            DirectConvolution
            if settings.plain_kernels
            else choose_kernel(step, source.shape[3], target, settings.device)
        )
        return kernel(inputs)


def _run_strips(
    kernel: Any, pool: ThreadPoolExecutor | None, advance: Callable[[int], None], trim: bool = False
) -> list[Any]:
    """Results of all strips of a pass, in their order."""
    strips, costs = kernel.strips(), kernel.costs()
    if pool is None or not kernel.parallel or len(strips) == 1:
        parts = []
        try:
            for strip, cost in zip(strips, costs, strict=True):
                parts.append(kernel.compute(strip))
                if trim:
                    give_back_freed()
                advance(cost)
        finally:
            drop_scratch()
        return parts
    results: list[Any] = [None] * len(strips)
    stopped = threading.Event()
    queue = iter(range(len(strips)))
    lock = threading.Lock()
    done: list[int] = []
    inference = torch.is_inference_mode_enabled()  # these modes are each thread's own

    @torch.inference_mode(inference)
    @torch.no_grad()
    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    index = next(queue, None)
                if index is None:
                    return
                results[index] = kernel.compute(strips[index])
                done.append(costs[index])  # append and pop are atomic
        finally:
            drop_scratch()

    workers: set[Future[None]] = {pool.submit(work) for _ in range(pool._max_workers)}
    try:
        pending = workers
        while pending:
            finished, pending = wait(pending, timeout=0.05, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            while done:
                advance(done.pop())
    finally:
        stopped.set()
        wait(workers)
    return results


def _overflow_message(index: int, passes: int, dtype: torch.dtype) -> str:
    return (
        f"numbers went out of the range of {str(dtype).removeprefix('torch.')} in pass {index + 1} of {passes}. "
        f"Run this model in bfloat16 or float32."
    )
