"""Writing files whole or not at all, as a database does.

One file is written under a temporary name beside its place, flushed to the disk and renamed (`write_file`). Files that
belong together are written into a temporary folder; renaming that folder to `COMMITTED` makes them valid, and only then
do they move to their places (`write_together`). After a kill between the two, `finish` moves the rest, so that a reader
that calls it, or reads within `steady`, sees the old files or the new ones and never both.

Temporaries have names of their own, and their owner locks them: a temporary that can be locked has no owner any
more and is removed by the next save into the same folder, or where it has many files, by one of the next. Functions
here raise OSError; their callers make sentences.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .file_names import text_of
from .regular_files import read_regular
from .temporaries import EXCLUSIVE, PREFIX, close, locked, make_folder, reserve, sweep, sweep_at_times

Writer = Callable[[BinaryIO], object]

COMMITTED = f"{PREFIX}save"
REMOVALS = "remove.json"  # in a committed folder: the names of files that the new ones replace
# What a committed folder may remove, and what it may replace. It may come from anywhere, so nothing else is touched.
REMOVABLE = re.compile(r"diffusion_\w+_model[\w.-]*")
_MOVABLE = re.compile(rf"{REMOVABLE.pattern}|\w*config\.json")
_MOST_REMOVALS = 2**20  # bytes of their list

_ON_WINDOWS = os.name == "nt"
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS}


class Place(NamedTuple):
    """Where a file goes: its path, links resolved, and what is known of the file that is there."""

    path: Path
    found: os.stat_result | None


def given_name(path: str | os.PathLike[str]) -> Path:
    """A path as a caller gave it.

    Raises:
        OSError: it is not a name, is empty, or has characters that no file name has. (`Path("")` would be the current
            folder.)
    """
    text = text_of(path)
    if not text:
        is_empty = isinstance(path, str)
        what = "the name is empty" if is_empty else f"a {type(path).__name__} is not the name of a file"
        raise OSError(errno.EINVAL, what)
    try:
        if "\0" in text or not os.fsencode(text):
            raise OSError(errno.EINVAL, "the name contains a null character", repr(text))
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, "the name contains characters that no file name has", repr(text)) from None
    return Path(text)


def write_file(
    path: str | os.PathLike[str],
    writer: Writer,
    *,
    overwrite: bool = True,
    release: Callable[[], None] | None = None,
) -> None:
    """Write one file whole, or leave what was there. Links are followed, modes are kept.

    Args:
        writer: called with the open file.
        overwrite: False raises FileExistsError if the path exists, even if it was made meanwhile.
        release: called if the file cannot be replaced, to let go of a memory map of it. Windows keeps a file in its
            place as long as a model is mapped from it.

    Raises:
        OSError: it cannot be written: a folder, not a regular file, write-protected, no room, ...
    """
    target, found = place_of(given_name(path))
    if found is not None and not overwrite:
        raise FileExistsError(errno.EEXIST, "it exists already", str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    finish(target.parent)
    sweep_at_times(target.parent)
    temporary, handle = reserve(target.parent, os.open, EXCLUSIVE, 0o666)
    try:
        _fill(handle, writer)
        _like(temporary, found)
        if _ON_WINDOWS:  # which renames no open file
            handle = close(handle)
        if overwrite:
            _letting_go(partial(os.replace, temporary, target), release)
        else:
            _rename_to_new(temporary, target)
        _sync_folder(target.parent)
    finally:
        if _ON_WINDOWS:
            handle = close(handle)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        close(handle)


def write_together(
    folder: str | os.PathLike[str],
    writers: Mapping[str, Writer],
    *,
    leftovers: Callable[[], Iterable[str]] = tuple,
    overwrite: bool = True,
    release: Callable[[], None] | None = None,
) -> None:
    """Write files into one folder, all of them or none.

    Args:
        writers: name in the folder -> what writes it.
        leftovers: gives the names of files that do not belong beside the new ones, and are removed with them.
            Called just before the new files become valid.
        overwrite, release: as for `write_file`. Without `overwrite`, leftovers are not removed either.

    Raises:
        OSError: they cannot be written.
    """
    folder = Path(os.path.realpath(given_name(folder)))
    is_new = not os.path.lexists(folder)
    base = folder.parent if is_new else folder
    base.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    if not is_new:
        finish(folder)
        sweep(folder)
    stage, handle = reserve(base, make_folder)
    try:
        for name, writer in writers.items():
            _, found = place_of(folder / name)
            _write_staged(stage / name, writer, found)
        _sync_folder(stage)
        if _ON_WINDOWS:
            handle = close(handle)
        if is_new and _rename_folder(stage, folder):
            _sync_folder(folder.parent)
            return
        with locked(folder, shared=False):
            _finish(folder)
            removals = [name for name in leftovers() if name not in writers]
            present = [name for name in writers if os.path.lexists(folder / name)]
            if not overwrite and (present or removals):
                raise FileExistsError(errno.EEXIST, "it exists already", str(folder / [*present, *removals][0]))
            if removals:
                names = json.dumps(removals).encode()
                _write_staged(stage / REMOVALS, lambda file: file.write(names), None)
                _sync_folder(stage)
            os.rename(stage, folder / COMMITTED)
            _sync_folder(folder)
            _finish(folder, release, follow=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        close(handle)


def finish(folder: Path) -> None:
    """Complete a save into this folder that was interrupted after its files had become valid.

    Raises:
        OSError: the files cannot be moved to their places.
    """
    if os.path.lexists(folder / COMMITTED):
        with locked(folder, shared=False):
            _finish(folder)


@contextlib.contextmanager
def steady(folder: Path) -> Iterator[None]:
    """While this is open, no save changes the folder; one that was interrupted is completed first.

    Raises:
        OSError: an interrupted save cannot be completed.
    """
    if not os.path.isdir(folder):
        yield
        return
    while True:
        finish(folder)
        with locked(folder, shared=True):
            if os.path.lexists(folder / COMMITTED):
                continue
            yield
            return


def place_of(path: Path) -> Place:
    """Where a path leads, and what is there.

    Raises:
        OSError: it is not a place for a file: a folder, a device, a write-protected file, a link to itself.
    """
    target = Path(os.path.realpath(path))
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return Place(target, None)
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "it is a link that leads to itself", str(path))
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", str(path))
    return Place(target, found)


# The steps.


def _fill(handle: int, writer: Writer) -> None:
    with open(handle, "wb", closefd=False) as file:
        writer(file)
        file.flush()
        os.fsync(handle)


def _write_staged(path: Path, writer: Writer, found: os.stat_result | None) -> None:
    handle = os.open(path, EXCLUSIVE, 0o666)
    try:
        _fill(handle, writer)
        _like(path, found)
    finally:
        os.close(handle)


def _like(path: Path, found: os.stat_result | None) -> None:
    """Give a new file the mode, and where that is allowed the owner, of the one that it replaces."""
    if found is None:
        return
    made = os.stat(path)
    if not _ON_WINDOWS and (made.st_uid, made.st_gid) != (found.st_uid, found.st_gid):
        with contextlib.suppress(OSError):
            os.chown(path, found.st_uid, found.st_gid)
    os.chmod(path, stat.S_IMODE(found.st_mode))


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file to a name that must not exist."""
    if _ON_WINDOWS:
        os.rename(temporary, target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: the name is taken first, then given its content
        os.close(os.open(target, EXCLUSIVE, 0o666))
        os.replace(temporary, target)


def _rename_folder(stage: Path, folder: Path) -> bool:
    """Make a folder of new files the folder itself, unless there is one meanwhile."""
    try:
        os.rename(stage, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or os.path.isdir(folder):
            return False
        raise
    return True


def _finish(folder: Path, release: Callable[[], None] | None = None, follow: bool = False) -> None:
    """Move what a committed save still has to its places. The folder is locked.

    Args:
        follow: whether links are followed. Only a save may: a folder that comes from elsewhere could have
            links to anything.
    """
    stage = folder / COMMITTED
    try:
        names = _committed_files(stage, whatever=follow)
    except FileNotFoundError:
        return
    removals = _removals(stage / REMOVALS)
    for name in names:
        if name != REMOVALS:
            _move(stage / name, folder / name, release, follow)
    for name in removals:
        with contextlib.suppress(FileNotFoundError):
            _letting_go(partial(os.unlink, folder / name), release)
    _sync_folder(folder)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(stage / REMOVALS)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(stage)
    _sync_folder(folder)


def _committed_files(stage: Path, whatever: bool) -> list[str]:
    """The names of the files in a committed folder.

    Args:
        whatever: whether files of any name may be there; else a model's alone.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it is not what a save leaves, such as a link, or it has something else in it.
    """
    if not stat.S_ISDIR(os.lstat(stage).st_mode):
        raise OSError(errno.ENOTDIR, "it is not the folder of a save. Move it elsewhere", str(stage))
    names = os.listdir(stage)
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # moved by another process
            if not stat.S_ISREG(os.lstat(stage / name).st_mode):
                raise OSError(errno.EINVAL, "no save leaves such a file. Move it elsewhere", str(stage / name))
        if not whatever and name != REMOVALS and not _MOVABLE.fullmatch(name):
            raise OSError(errno.EINVAL, "it is not a file of a model. Move it elsewhere", str(stage / name))
    return names


def _move(source: Path, path: Path, release: Callable[[], None] | None, follow: bool) -> None:
    target = path
    if os.path.islink(path):
        if not follow:
            raise OSError(errno.ELOOP, "its save was interrupted, and it is a link, which is not followed", str(path))
        target = Path(os.path.realpath(path))
    try:
        _letting_go(partial(os.replace, source, target), release)
    except FileNotFoundError:
        if os.path.lexists(source):
            raise
        # otherwise another process has moved it
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open(source, "rb") as file:  # a link to another file system
            write_file(target, partial(shutil.copyfileobj, file), release=release)
        os.unlink(source)
    if target.parent != path.parent:
        _sync_folder(target.parent)


def _removals(path: Path) -> list[str]:
    try:
        names = json.loads(read_regular(path, _MOST_REMOVALS))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and REMOVABLE.fullmatch(name) for name in names):
        raise OSError(errno.EINVAL, "it is damaged. Remove the folder that it is in", str(path))
    return names


def _letting_go(action: Callable[[], object], release: Callable[[], None] | None) -> None:
    try:
        action()
    except PermissionError:
        if release is None:
            raise
        release()
        gc.collect()
        action()


def _sync_folder(folder: Path) -> None:
    """Flush names to the disk, where the system can."""
    if _ON_WINDOWS:
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that may be written and not be read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(handle)
