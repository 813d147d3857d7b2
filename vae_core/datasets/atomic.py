"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

from ..errors import DatasetError

TEMPORARY = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it into its place.

    Raises:
        DatasetError: it cannot be written. What was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        size = f"{len(data) / 1e6:.1f} MB"
        if error.errno in _FULL:
            raise DatasetError(
                f"no space is left for {path} ({size}). Everything that was finished is whole and stays valid: "
                f"free some space and run the same command with --resume."
            ) from error
        raise DatasetError(
            f"cannot write {path} ({size}): {error.strerror or error}. Check the folder and its permissions, "
            f"and run the same command with --resume."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove the temporary files of runs that were killed, in a folder and below it; returns how many there were."""
    count = 0
    for root, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(TEMPORARY):
                with suppress(OSError):
                    os.unlink(os.path.join(root, name))
                    count += 1
    return count


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be opened."""
    with suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
