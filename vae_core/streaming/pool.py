"""Threads that compute the strips of a pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from .kernel import Kernel
from .memory import give_back_freed
from .winograd import drop_scratch


@contextmanager
def worker_pool(count: int) -> Iterator[ThreadPoolExecutor | None]:
    """So many threads, each of which lets torch use one itself; None for one.

    torch keeps its number of threads per thread, with a common default for threads to come, which is put back.
    """
    if count == 1:
        yield None
        return
    before = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    with ThreadPoolExecutor(count, thread_name_prefix="seamless-vae", initializer=start) as pool:
        for _ in range(count):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(before)
        yield pool


def run_strips(
    kernel: Kernel, pool: ThreadPoolExecutor | None, advance: Callable[[int], None], trim: bool = False
) -> list[Any]:
    """Results of all strips of a pass, in their order.

    Args:
        advance: called with the FLOPs done; what it raises ends the pass within a strip.
        trim: give freed memory back to the system after every strip.
    """
    if pool is None or not kernel.parallel or len(kernel.layout) == 1:
        return _one_after_another(kernel, advance, trim)
    return _in_threads(kernel, pool, advance)


def _one_after_another(kernel: Kernel, advance: Callable[[int], None], trim: bool) -> list[Any]:
    parts = []
    try:
        for strip in kernel.layout.strips():
            parts.append(kernel.compute(strip))
            if trim:
                give_back_freed()
            advance(kernel.flops(strip))
    finally:
        drop_scratch()
    return parts


def _in_threads(kernel: Kernel, pool: ThreadPoolExecutor, advance: Callable[[int], None]) -> list[Any]:
    strips = kernel.layout.strips()
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
                done.append(kernel.flops(strips[index]))  # append and pop are atomic
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
