"""Processes that were forked: OpenMP's threads are not in them, and a thread that had some waits for them for ever."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import torch

from . import internals
from .once import WarnOnce

logger = logging.getLogger("seamless_vae")

_TASKS = Path("/proc/self/task")

# Whether this process had more threads than one when it was forked last, and which thread goes on in the child then.
_had_threads = False
_left_alone: int | None = None


def _before() -> None:
    global _had_threads
    # Where threads cannot be counted, those of other libraries may be there.
    _had_threads = len(os.listdir(_TASKS)) > 1 if _TASKS.exists() else True


def _in_child() -> None:
    global _left_alone
    if _had_threads:
        _left_alone = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)

_warn = WarnOnce(logger)
_MESSAGE = (
    "This process was forked after torch had started threads, so its main thread computes single-threaded: with those "
    "threads, which a fork does not copy, it would hang. Use multiprocessing's start method 'spawn', or compute in "
    "another thread."
)


def leave_lost_threads() -> None:
    """Let torch use one thread alone in a thread that a fork has left without its helpers. Costs next to nothing."""
    if _left_alone is not None and _left_alone == threading.get_ident() and torch.get_num_threads() > 1:
        _warn(_MESSAGE)
        internals.set_threads_of_this_thread(1)
