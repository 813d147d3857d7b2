"""Where images come from: folders, globs, tars of WebDataset, parquet and CSV tables, on disks or behind URLs.

A source is a list of splits, made once and kept with the collection. A split is read in order, tars and tables once
from their beginning, and gives raw images: a key and the bytes of a file.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import fsspec
from PIL import Image

from ..errors import DatasetError
from ..image_formats import FORMATS
from .extras import require
from .tables import TABLES, read_rows, row_ranges
from .transfer import Raw, fetch, open_source

logger = logging.getLogger("seamless_vae")

# What a source may have, in the order of preference: tables beside tars or images describe these.
_KINDS = {"tar": "tars", "files": "image files", "table": "tables"}
# What only a collection of latents has together. Its files are not images.
_COLLECTION = ("manifest.json", "splits.jsonl")
# What tarfile, its decompressors and webdataset raise on a damaged tar; anything else is the disk's or the network's.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, AssertionError)


@dataclass(frozen=True)
class Split:
    """Images that are read together, in order.

    Attributes:
        number: its place among the splits.
        kind: "files", "tar" or "rows" (of a table).
        urls: the files; one alone for a tar and for rows.
        keys: names of the files' images; empty for the other kinds.
        start, stop: of the rows.
    """

    number: int
    kind: Literal["files", "tar", "rows"]
    urls: tuple[str, ...]
    keys: tuple[str, ...] = ()
    start: int = 0
    stop: int = 0

    @property
    def count(self) -> int | None:
        """Images in it; None for a tar, where it shows only by reading."""
        return {"files": len(self.urls), "rows": self.stop - self.start}.get(self.kind)

    def to_json(self) -> str:
        values = {name: value for name, value in asdict(self).items() if value or name == "number"}
        return json.dumps(values, separators=(",", ":"))


def find_splits(source: str | os.PathLike[str], images: int) -> list[Split]:
    """The splits of a source, of so many images each where that is for us to choose.

    Of a source with several kinds of files one is read, and a warning names the others: tars before image files,
    image files before tables.

    Args:
        source: a folder tree, a glob, a file; tars of WebDataset by name, glob or braces; .parquet or .csv; each also
            behind a URL that fsspec knows.

    Raises:
        DatasetError: nothing is there, or no images.
        MissingDependencyError: the extra for this kind of source is not installed.
    """
    text = os.fspath(source)
    found = _expand(text)
    counts = Counter(kind for url, _ in found if (kind := _kind(url)) is not None)
    kind = next((kind for kind in _KINDS if counts[kind]), None)
    if kind is None:
        raise DatasetError(
            f"{text} has no images ({len(found)} files of other kinds). Give a folder, a glob such as 'photos/*.jpg', "
            f"tars, a .parquet or .csv table, or a URL of one of them."
        )
    if others := [f"{counts[each]} {name}" for each, name in _KINDS.items() if each != kind and counts[each]]:
        logger.warning(
            "%s has %d %s, which are read, and %s beside them, which are not. Give a glob such as '**/*.jpg' to choose "
            "others.", text, counts[kind], _KINDS[kind], " and ".join(others),
        )  # fmt: skip
    chosen = [(url, key) for url, key in found if _kind(url) == kind]
    if kind == "tar":
        require("webdataset", "datasets", "reading WebDataset tars")
        return [Split(number, "tar", (url,)) for number, (url, _) in enumerate(chosen)]
    if kind == "table":
        ranges = [(url, start, stop) for url, _ in chosen for start, stop in row_ranges(url, images)]
        if not ranges:
            raise DatasetError(f"{text} has no images: its tables have no rows. Give a table with rows.")
        return [Split(number, "rows", (url,), (), start, stop) for number, (url, start, stop) in enumerate(ranges)]
    parts = [chosen[i : i + images] for i in range(0, len(chosen), images)]
    return [
        Split(number, "files", tuple(url for url, _ in part), tuple(key for _, key in part))
        for number, part in enumerate(parts)
    ]


def read_split(split: Split, column: str = "", wanted: Sequence[int] | None = None) -> Iterator[Raw]:
    """The raw images of a split, in order.

    Args:
        column: of a table; see `Settings.column`.
        wanted: positions in the split, ascending, of the images to give; None for all. The files of others are not
            opened, and nothing is read behind the last.

    Raises:
        DatasetError: the place of the images cannot be reached. (An image that is missing is a Raw with a problem.)
    """
    wanted = from_position(0) if wanted is None else wanted
    if not wanted:
        return
    if split.kind == "files":
        for i in itertools.takewhile(lambda i: i < len(split.urls), wanted):
            yield fetch(split.urls[i], split.keys[i])
    elif split.kind == "rows":
        yield from read_rows(split.urls[0], split.start, split.stop, column, wanted)
    else:
        chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
        last = wanted[-1] + 1
        yield from (raw for i, raw in enumerate(itertools.islice(_read_tar(split.urls[0]), last)) if i in chosen)


def from_position(first: int) -> range:
    """All positions of a split from one on."""
    return range(first, sys.maxsize)


def is_image(name: str) -> bool:
    """Whether a file's ending is that of an image that is opened."""
    Image.init()
    form = Image.EXTENSION.get(PurePosixPath(name.lower()).suffix)
    return form in FORMATS and form in Image.OPEN


def _kind(url: str) -> str | None:
    name = url.partition("?")[0].lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if name.endswith(TABLES):
        return "table"
    return "files" if is_image(name) else None


def _expand(text: str) -> list[tuple[str, str]]:
    """Every file that a source names: (its URL or path, its key: the path below the source's folder)."""
    texts = _braces(text)
    if len(texts) > 1:
        return [pair for each in texts for pair in _expand(each)]
    try:
        system, path = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{text} cannot be opened: {error}. Install what fsspec needs for it.") from None
    local = "://" not in text
    try:
        if not local and _kind(text) is not None and not _is_pattern(text):
            names = [path]  # a server need not be able to list
        elif _is_pattern(path) and not (local and os.path.exists(text)):
            names = system.glob(path)
        else:
            names = system.find(path)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise DatasetError(f"{text} cannot be listed: {error}. Check the address and your access to it.") from None
    names = sorted(name for name in _without_collections(map(str, names)) if not _is_hidden(name, path))
    if not names and not (local and os.path.isdir(text)):
        raise DatasetError(f"{text} does not exist, or nothing matches it. Give a folder, a file, a glob or a URL.")
    base = _base(path, names)
    return [
        (name if local else system.unstrip_protocol(name), os.path.relpath(name, base).replace(os.sep, "/"))
        for name in names
    ]


def _without_collections(names: Iterable[str]) -> Iterator[str]:
    """Files that are not of a collection of latents, which may have been written beside or among the images."""
    names = list(names)
    marks = [{name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == mark} for mark in _COLLECTION]
    folders = tuple(f"{folder}/" for folder in set.intersection(*marks))
    return (name for name in names if not name.startswith(folders))


def _braces(text: str) -> list[str]:
    if not re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}", text):
        return [text]
    return list(require("braceexpand", "datasets", "a source with {braces}").braceexpand(text))


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _is_hidden(name: str, path: str) -> bool:
    """Whether a name below the source's folder begins with a dot."""
    below = name[len(path) :] if name.startswith(path) else name.rsplit("/", 1)[-1]
    return any(part.startswith(".") for part in below.replace(os.sep, "/").split("/"))


def _base(path: str, names: list[str]) -> str:
    """The folder that keys are relative to: what comes before the first mark of a pattern."""
    if names == [path]:
        return os.path.dirname(path)
    parts = path.replace(os.sep, "/").split("/")
    fixed = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
    return "/".join(parts[:fixed]) or "/"


def _read_tar(url: str) -> Iterator[Raw]:
    reading = require("webdataset.tariterators", "datasets", "reading WebDataset tars")
    with open_source(url) as stream:
        files = reading.tar_file_expander([{"url": url, "stream": stream}])
        yield from _tar_images(reading.group_by_keys(files), url)


def _tar_images(samples: Iterable[dict[str, Any]], url: str) -> Iterator[Raw]:
    """The first image of each sample. A tar that breaks off ends with a problem in the place of the next image."""
    samples = iter(samples)
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except _DAMAGE as error:
            reason = str(error.args[0]) if error.args else type(error).__name__
            yield Raw(f"{url}: what follows", None, f"the tar is damaged from here on ({reason})")
            return
        except Exception as error:
            raise DatasetError(
                f"cannot read {url} to its end: {type(error).__name__}: {error}. "
                f"What was finished stays valid: run the same command with --resume."
            ) from error
        key = sample["__key__"]
        endings = [ending for ending in sample if not ending.startswith("_") and is_image(f"x.{ending}")]
        if endings:
            yield Raw(f"{key}.{endings[0]}", sample[endings[0]])
        elif any(not ending.startswith("_") for ending in sample):
            others = ", ".join(sorted(ending for ending in sample if not ending.startswith("_")))
            yield Raw(key, None, f"the sample has no image, only {others}")
