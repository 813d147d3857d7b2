"""Temporary files and folders beside a place, locked by their writer, and the removal of abandoned ones.

The lock goes when its process ends, however it ends, so that a temporary that can be locked has no owner any more.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".seamless-vae-"
SUFFIX = ".tmp"
ABANDONED_SECONDS = 24 * 60 * 60  # where the system has no locks
EXCLUSIVE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
NO_HANDLE = -1
NAMES_A_FILE = 64
MOST_FOLDERS = 1000

_left: dict[str, int] = {}  # by folder: how many files are written into it until the next sweep
_one_at_a_time = threading.RLock()  # where folders cannot be locked


def reserve(folder: Path, create: Callable[..., int], *arguments: object) -> tuple[Path, int]:
    """A temporary of this process alone, and the handle by which this process locks it."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        handle = create(path, *arguments)
        if handle != NO_HANDLE and _lock(handle) is not False and os.path.lexists(path):
            return path, handle
        close(handle)  # a sweep was faster than the lock


def make_folder(path: Path) -> int:
    """Make a folder; returns a handle of it, NO_HANDLE if it has been swept away already."""
    os.mkdir(path)
    try:
        return os.open(os.devnull if fcntl is None else path, os.O_RDONLY)
    except FileNotFoundError:
        return NO_HANDLE
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        raise


def close(handle: int) -> int:
    """Close a handle, if it is one; returns NO_HANDLE."""
    if handle != NO_HANDLE:
        os.close(handle)
    return NO_HANDLE


def _lock(handle: int, shared: bool = False, wait: bool = False) -> bool | None:
    """Lock an open file or folder. False: another process has it; None: the system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(folder: Path, shared: bool) -> Iterator[None]:
    """Wait until no other process or thread has this folder locked, and lock it."""
    handle = NO_HANDLE
    if fcntl is not None:
        with contextlib.suppress(PermissionError):  # a folder that may not be listed
            handle = os.open(folder, os.O_RDONLY)
    try:
        if handle == NO_HANDLE or _lock(handle, shared, wait=True) is None:
            with _one_at_a_time:
                yield
        else:
            yield
    finally:
        close(handle)


def sweep(folder: Path) -> int:
    """Remove the temporaries in a folder whose owners are gone; returns how many names it has."""
    count = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX) and not entry.is_symlink():
                _remove_abandoned(Path(entry.path))
    return count


def sweep_at_times(folder: Path) -> None:
    """`sweep`, but where a folder has many names, not for each file: a file costs the reading of `NAMES_A_FILE`."""
    key = os.fspath(folder)
    left = _left.get(key, 0)
    if left <= 0:
        left = sweep(folder) // NAMES_A_FILE
    if len(_left) >= MOST_FOLDERS:
        _left.clear()
    _left[key] = left - 1


def _remove_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        if fcntl is None:
            if _is_old(os.stat(path)):
                _remove(path)
            return
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            locked = _lock(handle)
            if locked or (locked is None and _is_old(os.fstat(handle))):
                _remove(path)
        finally:
            os.close(handle)


def _is_old(found: os.stat_result) -> bool:
    return time.time() - found.st_mtime > ABANDONED_SECONDS


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
