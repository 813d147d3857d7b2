"""That one run at a time writes to a collection."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DatasetError, in_one_line


@contextmanager
def sole_writer(records: Path, patience: float = 5.0) -> Iterator[None]:
    """Make sure that no other run writes to the collection, where the system has locks on files.

    The lock is the process's own: readers that outlive a run that was killed do not have it. Folders that are made for
    it are gone afterwards, if nothing was written.

    Raises:
        DatasetError: another run has it, and keeps it for so many seconds.
    """
    place = Path(os.path.realpath(records)) / ".lock"
    if str(place) in _writing:
        raise DatasetError(_OTHER_RUN.format(records))
    _writing.add(str(place))
    handle = None
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        handle = _locked(place, time.monotonic() + patience)
        yield
    finally:
        _writing.discard(str(place))
        if handle is not None:
            with suppress(OSError):
                place.unlink()
            os.close(handle)
        with suppress(OSError):  # of the first that is not empty
            for folder in made:
                folder.rmdir()


_writing: set[str] = set()  # by this process, which does not lock itself out
_OTHER_RUN = "another run is writing to {}. Wait for it, or stop it first."


def _locked(place: Path, deadline: float) -> int | None:
    """A handle of the lock; None where the system has none."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if place.exists() and os.path.samestat(os.fstat(handle), place.stat()):
                    return handle
            except (BlockingIOError, PermissionError):  # another process has it
                if time.monotonic() > deadline:
                    os.close(handle)
                    raise DatasetError(_OTHER_RUN.format(place.parent)) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                return handle
            os.close(handle)
    except OSError as error:
        raise DatasetError(f"cannot write to {place.parent}: {in_one_line(error)}. Check the folder.") from None
