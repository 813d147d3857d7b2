"""Bytes from disks and networks: what is missing is a problem of one image, a network that fails is tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

import fsspec

from ..errors import DatasetError

_TRIES, _PAUSE = 4, 0.5  # seconds, doubled each time
_IMAGE_LIMIT = 2**30


@dataclass(frozen=True)
class Raw:
    """An image as it came: the bytes of its file, or the reason why there are none."""

    key: str
    data: bytes | None
    problem: str = ""


def fetch(url: str, key: str) -> Raw:
    """The bytes of one file.

    Raises:
        DatasetError: the network failed several times, so that the next image would fare no better.
    """
    for attempt in range(_TRIES):
        try:
            with open_stream(url) as file:
                data = file.read(_IMAGE_LIMIT + 1)
            if len(data) > _IMAGE_LIMIT:
                return Raw(key, None, f"the file has more than {_IMAGE_LIMIT} bytes")
            return Raw(key, data)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            return Raw(key, None, f"cannot read it: {error.strerror or 'there is nothing at ' + url}")
        except Exception as error:  # each file system has its own
            if "://" not in url:
                if isinstance(error, OSError):
                    return Raw(key, None, f"cannot read it: {error.strerror or error}")
                raise
            if attempt == _TRIES - 1:
                raise DatasetError(
                    f"cannot read {url} after {_TRIES} attempts: {type(error).__name__}: {error}. "
                    f"What was finished stays valid: run the same command with --resume when the server answers."
                ) from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


@contextmanager
def open_stream(url: str) -> Iterator[IO[bytes]]:
    """A file or an object behind a URL, to read from its beginning."""
    with fsspec.open(url, "rb") as file:
        yield cast("IO[bytes]", file)
