"""A whole run: what is to be done, by which engine, and what is left of it at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..autoencoder_kl import AutoencoderKL
from ..errors import ConfigError, DatasetError, brief
from ..streaming.memory import available_bytes
from . import devices as several_devices
from . import kohya, local, ray_engine
from .buckets import Buckets
from .collection import (
    FAILURES,
    MANIFEST,
    SHARDS,
    SPLITS,
    Collection,
    is_list_of_splits,
    records_folder,
    software,
)
from .encode import fingerprint
from .local import Work
from .progress import RunProgress
from .settings import Settings, automatic_batch, automatic_budget, automatic_shard
from .sole_writer import sole_writer
from .sources import Split, find_splits, whole_name
from .weights import PackedVAE
from .writing import local_folder, remove_leftovers

logger = logging.getLogger("seamless_vae")


@dataclass(frozen=True)
class Engine:
    """Where a collection is encoded; nothing of it changes what is written.

    Attributes:
        name: "local" or "ray".
        workers: processes that read (local; None for what the machine has), or encoders (ray; None for one a device).
        devices: of the local engine; none for the device of the VAE.
        address: of a Ray cluster; None to start one here.
    """

    name: Literal["local", "ray"] = "local"
    workers: int | None = None
    devices: Sequence[str] = ()
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise ConfigError(f"the engine is {brief(self.name)}; it is local or ray.")
        least = 0 if self.name == "local" else 1
        if self.workers is not None and (not isinstance(self.workers, int) or self.workers < least):
            raise ConfigError(f"workers is {self.workers}; give a whole number of at least {least}.")


def choose_settings(
    vae: AutoencoderKL,
    buckets: Buckets | None = None,
    *,
    batch: int | None = None,
    memory_budget: int | None = None,
    shard_images: int | None = None,
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    **others: Any,
) -> Settings:
    """Settings, where what is None is chosen for the VAE, its device and its memory.

    Args:
        out: a collection that was begun there decides what would otherwise be chosen, so that it can be resumed on
            a machine with more or less memory.
        others: fields of Settings.
    """
    buckets = buckets or _size_of(vae)
    buckets.check(vae.config.downscale_factor)
    records = records_folder(Path(out or ""), others.get("layout", "shards"), others.get("kohya"), buckets)
    if out is not None and (records / MANIFEST).is_file():
        begun = Collection.open(records).settings
        if begun.buckets == buckets:
            batch = begun.batch if batch is None else batch
            memory_budget = begun.memory_budget if memory_budget is None else memory_budget
            shard_images = begun.shard_images if shard_images is None else shard_images
            threads = begun.threads if threads is None else threads
    if memory_budget is None:
        memory_budget = automatic_budget(available_bytes(vae.device))
    return Settings(
        buckets,
        batch=automatic_batch(buckets, memory_budget, vae.device) if batch is None else batch,
        memory_budget=memory_budget,
        shard_images=automatic_shard(buckets) if shard_images is None else shard_images,
        threads=torch.get_num_threads() if threads is None else threads,
        **others,
    )


def encode_dataset(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    vae: AutoencoderKL,
    settings: Settings,
    *,
    engine: Engine | None = None,
    resume: bool = False,
    progress: RunProgress | None = None,
) -> dict[str, int]:
    """Encode every image of a source into a collection of latents.

    Killed at any moment and started again with `resume`, it writes what it would have written at once, byte for
    byte; so it does with any number of workers and devices of one kind, on either engine.

    Args:
        source: see `find_splits`.
        out: a folder. For the layout kohya, that of the images themselves.
        settings: see `choose_settings`.

    Returns:
        images, failures (listed in failures.jsonl), shards, bytes.

    Raises:
        DatasetError: a source that cannot be read, a folder that has another collection, a full disk.
        ConfigError: settings that do not fit the VAE or the source.
    """
    engine = engine or Engine()
    progress = progress or RunProgress(show=False)
    out = local_folder(out)
    source = whole_name(source)
    settings.buckets.check(vae.config.downscale_factor)
    records = records_folder(out, settings.layout, settings.kohya, settings.buckets)
    # Files of kohya's with several resolutions are written by one run at a time.
    with sole_writer(records.parent if settings.layout == "kohya" else records):
        collection = _begin(source, out, records, vae, settings, resume)
        work, images, before = _what_is_left(collection)
        progress.start(images, before)
        try:
            if work:
                _run(collection, work, vae, engine, progress)
        finally:
            progress.close()
        return collection.finish()


def _begin(source: str, out: Path, records: Path, vae: AutoencoderKL, settings: Settings, resume: bool) -> Collection:
    if (records / MANIFEST).is_file():
        collection = Collection.open(records)
        if not resume:
            state = "a finished collection" if collection.totals else "a collection that was begun"
            raise DatasetError(f"{out} has {state}. Give --resume to go on with it, or another folder.")
        _check_same(collection, source, vae, settings)
        remove_leftovers(out if settings.layout == "kohya" else collection.records)
        return collection
    _check_has_manifest(records)
    if settings.layout != "kohya":  # whose records are in a folder of their own
        _check_is_free(records)
        if os.path.realpath(source) == os.path.realpath(out):
            raise ConfigError(
                f"{out} has the images, and would be taken for a collection of latents instead. Give another folder, "
                f"such as one within it."
            )
    splits = find_splits(source, settings.shard_images, settings.column)
    if settings.layout == "kohya":
        kohya.check_family(str(settings.kohya), vae.config)
        _check_kohya(source, splits)
        keys = (key for split in splits for key in split.keys)
        kohya.warn_of_old_files(keys, out, str(settings.kohya))
    remove_leftovers(out if settings.layout == "kohya" else records)
    return Collection.begin(out, source, splits, settings, vae)


def _check_has_manifest(records: Path) -> None:
    """Raise DatasetError for shards of a collection whose manifest is lost."""
    if next(records.glob("shards/*/*.json"), None) is not None:
        raise DatasetError(
            f"{records} has shards, but no {MANIFEST} that says how they were made. Get that file back, or give "
            f"another folder."
        )


def _check_is_free(records: Path) -> None:
    """Raise DatasetError for a folder without a manifest that has what a collection would replace."""
    for place in (records / SPLITS, records / SHARDS, records / FAILURES, *records.glob("shards/*/*")):
        if place.name == SPLITS and is_list_of_splits(place):
            continue  # of a run that ended before it had written the manifest
        if os.path.lexists(place):
            raise DatasetError(
                f"{place} is there already, and is not of a collection that can be resumed. Give another folder, or "
                f"move it."
            )


def _check_same(collection: Collection, source: str, vae: AutoencoderKL, settings: Settings) -> None:
    changes = settings.differences(collection.settings)
    begun = collection.manifest
    if begun["source"] != source:
        changes.append(f"source {source} instead of {begun['source']}")
    if begun["vae"]["sha256"] != fingerprint(vae):
        changes.append("another VAE, or the same in another number type")
    if changes:
        raise DatasetError(
            f"{collection.out} was begun with other settings ({'; '.join(changes)}). "
            f"Give those it was begun with to resume it, or another folder."
        )
    now = software()
    others = [f"{name} {version}" for name, version in begun["software"].items() if now.get(name) != version]
    if others:
        logger.warning(
            "the collection was begun with %s; latents from here on may differ in the last bits.", ", ".join(others)
        )


def _check_kohya(source: str, splits: Sequence[Split]) -> None:
    if splits[0].kind != "files":
        raise ConfigError(
            f"kohya's cache files stand beside image files, and {source} has none. Choose the layout shards."
        )
    seen: dict[str, str] = {}
    for split in splits:
        kohya.check_names(split.keys, seen)


def _what_is_left(collection: Collection) -> tuple[list[Work], int | None, int]:
    """The work that is left, images of the whole source (None: not known), and those done before."""
    work = []
    total = 0
    before = 0
    known = True
    for split in collection.splits():
        count = split.count
        known = known and count is not None
        total = total + (count or 0)
        if split.kind == "files":
            done = collection.is_done(split)
            chunks = 0
            images = len(split.urls)
            before += images if done else 0
        else:
            chunks, done = collection.chunks_done(split)
            images = chunks * collection.settings.shard_images
            before += images if count is None else min(images, count)
        if not done:
            work.append(Work(split, chunks))
    return work, total if known else None, before


def _run(collection: Collection, work: list[Work], vae: AutoencoderKL, engine: Engine, progress: RunProgress) -> None:
    if engine.name == "ray":
        ray_engine.run(collection, work, PackedVAE.of(vae), engine.address, engine.workers, progress)
        return
    workers = default_workers(vae) if engine.workers is None else engine.workers
    if len(engine.devices) > 1:
        several_devices.run(collection, work, vae, engine.devices, workers, progress)
    else:
        local.run(collection, work, vae, workers, progress)


def default_workers(vae: AutoencoderKL) -> int:
    """Processes that read: most processors where another device encodes, a quarter where they do it themselves."""
    processors = os.cpu_count() or 1
    return max(1, processors // 4) if vae.device.type == "cpu" else max(1, min(32, processors - 1))


def _size_of(vae: AutoencoderKL) -> Buckets:
    size = vae.config.sample_size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return Buckets(width, height)
