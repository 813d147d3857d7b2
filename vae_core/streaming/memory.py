"""How much memory there is."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable

import torch

from . import devices, pages
from .limits import free_within_limits

# Of what is free when a run starts, so much may be used where no budget is given.
DEFAULT_SHARE = 0.7


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where the system does not say."""
    if device.type == "cpu":
        return available_on_cpu()
    free = devices.free_bytes(device)
    if free is None or not devices.has_cpu_memory(device):
        return free
    on_cpu = available_on_cpu()
    return free if on_cpu is None else min(free, on_cpu)


def offload_bytes(device: torch.device) -> int:
    """CPU memory for the maps that do not fit on a device; 0 where it would be the same memory."""
    if devices.has_cpu_memory(device):
        return 0
    return int((available_bytes(torch.device("cpu")) or 0) * DEFAULT_SHARE)


def available_on_cpu() -> int | None:
    """The smallest of what the machine has free and of what this process may still take."""
    known = [free for free in (free_of_machine(), free_within_limits()) if free is not None]
    return min(known, default=None)


def free_of_machine() -> int | None:
    if sys.platform == "win32":
        return _available_on_windows()
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # macOS knows only the total; half of it is a cautious guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return None


def give_back_freed() -> None:
    """Return to the system what is kept of freed memory: for the next run, and by the C library."""
    pages.kept.shrink(0)
    trim_heap()


def trim_heap() -> None:
    """Let the C library return to the system what it keeps of freed memory, where it can be asked to (glibc)."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _available_on_windows() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *[(f"field{index}", ctypes.c_ulonglong) for index in range(7)],
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return None
    return status.field1  # total physical, then available physical
