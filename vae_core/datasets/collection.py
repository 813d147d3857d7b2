"""A collection on disk: its manifest, its splits, the records of its shards, and how each of them is committed.

A shard is its files and a record beside them (`NAME.json`), which is written last: what has no record does not count
and is written again. The manifest is written first, without totals, and once more at the end, with them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import safetensors
import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL
from ..config import AutoencoderKLConfig
from ..errors import DatasetError
from . import kohya, safetensors_layout, webdataset_layout
from .buckets import Buckets
from .encode import EncodedImage, Shard, fingerprint, shard_name, shard_numbers
from .records import (
    MOST_MANIFEST,
    MOST_RECORD,
    check_manifest,
    check_record,
    read_json,
    read_lines,
    reason,
    split_of,
)
from .settings import Scale, Settings
from .sources import Split
from .writing import folder_name, write_bytes

VERSION = 1
FORMAT = "seamless-vae dataset"
MANIFEST = "manifest.json"
SPLITS = "splits.jsonl"
SHARDS = "shards.jsonl"
FAILURES = "failures.jsonl"
_KOHYA_RECORDS = ".seamless_vae"


class Collection:
    """A collection that was begun, in a folder.

    Attributes:
        out: the folder.
        records: where its own files are: the folder, or a hidden one in it where the files belong beside the images.
        manifest: what `manifest.json` has.
    """

    def __init__(self, out: Path, manifest: Mapping[str, Any]) -> None:
        self.out = out
        self.manifest = dict(manifest)
        self.settings = Settings.from_dict(manifest["settings"])
        self.scale = Scale(**manifest["scale"])
        self.records = records_folder(out, self.settings.layout, self.settings.kohya, self.settings.buckets)

    @classmethod
    def begin(
        cls, out: Path, source: str, splits: Sequence[Split], settings: Settings, vae: AutoencoderKL
    ) -> Collection:
        """Write the splits and the manifest of a new collection."""
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "settings": settings.to_dict(),
            "scale": vars(Scale.of(settings, vae.config)),
            "vae": {"sha256": fingerprint(vae), "config": vae.config.to_dict()},
            "software": software(),
        }
        if vae.config.has_batch_norm:  # what scales its latents is not in its config
            manifest["batch_norm"] = {
                name: getattr(vae.bn, name).double().tolist() for name in ("running_mean", "running_var")
            }
        lines = "".join(f"{split.to_json()}\n" for split in splits)
        collection = cls(out, manifest)
        write_bytes(collection.records / SPLITS, lines.encode())
        write_bytes(collection.records / MANIFEST, _json(manifest))
        return collection

    @classmethod
    def open(cls, out: str | os.PathLike[str]) -> Collection:
        """Read a collection's manifest.

        Args:
            out: its folder. Of several collections of kohya's files in one, the folder of the one's records.

        Raises:
            DatasetError: there is none or are several, or it is damaged or of a later version.
        """
        out = Path(folder_name(out))
        places = find_manifests(out)
        if not places:
            raise DatasetError(f"{out} has no {MANIFEST}. Give a folder that `seamless-vae encode-dataset` wrote.")
        if len(places) > 1:
            raise DatasetError(
                f"{out} has several collections. Give one of {', '.join(str(each.parent) for each in places)}."
            )
        place = places[0]
        if place.parent.parent.name == _KOHYA_RECORDS:
            out = place.parents[2]
        try:
            manifest = read_json(place, MOST_MANIFEST)
            if manifest["format"] == FORMAT and manifest["version"] == VERSION:
                check_manifest(manifest)
                collection = cls(out, manifest)
                _ = collection.config  # or its error, here
                return collection
            problem = f"it is {str(manifest['format'])[:80]!r} of version {str(manifest['version'])[:20]}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{place} cannot be read: {reason(error)}. Get it from where the collection was made, or encode again."
            ) from None
        raise DatasetError(f"{place} cannot be read: {problem}. This version reads {FORMAT!r} of version {VERSION}.")

    @functools.cached_property
    def config(self) -> AutoencoderKLConfig:
        return AutoencoderKLConfig.from_dict(self.manifest["vae"]["config"])

    @functools.cached_property
    def batch_norm(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Mean and variance, [channels] in float32, by which FLUX.2 normalises its latents; none of other families."""
        if not (found := self.manifest.get("batch_norm")):
            return None, None
        mean, var = (np.asarray(found[name], np.float32) for name in ("running_mean", "running_var"))
        return torch.from_numpy(mean), torch.from_numpy(var)

    @property
    def totals(self) -> dict[str, int] | None:
        """Images, failures, shards and bytes; None as long as it is not finished."""
        return self.manifest.get("totals")

    def splits(self) -> Iterator[Split]:
        """What the source was divided into when the collection was begun.

        Raises:
            DatasetError: their list is missing or damaged.
        """
        place = self.records / SPLITS
        found = False
        try:
            for values in read_lines(place):
                found = True
                yield split_of(values)
            if not found:
                raise ValueError("it is empty")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{place} cannot be read: {reason(error)}. Get it from where the collection was made, or encode again."
            ) from None

    def record_path(self, split: int, chunk: int) -> Path:
        return self.records / f"{safetensors_layout.path(split, chunk)}.json"

    def read_record(self, split: int, chunk: int) -> dict[str, Any] | None:
        """The record of a shard; None if it was not committed.

        Raises:
            DatasetError: it is damaged, or names files outside of the collection.
        """
        place = self.record_path(split, chunk)
        try:
            return check_record(read_json(place, MOST_RECORD), self.settings.layout == "kohya")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{place} cannot be read ({reason(error)}). Move it elsewhere and run encode-dataset with --resume."
            ) from None

    def chunks_done(self, split: Split) -> tuple[int, bool]:
        """(how many shards of a split are committed without a gap, whether that is all of it)."""
        chunk = 0
        while (record := self.read_record(split.number, chunk)) is not None and self._has_files(record):
            chunk += 1
            if record["last"]:
                return chunk, True
        return chunk, False

    def is_done(self, split: Split) -> bool:
        """Whether a split needs no more work."""
        return self.chunks_done(split)[1]

    def _has_files(self, record: Mapping[str, Any]) -> bool:
        """Whether the files of a shard are there, and as large as they were written."""
        try:
            sizes = [(self.out / file["path"]).stat().st_size for file in record["files"]]
        except OSError:
            return False
        # A file of kohya's may have other resolutions, too.
        return all("ending" in file or size == file["bytes"] for file, size in zip(record["files"], sizes, strict=True))

    def commit(self, shard: Shard) -> dict[str, Any]:
        """Write a shard's files, then its record; returns the record.

        Raises:
            DatasetError: a file cannot be written.
        """
        images = [_image_record(image, self.settings) for image in shard.images]
        about = {
            "format": "seamless-vae latents",
            "version": VERSION,
            "keep": self.settings.keep,
            "scale": self.manifest["scale"],
            "vae": self.manifest["vae"],
            "images": images,
        }
        files = self._files(shard, about)
        of_parts = kohya.entries(shard) if self.settings.layout == "kohya" else {}
        for name, data in files.items():
            write_bytes(self.out / name, data)
        record = {
            "name": shard.name,
            "last": shard.last,
            "files": [{"path": name, **(of_parts.get(name) or _measured(data))} for name, data in files.items()],
            "images": images,
            "failures": [vars(failure) for failure in shard.failures],
        }
        write_bytes(self.record_path(shard.split, shard.chunk), _json(record, indent=None))
        return record

    def _files(self, shard: Shard, about: Mapping[str, Any]) -> dict[str, bytes]:
        if self.settings.layout == "kohya":
            return kohya.files(shard, self.out)
        layout = webdataset_layout if self.settings.layout == "webdataset" else safetensors_layout
        return layout.files(shard, about)

    def all_records(self) -> Iterator[dict[str, Any]]:
        """The records of all shards, in order.

        Raises:
            DatasetError: one is missing or damaged.
        """
        for split in self.splits():
            for chunk in itertools.count():
                record = self.read_record(split.number, chunk)
                if record is None:
                    raise DatasetError(
                        f"{self.record_path(split.number, chunk)} is missing, so the collection is incomplete. Run "
                        f"encode-dataset with --resume; several machines need a folder that all of them see."
                    )
                yield record
                if record["last"]:
                    break

    def read_images(self, record: Mapping[str, Any], images: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """The tensors of some images of a shard, as its files have them."""
        if self.settings.layout == "kohya":
            found = []
            for image in images:
                h, w = image["shape"][-2:]
                found.append(kohya.read(self.out / image["file"], ["x"], (h, w))["x"])
            return found
        if not images:
            return []
        names = [f"{image['position']:06d}" for image in images]
        return list(self.open_shard(*shard_numbers(record["name"])).read(names).values())

    def open_shard(self, split: int, chunk: int) -> safetensors_layout.Opened | webdataset_layout.Opened:
        """The file of a shard, of a layout that has one.

        Raises:
            DatasetError: it cannot be read.
        """
        layout = webdataset_layout if self.settings.layout == "webdataset" else safetensors_layout
        return layout.Opened(self.out / f"{safetensors_layout.path(split, chunk)}{layout.SUFFIX}")

    def shards(self) -> Iterator[tuple[tuple[int, int], int]]:
        """((number of the split, number of the shard in it), images) of each shard of a finished collection.

        Raises:
            DatasetError: their list cannot be read, or does not have as many images as the totals.
        """
        place = self.records / SHARDS
        count = 0
        try:
            for line in read_lines(place):
                shard = shard_numbers(line["name"])
                count += line["images"]
                yield shard, line["images"]
            counted = (self.totals or {}).get("images")
            problem = "" if count == counted else f"it has {count} images instead of the {counted} of its totals"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = reason(error)
        if problem:
            raise DatasetError(f"{place} cannot be read: {problem}. Run encode-dataset with --resume.")

    def finish(self) -> dict[str, int]:
        """Write the list of shards, the report of failures and the totals; returns the totals.

        Raises:
            DatasetError: a shard is missing, or there are no images at all.
        """
        totals = {"images": 0, "failures": 0, "shards": 0, "bytes": 0}
        shards = []
        failures = []
        for record in self.all_records():
            size = sum(file["bytes"] for file in record["files"])
            line = {"name": record["name"], "images": len(record["images"]), "failures": len(record["failures"])}
            # kohya's files are as many as images: their hashes are in the records alone.
            shards.append(
                {**line, "bytes": size, **({} if self.settings.layout == "kohya" else {"files": record["files"]})}
            )
            failures += [{"shard": record["name"], **failure} for failure in record["failures"]]
            totals["images"] += line["images"]
            totals["failures"] += line["failures"]
            totals["bytes"] += size
            totals["shards"] += 1
        if not totals["images"] and not totals["failures"]:
            raise DatasetError(f"{self.manifest['source']} has no images. Give a source that has, and another folder.")
        write_bytes(self.records / SHARDS, _lines(shards))
        write_bytes(self.records / FAILURES, _lines(failures))
        self.manifest["totals"] = totals
        write_bytes(self.records / MANIFEST, _json(self.manifest))
        return totals


def records_folder(out: Path, layout: str, family: str | None, buckets: Buckets) -> Path:
    """Where a collection's own files are. Beside the same images there may be several collections of kohya's files: of
    each family, and of each resolution where one file has several.
    """
    if layout != "kohya":
        return out
    sizes = str(buckets).replace(":", "-") + ("" if buckets.upscale else "-no-upscale")
    return out / _KOHYA_RECORDS / (f"{family}_{sizes}" if family in kohya.MULTIRESOLUTION else str(family))


def is_list_of_splits(place: Path) -> bool:
    """Whether a file is what a run writes first, which may have ended after it."""
    try:
        first = next(iter(read_lines(place)), None)
        return first is None or isinstance(split_of(first), Split)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_manifests(out: Path) -> list[Path]:
    """The manifests of the collections in a folder."""
    if (out / MANIFEST).is_file():
        return [out / MANIFEST]
    return sorted(place for place in out.glob(f"{_KOHYA_RECORDS}/*/{MANIFEST}") if place.is_file())


def software() -> dict[str, str]:
    """The versions of what decides the bytes."""
    from .. import __version__

    return {
        "seamless-vae": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "safetensors": safetensors.__version__,
    }


def _measured(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _image_record(image: EncodedImage, settings: Settings) -> dict[str, Any]:
    source = image.image
    record = {
        "key": source.key,
        "position": source.position,
        "sha256": source.sha256,
        "size": source.size,
        "resized": source.fit.resized,
        "crop": source.fit.crop,
        "bucket": source.fit.bucket,
        "shape": tuple(image.latents.shape),
    }
    if settings.layout == "kohya":
        record["file"] = kohya.file_name(source.key, source.size, str(settings.kohya))
    return record


def _json(value: Any, indent: int | None = 1) -> bytes:
    return (json.dumps(value, indent=indent) + "\n").encode()


def _lines(values: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


__all__ = ["Collection", "find_manifests", "is_list_of_splits", "records_folder", "shard_name", "software"]
