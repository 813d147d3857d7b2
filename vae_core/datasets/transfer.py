"""Bytes from disks and networks: what is missing is a problem of one image; a disk or a network that fails is tried
again, and then ends the run, which can be resumed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast
from urllib.parse import urlsplit

import fsspec

from ..errors import DatasetError, VAEError

_TRIES, _PAUSE = 4, 0.5  # seconds, doubled each time
_IMAGE_LIMIT = 2**30
# What is the fault of one file on a disk. Anything else (EIO, ESTALE, EMFILE, ...) would meet the next file too.
_OF_THE_FILE = {
    errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


@dataclass(frozen=True)
class Raw:
    """An image as it came: the bytes of its file, or the reason why there are none."""

    key: str
    data: bytes | None
    problem: str = ""


def fetch(url: str, key: str) -> Raw:
    """The bytes of one file.

    Raises:
        DatasetError: the disk or the network failed several times, or a server refuses access, so that the next image
            would fare no better.
    """
    if problem := _not_an_address(url):
        return Raw(key, None, f"cannot read it: {problem}")
    for attempt in range(_TRIES):
        try:
            with open_stream(url) as file:
                data = file.read(_IMAGE_LIMIT + 1)
            if len(data) > _IMAGE_LIMIT:
                return Raw(key, None, f"the file has more than {_IMAGE_LIMIT} bytes")
            return Raw(key, data)
        except Exception as error:  # each file system has its own
            if _is_of_the_file(error, url):
                return Raw(key, None, f"cannot read it: {_text(error) or 'there is nothing at ' + url}")
            if attempt == _TRIES - 1:
                raise _failed(url, error, f" after {_TRIES} attempts") from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


@contextmanager
def open_stream(url: str) -> Iterator[IO[bytes]]:
    """A file or an object behind a URL, to read from its beginning."""
    with fsspec.open(url, "rb") as file:
        yield cast("IO[bytes]", file)


@contextmanager
def open_source(url: str) -> Iterator[IO[bytes]]:
    """The same for a file of many images, without which the run cannot go on.

    Raises:
        DatasetError: it cannot be opened, or not be read to its end.
    """
    try:
        with open_stream(url) as file:
            yield file
    except VAEError:
        raise
    except Exception as error:
        raise _failed(url, error) from error


def _failed(url: str, error: Exception, when: str = "") -> DatasetError:
    return DatasetError(
        f"cannot read {url}{when}: {type(error).__name__}: {_text(error) or error}. What was finished stays valid: "
        f"run the same command with --resume when it can be read."
    )


def _is_of_the_file(error: Exception, url: str) -> bool:
    """Whether an error is the fault of one file, and the next may be read all the same."""
    if "://" in url and not url.startswith(("file://", "local://")):
        return isinstance(error, FileNotFoundError) or getattr(error, "status", None) == 410
    return isinstance(error, OSError) and error.errno in _OF_THE_FILE


def _not_an_address(url: str) -> str:
    """Why a text from a table cannot be a path or a URL at all."""
    if "\0" in url:
        return "its path contains a null character"
    if not url.startswith(("http://", "https://")):
        return ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"its URL cannot be right ({error})"
    return "" if parts.hostname else "its URL names no server"


def _text(error: Exception) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else ""
