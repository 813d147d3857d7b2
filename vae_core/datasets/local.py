"""The engine of one machine: processes that read and resize, the model here, files written by a thread."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..autoencoder_kl import AutoencoderKL
from ..errors import DatasetError, VAEError
from .collection import Collection
from .encode import BatchEncoder, Shard
from .prepare import Prepared, Result, prepare_all
from .progress import RunProgress
from .settings import Failure, Settings
from .sources import Split, from_position, read_split

# Images that a reader hands over at once, parts of them that it works ahead, and shards that wait to be written.
_PART = 4
_AHEAD = 4
_UNWRITTEN = 2


@dataclass(frozen=True)
class Work:
    """A split that is to be encoded, from a shard on: those before are on the disk."""

    split: Split
    chunk: int = 0


@dataclass(frozen=True)
class _Part:
    """Consecutive images of a split; `first` is the position of the first. `last`: no more come after them."""

    split: int
    first: int
    results: list[Result]
    last: bool


@dataclass(frozen=True)
class _Stopped:
    """A reader that cannot go on, and why."""

    error: VAEError


def run(collection: Collection, work: Sequence[Work], vae: AutoencoderKL, workers: int, progress: RunProgress) -> None:
    """Encode splits and commit their shards.

    Args:
        vae: on the device that it works on.
        workers: processes that read; 0 to read in this one.

    Raises:
        DatasetError: a file cannot be written, a source cannot be reached, or a reader was killed.
    """
    encoder = BatchEncoder(vae, collection.settings)
    streams = {each.split.number: _Stream(each, collection.settings) for each in work}
    pending: list[Future[dict[str, Any]]] = []
    with ThreadPoolExecutor(1, "seamless-vae-writer") as writer:
        try:
            for part in _parts(work, collection.settings, vae.config.in_channels, workers):
                if isinstance(part, _Stopped):
                    raise part.error
                for shard in streams[part.split].take(part, encoder, progress):
                    while len(pending) >= _UNWRITTEN:
                        _written(pending.pop(0), progress)
                    pending.append(writer.submit(collection.commit, shard))
                if streams[part.split].ended:
                    del streams[part.split]
            while pending:
                _written(pending.pop(0), progress)
        except RuntimeError as error:  # of torch, which raises it wherever this process is just then
            if "DataLoader worker" not in str(error):
                raise
            raise DatasetError(
                "a process that reads images was killed, perhaps because memory ran out. What was finished stays "
                "valid: run the same command with --resume, and with fewer --workers."
            ) from error
        finally:
            for each in pending:
                each.cancel()
            progress.busy += encoder.seconds
    assert not streams, "every split ends"


@dataclass
class _Stream:
    """The images of one split as they come, put in order and into shards."""

    work: Work
    settings: Settings
    early: dict[int, _Part] = field(default_factory=dict)
    ended: bool = False

    def __post_init__(self) -> None:
        self.expected = self.work.chunk * self.settings.shard_images
        self.shard = Shard(self.work.split.number, self.work.chunk, self.settings)

    def take(self, part: _Part, encoder: BatchEncoder, progress: RunProgress) -> Iterator[Shard]:
        """Encode what is next in order; gives the shards that are complete by it."""
        self.early[part.first] = part
        while (ready := self.early.pop(self.expected, None)) is not None:
            self.expected += len(ready.results)
            for result in ready.results:
                if self.shard.is_full:  # it is known only now that it was not the last
                    yield self._complete(encoder, progress)
                self._encode(self.shard.take(result), encoder, progress)
                if isinstance(result, Failure):
                    progress.advance(1, 1)
            if ready.last:
                self.shard.last = self.ended = True
                yield self._complete(encoder, progress)
                return

    def _complete(self, encoder: BatchEncoder, progress: RunProgress) -> Shard:
        for batch in self.shard.rest():
            self._encode(batch, encoder, progress)
        shard = self.shard
        self.shard = Shard(self.shard.split, self.shard.chunk + 1, self.settings)
        return shard

    def _encode(self, batch: list[Prepared] | None, encoder: BatchEncoder, progress: RunProgress) -> None:
        if batch is not None:
            self.shard.encode(batch, encoder)
            progress.advance(len(batch), sum(isinstance(self.shard.done[each.position], Failure) for each in batch))


class _Reading(IterableDataset):
    """What readers do: each takes every n-th task."""

    def __init__(self, work: Sequence[Work], settings: Settings, channels: int) -> None:
        self.settings = settings
        self.channels = channels
        self.tasks = [(each, wanted) for each in work for wanted in _tasks(each, settings.shard_images)]

    def __iter__(self) -> Iterator[_Part | _Stopped]:
        info = get_worker_info()
        if info is not None:
            end_with_parent()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            for work, wanted in self.tasks[first::step]:
                yield from self._read(work, wanted)
        except VAEError as error:
            yield _Stopped(error)

    def _read(self, work: Work, wanted: range) -> Iterator[_Part]:
        split = work.split
        start = wanted.start
        raws = read_split(split, self.settings.column, wanted)
        results = prepare_all(raws, self.settings, self.channels, start)
        if split.kind == "files":
            yield _Part(split.number, start, list(results), wanted.stop >= len(split.urls))
            return
        while batch := list(itertools.islice(results, _PART)):
            yield _Part(split.number, start, batch, False)
            start += len(batch)
        yield _Part(split.number, start, [], True)


def _tasks(work: Work, shard_images: int) -> list[range]:
    """Positions to read together. Files may be read by many; a tar and a range of rows by one reader."""
    if work.split.kind != "files":
        return [from_position(work.chunk * shard_images)]
    return [range(start, start + _PART) for start in range(0, len(work.split.urls), _PART)]


def _parts(work: Sequence[Work], settings: Settings, channels: int, workers: int) -> Iterator[_Part | _Stopped]:
    reading = _Reading(work, settings, channels)
    if not workers:
        yield from reading
        return
    loader = DataLoader(reading, batch_size=None, num_workers=workers, prefetch_factor=_AHEAD, collate_fn=_as_it_is)
    yield from loader


def end_with_parent() -> None:
    """End this process when the one that started it is killed.

    A device's process would go on writing, and a reader would wait for ever to hand over what it has read.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="seamless-vae-parent", daemon=True).start()


def _as_it_is(part: Any) -> Any:
    return part


def _written(future: Future[dict[str, Any]], progress: RunProgress) -> None:
    record = future.result()
    progress.committed(1, sum(file["bytes"] for file in record["files"]))
