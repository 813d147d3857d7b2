"""Threads that compute the strips of a pass."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch

from ..units import MIB
from . import internals
from .kernel import Kernel, one_by_one
from .memory import give_back_freed
from .once import WarnOnce
from .pages import mapped
from .shortage import is_out_of_memory

logger = logging.getLogger("seamless_vae")

_PATIENCE = 0.05  # seconds between two looks at what the workers have done
_LAST_PATIENCE = 0.25  # seconds that a thread may take to begin whose start was interrupted, or to leave the system
_STACK = MIB  # for a worker at least, whatever a program has set for its own threads
_ROOM = 4 * MIB  # more than a thread's own data in the libraries that it uses, and what comes with its first steps

Tasks = SimpleQueue[Callable[[], None] | None]


class Flag:
    """An event that no interruption breaks.

    Python's own takes its lock by a function of Python: an interruption at its end leaves that locked for ever. Here
    the truth is an attribute, and the lock only wakes who waits.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._at_fork_reinit()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._wake()

    def clear(self) -> None:
        self._is_set = False
        self._lock.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self._is_set and (left := until - time.monotonic()) > 0:
            self._lock.acquire(timeout=min(left, _PATIENCE))
        self._wake()  # others that wait
        return self._is_set

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is not locked
            self._lock.release()

    def _at_fork_reinit(self) -> None:  # as threads ask of their events
        self._lock = threading.Lock()
        self._lock.acquire()


class WorkerPool:
    """A context with so many threads, each of which lets torch use one itself; none for one.

    If not all of them can be started, those that could do the work, or the calling thread does; a warning says so. The
    numbers of threads that torch uses in other threads, and in those to come, stay as they are. Whatever is raised, and
    whenever, the threads end with the context.

    Attributes:
        size: how many threads are at work; 0 if the calling thread computes.
    """

    def __init__(self, count: int) -> None:
        self.size = 0
        self._wanted = count if count > 1 else 0
        self._tasks: Tasks = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._threads_here: int | None = None  # that torch used in this thread, if it has to do with one
        self._ended = Flag()  # for workers that begin only after the pool was ended
        self._gate = Flag()

    def __enter__(self) -> WorkerPool:
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_whatever_comes()
        interruption = getattr(error, "__context__", None)
        if isinstance(error, RuntimeError) and isinstance(interruption, KeyboardInterrupt):
            raise interruption from None  # which came while Python waited for an event: then it says this instead

    def __del__(self) -> None:  # an interruption may come just before `__exit__`
        if hasattr(self, "_gate"):
            self._tell_to_end()

    @property
    def alive(self) -> bool:
        """Whether a worker is."""
        return any([thread.is_alive() for thread in self._threads])

    def submit(self, work: Callable[[], None]) -> None:
        """Have every worker run this; it must not raise."""
        for _ in range(self.size):
            self._tasks.put(work)

    def _start(self) -> None:
        workers = self._begin("seamless-vae", _serve, self._wanted)
        # The calling thread starts some too: OpenMP does, for torch, and ends the process if it cannot. So the same
        # number is tried, all at once; and then OpenMP has its own at once, while there is still room for them.
        spare = torch.get_num_threads() - 1 if self._wanted else 0
        self.size = len(workers)
        spares: list[_Thread] = []
        if self.size == self._wanted:
            spares = self._begin("seamless-vae-spare", lambda tasks, gate, ended: gate.wait(), spare)
        enough = self.size == self._wanted and len(spares) == spare
        room = _room(spare) if enough and spare else None
        self._gate.set()
        if room is not None:
            for thread in spares:
                _join(thread)
                _wait_until_gone(thread)
            del self._threads[self.size :]
            room.close()
            torch.ones((1 + spare) * internals.GRAIN, dtype=torch.uint8, device="cpu")
        elif spare or not enough:
            self._threads_here = torch.get_num_threads()
            internals.set_threads_of_this_thread(1)
            _warn_of_missing_threads(self.size, self._wanted)

    def _begin(self, name: str, run: Callable[[Tasks, Flag, Flag], object], count: int) -> list[_Thread]:
        """Start so many threads, or as many as can be: one by one, so that none takes the room of another."""
        begun: list[_Thread] = []
        for number in range(count):
            room = _room(1)
            if room is None:
                break
            thread = _Thread(f"{name}-{number}", room, run, self._tasks, self._gate, self._ended)
            self._threads.append(thread)  # first: an interruption may come while it starts
            try:
                with _enough_stack():
                    thread.start()
            except (RuntimeError, MemoryError, OSError) as error:
                self._threads.pop()
                if not is_out_of_memory(error) and getattr(error, "errno", None) != errno.EAGAIN:
                    raise
                break
            if not thread.settles():
                break
            begun.append(thread)
        return begun

    def _stop_whatever_comes(self) -> None:
        """Stop, even if this is interrupted once."""
        try:
            self._stop()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._tell_to_end()
        for thread in self._threads:
            _join(thread)
        self._threads.clear()
        self.size = 0
        if self._threads_here is not None:
            internals.set_threads_of_this_thread(self._threads_here)
            self._threads_here = None

    def _tell_to_end(self) -> None:
        self._ended.set()
        self._gate.set()
        for _ in self._threads:
            self._tasks.put(None)


class _Thread(threading.Thread):
    """One that ends without a word where it has no memory to report an error, and the pass with it.

    A library allocates a thread's own data at the thread's first use of it, and the process is ended if there is no
    memory for that. So all of it is used at once, while there is `room`.
    """

    def __init__(self, name: str, room: mmap.mmap, run: Callable[..., object], *given: Any) -> None:
        # It keeps no reference to the pool, so a pool that is forgotten ends its workers.
        super().__init__(name=name)
        self.__dict__["_started"] = Flag()  # for which `start` waits
        self._room = room
        self._run = run, given
        self._settled = Flag()

    def run(self) -> None:
        with contextlib.suppress(MemoryError):
            self._room.close()
            internals.claim_data_of_this_thread(computes=self._run[0] is _serve)
            self._settled.set()
            run, given = self._run
            run(*given)

    def settles(self) -> bool:
        """Wait until it has what it cannot do without; False if it could not have it."""
        while not self._settled.wait(_PATIENCE) and self.is_alive():
            pass
        return self._settled.is_set()


@contextlib.contextmanager
def _enough_stack() -> Iterator[None]:
    """Let threads that start have as much as compiled code needs: with less it ends the process."""
    before = threading.stack_size(_STACK)  # 0: the system's usual size; asking alone would set it to that
    try:
        if not 0 < before < _STACK:
            threading.stack_size(before)
        yield
    finally:
        threading.stack_size(before)


def _room(threads: int) -> mmap.mmap | None:
    """Memory to be given back just before so many threads need some; None if there is none."""
    try:
        return mapped(threads * _ROOM, "threads")
    except MemoryError:
        return None


def _serve(tasks: Tasks, gate: Flag, ended: Flag) -> None:
    """What a worker does."""
    internals.set_threads_of_this_thread(1)
    while not ended.is_set() and (task := tasks.get()) is not None:
        task()
        del task


def _join(thread: threading.Thread) -> None:
    """Wait for a thread to end; briefly, if its start was interrupted, which may have been before it began."""
    latest = time.monotonic() + _LAST_PATIENCE
    while not thread.ident and time.monotonic() < latest:
        time.sleep(0.001)
    if thread.ident:
        thread.join()
    else:  # Python would list it among those that start for ever
        threading.__dict__.get("_limbo", {}).pop(thread, None)


def _wait_until_gone(thread: threading.Thread) -> None:
    """Wait a while until the system has back what a thread that was joined had: Python does not wait for that."""
    latest = time.monotonic() + _LAST_PATIENCE
    while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < latest:
        time.sleep(1e-5)


missing_threads = WarnOnce(logger)


def _warn_of_missing_threads(started: int, wanted: int) -> None:
    missing_threads(
        "the system does not allow %d more threads (%d could be started), so this takes longer. Raise the limit of "
        "processes or of memory (ulimit -u, ulimit -v, or that of the container), or close other programs.",
        wanted,
        started,
    )


def run_strips(
    kernel: Kernel, pool: WorkerPool | None, advance: Callable[[int], None], trim: bool = False
) -> list[Any]:
    """Results of all strips of a pass, in their order.

    Args:
        advance: called with the FLOPs done; what it raises ends the pass within a strip.
        trim: give freed memory back to the system after every strip.
    """
    if pool is None or not pool.size or not kernel.parallel or len(kernel.layout) == 1:
        return _one_after_another(kernel, advance, trim)
    return _InThreads(kernel.compute, kernel.layout.strips(), kernel.flops).run(pool, advance)


def run_each(pool: WorkerPool | None, work: Callable[[int], object], count: int) -> None:
    """Run a piece of work for each number below `count`, on the threads of a pool."""
    if pool is None or not pool.size or count == 1:
        one_by_one(work, count)
    else:
        _InThreads(work, range(count), lambda _: 0).run(pool, lambda _: None)


def _one_after_another(kernel: Kernel, advance: Callable[[int], None], trim: bool) -> list[Any]:
    parts = []
    for strip in kernel.layout.strips():
        parts.append(kernel.compute(strip))
        if trim:
            give_back_freed()
        advance(kernel.flops(strip))
    return parts


class _InThreads:
    """Pieces of work, such as the strips of a pass, handed out one by one to whichever worker is free.

    Args:
        compute: of a piece, its result.
        flops: of a piece.
    """

    def __init__(self, compute: Callable[[Any], Any], pieces: Sequence[Any], flops: Callable[[Any], int]) -> None:
        self.compute = compute
        self.pieces = pieces
        self.flops_of = flops
        self.results: list[Any] = [None] * len(pieces)
        # Lists and deques are the messages between threads: they are appended to and popped from atomically.
        self.left = deque(range(len(self.pieces)))
        self.at_work: list[threading.Thread] = []
        self.computed: list[int] = []
        self.flops: deque[int] = deque()
        self.errors: list[BaseException] = []
        self.stopped = False
        self.news = Flag()
        self.inference = torch.is_inference_mode_enabled()  # these modes are each thread's own

    def run(self, pool: WorkerPool, advance: Callable[[int], None]) -> list[Any]:
        try:
            pool.submit(self._work)
            while len(self.computed) < len(self.pieces) and not self.errors:
                self._wait_for_news()
                if not pool.alive or self._is_lost():
                    raise MemoryError("the threads that compute strips ended before their work was done.")
                while self.flops:
                    advance(self.flops.popleft())
        finally:
            try:
                self._wait_until_idle()
            finally:  # that may be interrupted, and maps go only after the last strip
                self._wait_until_idle()
        if self.errors:
            try:
                raise self.errors[0]
            finally:
                self.errors.clear()  # their tracebacks have frames with maps
        while self.flops:
            advance(self.flops.popleft())
        return self.results

    def _wait_until_idle(self) -> None:
        self.stopped = True
        while self._is_at_work():
            self._wait_for_news()

    def _is_at_work(self) -> bool:
        """Whether a thread is; one that has ended without having memory to say so is not."""
        return any([thread.is_alive() for thread in list(self.at_work)])

    def _is_lost(self) -> bool:
        """Whether a piece was taken by a thread that has ended since."""
        # In this order: once none is left and none is at work, all that will ever be computed is.
        return not self.left and not self._is_at_work() and len(self.computed) < len(self.pieces) and not self.errors

    def _wait_for_news(self) -> None:
        """Sleep until a worker has ended, or for a moment. Cleared at once: a wait that returns at once takes the
        interpreter's lock from the workers that are left."""
        self.news.wait(_PATIENCE)
        self.news.clear()

    def _work(self) -> None:
        with torch.inference_mode(self.inference), torch.no_grad():
            thread = threading.current_thread()
            self.at_work.append(thread)  # first: once none is seen at work, none may begin
            try:
                while not self.stopped and not self.errors:
                    try:
                        index = self.left.popleft()
                    except IndexError:
                        break
                    self.results[index] = self.compute(self.pieces[index])
                    self.flops.append(self.flops_of(self.pieces[index]))
                    self.computed.append(index)
            except BaseException as error:
                self.errors.append(error)
            finally:
                self.at_work.remove(thread)
                self.news.set()
