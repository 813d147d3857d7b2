"""Files that others have made, read only if they are regular ones.

A pipe, a socket or a device that stands in a file's place keeps its reader waiting, or never ends; to open one can
already have an effect. So can files of the kernel's that have no size, although they call themselves regular.
"""

from __future__ import annotations

import errno
import io
import os
import stat

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file, to read its bytes.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: a name that the system cannot have.
    """
    _check(path, os.stat(path))
    return open(path, "rb", opener=_opened)


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """All bytes of a file that has at most so many.

    Raises:
        OSError: as `open_regular`, or it cannot be read.
        ValueError: it has more, as a part of a sentence, or its name is none.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = b"" if size > most else file.read(most + 1)
    if max(size, len(raw)) > most:
        raise ValueError(f"it has {max(size, len(raw))} bytes; at most {most} are allowed")
    return raw


def _opened(path: str, flags: int) -> int:
    try:
        handle = os.open(path, flags | _AT_ONCE)
    except BlockingIOError:  # a server of files has a lease on it, which it gives up
        handle = os.open(path, flags)
    try:
        found = os.fstat(handle)
        _check(path, found)  # it may have been exchanged meanwhile
        if stat.S_ISREG(found.st_mode) and not found.st_size and os.read(handle, 1):
            raise OSError(errno.ENXIO, "it has no size, as files of the kernel's", path)
        if _AT_ONCE:
            os.set_blocking(handle, True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # to open a folder says what it is
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
        raise OSError(errno.ENXIO, f"it is {kind}, not a regular file", os.fspath(path))
