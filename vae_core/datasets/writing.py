"""Writing the files of a collection: whole or not at all, and a full disk said in one sentence."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ..atomic import write_file
from ..errors import DatasetError, brief, in_one_line
from ..file_names import text_of
from ..temporaries import sweep

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def folder_name(place: str | os.PathLike[str]) -> str:
    """A folder as a caller gave it. Raises DatasetError for what has no name: an empty one, or no path at all."""
    text = text_of(place)
    if not text:
        raise DatasetError(f"the folder has no name: it is {brief(place)}. Give one; `.` is the current folder.")
    return text


def local_folder(place: str | os.PathLike[str]) -> Path:
    """A folder to write to, as an absolute path: processes elsewhere have other working directories.

    Raises:
        DatasetError: it is a URL, or empty.
    """
    text = folder_name(place)
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # a Path has one slash of the two; C:/ has one letter
        raise DatasetError(
            f"{text} is a URL, and collections are written to folders. Give a folder (in a mounted bucket, if it is "
            f"to be there), or copy the collection there afterwards."
        )
    return Path(os.path.abspath(text))


def write_bytes(path: Path, data: bytes, overwrite: bool = True) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it into its place.

    Raises:
        DatasetError: it cannot be written. What was there before stays.
    """
    try:
        write_file(path, lambda file: file.write(data), overwrite=overwrite)
    except FileExistsError:
        raise DatasetError(f"{path} exists already. Give another folder, or pass --overwrite.") from None
    except OSError as error:
        size = f"{len(data) / 1e6:.1f} MB"
        if error.errno in _FULL:
            raise DatasetError(
                f"no space is left for {path} ({size}). Everything that was finished is whole and stays valid: "
                f"free some space and run the same command with --resume."
            ) from error
        raise DatasetError(
            f"cannot write {path} ({size}): {in_one_line(error)}. Check the folder and its permissions, "
            f"and run the same command with --resume."
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed runs left in a folder and below it."""
    for root, _, _ in os.walk(folder):
        sweep(Path(root))
