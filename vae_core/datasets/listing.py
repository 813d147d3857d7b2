"""Lists of files that are whole, or an error: a folder that cannot be read is not taken for an empty one."""

from __future__ import annotations

from typing import Any

import fsspec

from ..errors import DatasetError, in_one_line

_Walking = fsspec.AbstractFileSystem


class _Strict:
    """A file system that fsspec walks through, folder by folder: there it leaves out those that it cannot list."""

    walk = _Walking.walk
    find = _Walking.find
    glob = _Walking.glob

    def __init__(self, system: fsspec.AbstractFileSystem) -> None:
        self._system = system

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def ls(self, path: str, **options: Any) -> list[Any]:
        try:
            return self._system.ls(path, **options)
        except (FileNotFoundError, NotADirectoryError):  # a file itself, or gone meanwhile
            raise
        except OSError as error:
            raise DatasetError(
                f"{error.filename or path} cannot be listed: {in_one_line(error)}. Make it readable, or give the "
                f"folders beside it, each in a run of its own."
            ) from error


def list_files(system: fsspec.AbstractFileSystem, path: str, pattern: bool) -> list[str]:
    """The files that a pattern names, or those in and below a folder; none where nothing is.

    Raises:
        DatasetError: a folder cannot be listed.
        Exception: whatever the file system raises.
    """
    own = [getattr(getattr(system, name), "__func__", None) for name in ("walk", "find", "glob")]
    listing: Any = _Strict(system) if own == [_Walking.walk, _Walking.find, _Walking.glob] else system
    return [str(name) for name in (listing.glob if pattern else listing.find)(path)]
