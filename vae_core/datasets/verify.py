"""Whether a collection is what its records say: every file, hash, count and shape."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VAEError, in_one_line
from ..printable import printable
from ..regular_files import open_regular
from . import kohya
from .collection import FAILURES, SHARDS, SPLITS, Collection
from .records import read_lines, reason
from .sources import Split

_BLOCK = 2**22


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: where, and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{printable(self.where)}: {printable(self.what)}"


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what was found.

    Attributes:
        images, failures, shards, bytes: of the whole collection, by its records.
        faults: what is wrong; none for a whole collection.
    """

    images: int
    failures: int
    shards: int
    bytes: int
    faults: tuple[Fault, ...]


def verify_dataset(out: str | os.PathLike[str], tell: Callable[[str], object] | None = None) -> Verification:
    """Check every shard of a collection: its files' sizes and hashes, the number and the shapes of its latents.

    Args:
        tell: called with each shard's name before it is looked at.

    Raises:
        DatasetError: there is no collection, or its manifest is damaged.
    """
    collection = Collection.open(out)
    faults: list[Fault] = []
    counts = {"images": 0, "failures": 0, "shards": 0, "bytes": 0}
    for name, record in _records(collection, faults):
        if tell is not None:
            tell(name)
        counts["shards"] += 1
        counts["images"] += len(record["images"])
        counts["failures"] += len(record["failures"])
        counts["bytes"] += sum(file["bytes"] for file in record["files"])
        found = list(_check_files(collection.out, record["files"]))
        faults += found or _check_latents(collection, record)
    faults += _check_lists(collection, counts)
    return Verification(**counts, faults=tuple(faults))


def _records(collection: Collection, faults: list[Fault]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each shard's record; what is missing or damaged becomes a fault."""
    try:
        splits = list(collection.splits())
    except VAEError as error:
        faults.append(Fault(SPLITS, str(error)))
        return
    for split in splits:
        chunk = 0
        while True:
            name = f"{split.number:06d}-{chunk:04d}"
            try:
                record = collection.read_record(split.number, chunk)
            except VAEError as error:
                faults.append(Fault(name, f"its record cannot be read ({error})"))
                break
            if record is None:
                faults.append(Fault(name, "it was not written; run encode-dataset with --resume"))
                break
            yield name, record
            faults += _check_count(split, chunk * collection.settings.shard_images, collection, record)
            chunk += 1
            if record["last"]:
                break


def _check_count(split: Split, before: int, collection: Collection, record: Mapping[str, Any]) -> Iterator[Fault]:
    images = len(record["images"]) + len(record["failures"])
    size = collection.settings.shard_images
    left = images if split.count is None else split.count - before  # of a tar it is not known
    expected = left if record["last"] else size
    if images != expected or images > size:
        yield Fault(record["name"], f"its record has {images} images, and should have {min(expected, size)}")


def _check_files(out: Path, files: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    for file in files:
        place = out / file["path"]
        try:
            size = place.stat().st_size
            sha256 = ""
            if "ending" in file:  # of several resolutions in the file, this collection's
                size, sha256 = kohya.measure(place, file["ending"])
            if size != file["bytes"]:
                yield Fault(file["path"], f"it has {size} bytes instead of {file['bytes']}")
            elif (sha256 or _sha256(place)) != file["sha256"]:
                yield Fault(file["path"], "its contents have changed: the SHA-256 differs")
        except FileNotFoundError:
            yield Fault(file["path"], "it is missing; run encode-dataset with --resume")
        except OSError as error:
            yield Fault(file["path"], f"it cannot be read ({in_one_line(error)})")
        except VAEError as error:
            yield Fault(file["path"], f"it cannot be read ({error})")


def _check_latents(collection: Collection, record: Mapping[str, Any]) -> list[Fault]:
    """Whether the files have what the record says; called for files whose hash is right."""
    faults = []
    name = "moments" if collection.settings.keep == "moments" else "latents"
    try:
        for image, tensors in zip(record["images"], collection.read_images(record, record["images"]), strict=True):
            for part in (name, f"{name}_flipped")[: 2 if collection.settings.flip else 1]:
                shape = tuple(tensors[part].shape) if part in tensors else None
                if shape != tuple(image["shape"]):
                    faults.append(Fault(record["name"], f"{part} of {image['key']} has the shape {shape}"))
    except (VAEError, KeyError, IndexError) as error:
        faults.append(Fault(record["name"], f"its latents cannot be read ({in_one_line(error)})"))
    return faults


def _check_lists(collection: Collection, counts: Mapping[str, int]) -> list[Fault]:
    """The lists that are written at the end."""
    if collection.totals is None:
        return [Fault(collection.out.name, "it is not finished; run encode-dataset with --resume")]
    faults = []
    if dict(collection.totals) != dict(counts):
        faults.append(
            Fault("manifest.json", f"its totals are {collection.totals}, and the records have {dict(counts)}")
        )
    for name, expected in ((SHARDS, counts["shards"]), (FAILURES, counts["failures"])):
        try:
            lines = sum(1 for _ in read_lines(collection.records / name))
            if lines != expected:
                faults.append(Fault(name, f"it has {lines} lines instead of {expected}"))
        except (OSError, ValueError) as error:
            faults.append(Fault(name, f"it cannot be read ({reason(error)})"))
    return faults


def _sha256(place: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(place) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
