"""Where images come from: folders, globs, tars of WebDataset, parquet and CSV tables, on disks or behind URLs.

A source is a list of splits, made once and kept with the collection. A split is read in order, tars and tables once
from their beginning, and gives raw images: a key and the bytes of a file.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import fsspec

from ..errors import DatasetError, brief, in_one_line
from ..file_names import text_of
from ..optional import optional_import
from .image_names import is_image
from .listing import list_files
from .tables import TABLES, read_rows, row_ranges
from .tars import read_tar
from .transfer import Raw, fetch, is_missing, local_path, name_of, split_chain

logger = logging.getLogger("seamless_vae")

# What a source may have, in the order of preference: tables beside tars or images describe these.
_KINDS = {"tar": "tars", "files": "image files", "table": "tables"}
# What only a collection of latents has together. Its files are not images.
_COLLECTION = ("manifest.json", "splits.jsonl")
_MOST_NAMES = 1_000_000  # that braces may stand for


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


def find_splits(source: str | os.PathLike[str], images: int, column: str = "") -> list[Split]:
    """The splits of a source, of so many images each where that is for us to choose.

    Of a source with several kinds of files one is read, and a warning names the others: tars before image files,
    image files before tables.

    Args:
        source: a folder tree, a glob, a file; tars of WebDataset by name, glob or braces; .parquet or .csv; each also
            behind a URL that fsspec knows.
        column: of a table; see `Settings.column`.

    Raises:
        DatasetError: nothing is there, or no images.
        MissingDependencyError: the extra for this kind of source is not installed.
    """
    text = text_of(source)
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
        optional_import("webdataset", "Reading WebDataset tars", "datasets")
        return [Split(number, "tar", (url,)) for number, (url, _) in enumerate(chosen)]
    if kind == "table":
        ranges = [(url, start, stop) for url, _ in chosen for start, stop in row_ranges(url, images, column)]
        if not ranges:
            raise DatasetError(f"{text} has no images: its tables have no rows. Give a table with rows.")
        return [Split(number, "rows", (url,), (), start, stop) for number, (url, start, stop) in enumerate(ranges)]
    parts = [chosen[i : i + images] for i in range(0, len(chosen), images)]
    return [
        Split(number, "files", tuple(url for url, _ in part), tuple(key for _, key in part))
        for number, part in enumerate(parts)
    ]


def whole_name(source: str | os.PathLike[str]) -> str:
    """A source by a name that does not depend on the working directory."""
    text = text_of(source)
    path = local_path(text)
    return os.path.abspath(os.path.expanduser(path)) if path and path.strip() else text


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
        yield from (raw for i, raw in enumerate(itertools.islice(read_tar(split.urls[0]), last)) if i in chosen)


def from_position(first: int) -> range:
    """All positions of a split from one on."""
    return range(first, sys.maxsize)


def _kind(url: str) -> str | None:
    name = name_of(url).lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if name.endswith(TABLES):
        return "table"
    return "files" if is_image(name) else None


def _expand(text: str) -> list[tuple[str, str]]:
    """Every file that a source names: (its URL or path, its key: the path below the source's folder)."""
    if not text.strip():
        raise DatasetError("the source has no name. Give a folder, a file, a glob or a URL; `.` is the current folder.")
    if (path := local_path(text)) is not None:
        return _local(path)
    return [pair for each in _braces(text) for pair in _remote(each)]


def _local(text: str) -> list[tuple[str, str]]:
    """`_expand` for this machine. What exists under a name is meant by it, whatever marks of patterns it has."""
    system = fsspec.filesystem("file")
    path = system._strip_protocol(os.path.abspath(os.path.expanduser(text)))
    there = path
    rest = ""
    while not os.path.lexists(there) and (above := os.path.dirname(there)) != there:
        there = above
        rest = path[len(above) :]
    if len(texts := _braces(rest)) > 1:
        return [pair for each in texts for pair in _local(there + each)]
    if rest and not _is_pattern(rest):
        names = []
    else:
        names = list_files(system, glob.escape(there) + rest if rest else there, bool(rest))
    found = _chosen(text, names, there if os.path.isdir(there) else os.path.dirname(there), "/." in rest)
    links = [name for name, _ in found if _kind(name) is None and os.path.islink(name) and os.path.isdir(name)]
    if links:
        logger.warning(
            "%d links to folders in %s are not followed (%s%s). Give the folders that they lead to, each in a run of "
            "its own, or have the images themselves there.", len(links), text, links[0], ", ..." * (len(links) > 1),
        )  # fmt: skip
    if not found and not os.path.isdir(path):
        raise DatasetError(_NOTHING.format(text))
    return found


def _remote(text: str) -> list[tuple[str, str]]:
    """`_expand` for a URL."""
    try:
        system, path = fsspec.core.url_to_fs(text)
    except Exception as error:  # each file system has its own
        raise DatasetError(
            f"{text} cannot be opened: {in_one_line(error)}. Install what fsspec needs for it."
        ) from None
    try:
        if _kind(text) is not None and not _is_pattern(name_of(text)):
            names = [path]  # a server need not be able to list
        else:
            names = list_files(system, path, _is_pattern(path))
    except DatasetError:
        raise
    except Exception as error:
        if not is_missing(error, text):
            problem = in_one_line(error.__cause__ or error)
            raise DatasetError(
                f"{text} cannot be listed: {problem}. Check the address and your access to it."
            ) from None
        names = []
    found = _chosen(text, names, _base(path, names), "/." in path)
    if not found:
        raise DatasetError(_NOTHING.format(text))
    before, behind = split_chain(text)
    before = "".join(f"{part}::" for part in before.split("::")[:-1])
    return [(f"{before}{system.unstrip_protocol(name)}{behind}", key) for name, key in found]


_NOTHING = "{} does not exist, or nothing matches it. Give a folder, a file, a glob or a URL."


def _chosen(text: str, names: Iterable[str], base: str, hidden: bool) -> list[tuple[str, str]]:
    """(name, key) of what is not hidden and not of a collection, in order.

    Args:
        hidden: whether the source itself names what is hidden.
    """
    base = f"{base.rstrip('/')}/"
    found = []
    for name in sorted(_without_collections(names)):
        key = name.removeprefix(base).lstrip("/")
        if hidden or not any(part.startswith(".") for part in key.split("/")) or name == text:
            found.append((name, key))
    return found


def _without_collections(names: Iterable[str]) -> Iterator[str]:
    """Files that are not of a collection of latents, which may have been written beside or among the images."""
    names = list(names)
    marks = [{name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == mark} for mark in _COLLECTION]
    folders = tuple(f"{folder}/" for folder in set.intersection(*marks))
    return (name for name in names if not name.startswith(folders))


def _braces(text: str) -> list[str]:
    if not re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}", text):
        return [text]
    expand = optional_import("braceexpand", "A source with {braces}", "datasets").braceexpand
    ranges = [map(int, ends) for ends in re.findall(r"\{(-?\d+)\.\.(-?\d+)", text)]
    try:
        found = [text] * (_MOST_NAMES + 1)
        if all(abs(last - first) < _MOST_NAMES for first, last in ranges):  # it lists them before it gives the first
            found = list(itertools.islice(expand(text), _MOST_NAMES + 1))
    except ValueError as error:
        raise DatasetError(
            f"the braces of {brief(text)} are not understood ({in_one_line(error)}). Mend them."
        ) from None
    if len(found) > _MOST_NAMES:
        raise DatasetError(
            f"the braces of {brief(text)} stand for more than {_MOST_NAMES} names. Give fewer, or a folder or a glob."
        )
    return found


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _base(path: str, names: list[str]) -> str:
    """The folder that keys are relative to: what comes before the first mark of a pattern."""
    if names == [path]:
        return path.partition("?")[0].rpartition("/")[0]
    parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
    return "/".join(parts[:fixed])
