"""Temporary files and folders, and what is said where there can be none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import IO

from .errors import CheckpointError, in_one_line
from .units import MIB

NO_PLACE = (OSError, ValueError)  # what making one raises: the second, where the folder's name cannot be one


def temporary_folder(what: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for a `with` block. Raises CheckpointError, for `what` as in "the model", where none can be made."""
    try:
        return tempfile.TemporaryDirectory(prefix="seamless-vae-", ignore_cleanup_errors=True)
    except NO_PLACE as error:
        raise CheckpointError(_no_place(what, error)) from error


def temporary_file(what: str) -> IO[bytes]:
    """A file without a name, for a `with` block. Raises CheckpointError where none can be made."""
    try:
        return tempfile.TemporaryFile(prefix="seamless-vae-")  # type: ignore[return-value]
    except NO_PLACE as error:
        raise CheckpointError(_no_place(what, error)) from error


def _no_place(what: str, error: Exception) -> str:
    return (
        f"{what} cannot be put into {place_and_room()}: {in_one_line(error)}. Set TMPDIR to a writable folder with "
        f"room for it."
    )


def place_and_room() -> str:
    """The folder of temporary files and what is free there, for messages."""
    folder = os.environ.get("TMPDIR", "a temporary folder")
    free = ""
    with contextlib.suppress(*NO_PLACE):
        folder = tempfile.gettempdir()
        free = f", where {shutil.disk_usage(folder).free / MIB:.0f} MiB are free"
    return f"{folder}{free}"
