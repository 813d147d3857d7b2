"""Bytes from disks and networks: what is missing is a problem of one image; a disk or a network that fails is tried
again, and then ends the run, which can be resumed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..errors import DatasetError, VAEError, in_one_line
from ..regular_files import open_regular

_TRIES = 4
_PAUSE = 0.5  # seconds, doubled each time
MOST_BYTES = 2**30  # of an image's file
# What is the fault of one file on a disk. Anything else (EIO, ESTALE, EMFILE, ...) would meet the next file too.
_OF_THE_FILE = {
    errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO,
}  # fmt: skip
# What a web server answers if it has nothing to give under this one URL. Another refusal would meet the next one too.
_OF_THE_URL = {400, 404, 405, 406, 410, 414, 451}


@dataclass(frozen=True)
class Raw:
    """An image as it came: the bytes of its file, or the reason why there are none."""

    key: str
    data: bytes | None
    problem: str = ""


def local_path(url: str) -> str | None:
    """The path of a file of this machine, whatever characters it has in it; None for a URL."""
    if url.startswith(("file://", "local://")):
        return LocalFileSystem._strip_protocol(url)
    return None if "://" in url else url


def split_chain(url: str) -> tuple[str, str]:
    """(a URL, what fsspec is to open it with): a.png and the archive, of zip://a.png::s3://bucket/photos.zip."""
    parts = url.split("::")
    named = next((i for i, part in enumerate(parts) if "://" in part), len(parts) - 1)
    if not all("://" in part or part.startswith("/") for part in parts[named + 1 :]):
        return url, ""  # they belong to its name
    return "::".join(parts[: named + 1]), "".join(f"::{part}" for part in parts[named + 1 :])


def name_of(url: str) -> str:
    """A URL or a path as far as it names a file: without a web server's query, or the archive that it is in."""
    if (path := local_path(url)) is not None:
        return path
    name, _ = split_chain(url)
    return name.partition("?")[0] if is_web(url) else name


def beside(url: str, name: str) -> str:
    """Another file of the same folder, by its path from there."""
    if (path := local_path(url)) is not None:
        return os.path.join(os.path.dirname(path), name)
    return f"{name_of(url).rpartition('/')[0]}/{name}{split_chain(url)[1]}"


def is_web(url: str) -> bool:
    """Whether a web server is asked for it."""
    return split_chain(url)[0].rpartition("::")[2].startswith(("http://", "https://"))


def size_of(url: str) -> int:
    """Bytes of a file; 0 if that is not known. Raises what its file system raises."""
    if (path := local_path(url)) is not None:
        return os.stat(path).st_size
    system, path = fsspec.core.url_to_fs(url)
    return int(system.size(path) or 0)


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
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                return Raw(key, None, f"the file has more than {MOST_BYTES} bytes")
            return Raw(key, data)
        except Exception as error:  # each file system has its own
            if _is_of_the_file(error, url):
                return Raw(key, None, f"cannot read it: {_text(error) or 'there is nothing at ' + url}")
            if isinstance(error, ImportError):  # of what fsspec needs for it
                raise _failed(url, error) from error
            if attempt == _TRIES - 1:
                raise _failed(url, error, f" after {_TRIES} attempts") from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


@contextmanager
def open_stream(url: str) -> Iterator[IO[bytes]]:
    """A file or an object behind a URL, to read from its beginning."""
    with _open(url) as file:
        yield file


def _open(url: str) -> AbstractContextManager[IO[bytes]]:
    if (path := local_path(url)) is None:
        return cast("AbstractContextManager[IO[bytes]]", fsspec.open(url, "rb"))
    return open_regular(path)


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
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    return DatasetError(
        f"cannot read {url}{when}: {type(cause).__name__}: {in_one_line(cause)}. What was finished stays valid: "
        f"run the same command with --resume when it can be read."
    )


def _is_of_the_file(error: Exception, url: str) -> bool:
    """Whether an error is the fault of one file, and the next may be read all the same."""
    if local_path(url) is not None:
        return isinstance(error, OSError) and error.errno in _OF_THE_FILE
    return is_missing(error, url)


def is_missing(error: BaseException, url: str) -> bool:
    """Whether an error says that there is nothing at a URL, and not that it cannot be reached."""
    if not is_web(url):
        return isinstance(error, FileNotFoundError)
    # fsspec makes a FileNotFoundError of whatever happens.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return status < 400 or status in _OF_THE_URL
    return isinstance(error, FileNotFoundError) and (cause is None or isinstance(cause, ValueError))


def _not_an_address(url: str) -> str:
    """Why a text from a table cannot be a path or a URL at all."""
    if "\0" in url:
        return "its path contains a null character"
    protocol = "" if local_path(url) is not None else url.partition("://")[0].rpartition("::")[2]
    if protocol and protocol not in fsspec.available_protocols():
        return f"fsspec does not know {protocol}://"
    if not url.startswith(("http://", "https://")):
        return ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"its URL is not valid ({in_one_line(error)})"
    return "" if parts.hostname else "its URL names no server"


def _text(error: BaseException) -> str:
    return in_one_line(error) if isinstance(error, OSError) and error.strerror else ""
