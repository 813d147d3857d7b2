"""What a case may take: two seconds and 64 MiB beyond its file, whatever comes of it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from vae_core.compile_time import compile_time

with suppress(ImportError):
    import numba  # noqa: F401  # which the first case would wait for, and whose compiling would not be seen

SECONDS, BYTES = 2, 64 << 20
IN_MEMORY = Path("/dev/shm")  # where a file costs a tenth of one on a disk
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def limits(size: int = 0, more: float = 0) -> Iterator[None]:
    """Fail if the block takes more than a case may.

    Seconds are those of the processor, so that a busy machine is not taken for a slow case, without those in which
    functions were compiled for the first time on this machine. The peak is the process's own high-water mark, where the
    system tells it: what a case takes and gives back counts too.

    Args:
        size: bytes of the file or the tensors that the case consists of.
        more: seconds beyond the two, for what a case may honestly ask for.
    """
    _reset_peak()
    _, resident = _memory()
    start = time.process_time()
    with compile_time() as compiled:
        yield
        seconds = time.process_time() - start - compiled()
    assert seconds < SECONDS + more, f"{seconds:.1f} s"
    peak, _ = _memory()
    assert peak - resident < BYTES + size, f"{(peak - resident) / 2**20:.0f} MiB for a case of {size} bytes"


def _reset_peak() -> None:
    """Let the high-water mark begin at what is resident now."""
    if PEAK_RESET.exists():
        PEAK_RESET.write_text("5")


def _memory() -> tuple[int, int]:
    """Bytes of the high-water mark and of what is resident; zeros where the system does not tell."""
    if not STATUS.exists():
        return 0, 0
    found = {line[:6]: line for line in STATUS.read_text().splitlines()}
    peak, resident = (int(found[name].split()[1]) << 10 for name in ("VmHWM:", "VmRSS:"))
    return peak, resident


recorded: dict[bytes, None] | None = None  # the files that were put, for whoever wants them as a corpus


def put(name: str, raw: bytes | bytearray) -> Path:
    """A case's file in `folder()`."""
    path = folder() / name
    path.write_bytes(raw)
    if recorded is not None:
        recorded[bytes(raw)] = None
    return path


@cache
def folder() -> Path:
    """A folder for the files of this process's cases, removed at its end."""
    made = tempfile.mkdtemp(prefix="seamless-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(made, ignore_errors=True) if os.getpid() == owner else None)
    return Path(made)
