"""How long numba compiles: once on a machine, because compiled functions are kept on disk.

What is used of numba (0.60 to 0.68) that it does not promise to keep, to look at when upgrading it:
`numba.core.event.TimingListener` with `done` and `duration`, `install_listener`, and the name of the event,
`numba:compile`; see "Event API" in its manual for developers. Where one is missing, compiling counts as part of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def compile_time() -> Iterator[Callable[[], float]]:
    """Seconds for which numba has compiled functions in this context so far; 0 without a numba that says so.

    They are seconds of the clock, in whatever thread; functions that compile each other count once.
    """
    with ExitStack() as stack:
        timer: Any = None
        if "numba" in sys.modules:  # else nothing compiles, and its import takes a second
            try:
                from numba.core.event import TimingListener, install_listener

                timer = stack.enter_context(install_listener("numba:compile", TimingListener()))
            except Exception:  # a numba that is too new, too old or broken
                timer = None
        yield lambda: timer.duration if timer is not None and timer.done else 0.0
