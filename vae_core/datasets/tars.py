"""Tars of WebDataset as sources: one image of each sample, in order. webdataset says which files are a sample."""

from __future__ import annotations

import gzip
import logging
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from ..errors import DatasetError, in_one_line
from ..optional import optional_import
from .image_names import is_image
from .transfer import MOST_BYTES, Raw, open_source

logger = logging.getLogger("seamless_vae")

# What tarfile and its decompressors raise on a damaged tar; anything else is the disk's or the network's.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError)
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset leaves out
_LONGEST_NAME = 2**20  # bytes of a record before a member, which has its name
_RECORDS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error, where tarfile takes it for the end; and no larger than it is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _RECORDS and member.size > _LONGEST_NAME:
            raise tarfile.ReadError(f"a name of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(in_one_line(error)) from error


def read_tar(url: str) -> Iterator[Raw]:
    """The images of a tar. One that breaks off ends with a problem in the place of the next image.

    Raises:
        DatasetError: it cannot be opened, or not be read to its end.
        MissingDependencyError: webdataset is not installed.
    """
    reading = optional_import("webdataset.tariterators", "Reading WebDataset tars", "datasets")
    with open_source(url) as stream:
        try:
            yield from _images(stream, url, reading)
        except Exception as error:
            raise DatasetError(
                f"cannot read {url} to its end: {type(error).__name__}: {in_one_line(error)}. "
                f"What was finished stays valid: run the same command with --resume."
            ) from error


def _images(stream: IO[bytes], url: str, reading: Any) -> Iterator[Raw]:
    several = 0
    example = ""
    files = _Files(stream, reading.base_plus_ext)
    for sample in reading.group_by_keys({**file, "__url__": url} for file in files):
        key = sample["__key__"]
        endings = [ending for ending in sample if not ending.startswith("_")]
        images = [ending for ending in endings if is_image(f"x.{ending}")]
        if images:
            found = sample[images[0]]
            name = f"{key}.{images[0]}"
            yield Raw(name, found) if isinstance(found, bytes) else Raw(name, None, found)
        elif endings:
            yield Raw(key, None, f"the sample has no image, only {', '.join(sorted(endings))}")
        if len(images) > 1:
            several = several + 1
            example = example or f"{key}: {', '.join(images)}"
        while files.doubles:
            yield Raw(files.doubles.pop(0), None, "a file of the same name comes before it in the tar")
    if files.damage:
        yield Raw(f"{url}: what follows", None, f"the tar is damaged from here on ({files.damage})")
    if several:
        logger.warning("%d samples of %s have several images, of which the first is read (%s).", several, url, example)


class _Files:
    """The files of a tar as webdataset has them: `fname`, and `data` of images, or why there is none.

    Attributes:
        doubles: images whose name came before in their sample, which webdataset does not take.
        damage: why there are no more, if it is not that the tar ends.
    """

    def __init__(self, stream: IO[bytes], parts: Any) -> None:
        self.stream = stream
        self.parts = parts
        self.doubles: list[str] = []
        self.damage = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        key = None
        seen = set()
        try:
            with tarfile.open(fileobj=self.stream, mode="r|*", tarinfo=_Member) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                    prefix, suffix = self.parts(member.name)
                    if prefix is None or _META.match(member.name) or not _has_contents(member):
                        continue
                    if prefix != key:
                        key = prefix
                        seen = {"__key__", "__url__"}
                    if suffix.lower() not in seen:
                        seen.add(suffix.lower())
                        yield {"fname": member.name, "data": _data(tar, member) if is_image(f"x.{suffix}") else b""}
                    elif is_image(f"x.{suffix}"):
                        self.doubles.append(member.name)
        except _DAMAGE as error:
            self.damage = in_one_line(error)


def _has_contents(member: tarfile.TarInfo) -> bool:
    return member.isreg() or member.issym() or member.islnk()


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    if not member.isreg():
        return f"it is a link to {member.linkname}, and links in tars are not followed"
    if member.size > MOST_BYTES:
        return f"it has more than {MOST_BYTES} bytes"
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
