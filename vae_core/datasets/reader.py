"""What training reads: a collection as a map-style dataset, and as a stream of batches that can be resumed."""

from __future__ import annotations

import bisect
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import ConfigError, DatasetError
from ..latent import to_diffusion
from .collection import Collection
from .decode import sample_moments
from .encode import generator
from .settings import Scale

_WINDOW = 32  # shards that are shuffled together


class LatentDataset(Dataset):
    """A collection by index. Items are dictionaries:

        latents: [C, h, w] in float32: raw z; where moments were kept, a sample that is new in each epoch.
        latents_flipped: of the mirrored image, if it was kept.
        alpha_mask: [H, W] of bytes, if it was kept.
        key, sha256, size, crop, bucket: of the image; sizes are (width, height).

    Args:
        out: the collection's folder.
        scaled: give what the diffusion model takes, scale * (z - shift), instead of raw z.

    Raises:
        DatasetError: there is no finished collection.
    """

    def __init__(self, out: str | os.PathLike[str], *, scaled: bool = False) -> None:
        self.collection, self.scaled = _open(out), scaled
        self.epoch: int | None = 0
        self._records = [record for record in self.collection.all_records() if record["images"]]
        self._starts = [0]
        for record in self._records:
            self._starts.append(self._starts[-1] + len(record["images"]))

    def __len__(self) -> int:
        return self._starts[-1]

    def set_epoch(self, epoch: int | None) -> None:
        """The epoch whose samples of moments are given; None for their mean."""
        self.epoch = epoch

    def files(self, index: int) -> list[Path]:
        """The files that an image's latents are read from, the record first."""
        record, i = self._find(index)
        kohya = record["images"][i].get("file")
        split, _, chunk = record["name"].partition("-")
        files = [kohya] if kohya else [file["path"] for file in record["files"]]
        return [self.collection.record_path(int(split), int(chunk)), *(self.collection.out / file for file in files)]

    def scale(self, index: int) -> Scale:
        """How the latents in an image's file are scaled."""
        return self.collection.scale

    def image(self, index: int) -> dict[str, Any]:
        """What is known of an image: key, sha256, size, crop, bucket, shape."""
        record, i = self._find(index)
        return record["images"][i]

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, i = self._find(index)
        tensors = self.collection.read_images(record, [record["images"][i]])[0]
        return _item(self.collection, record["images"][i], tensors, self.epoch, self.scaled)

    def _find(self, index: int) -> tuple[dict[str, Any], int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a collection of {len(self)}")
        index %= len(self)
        place = bisect.bisect_right(self._starts, index) - 1
        return self._records[place], index - self._starts[place]


class LatentStream(IterableDataset):
    """A collection as batches of one shape, in an order that only the seed and the epoch decide.

    Give it to a DataLoader with `batch_size=None`. Ranks take turns, batch by batch, and so do the workers of a rank:
    the batches of a rank are the same with any number of workers. Batches are dictionaries like LatentDataset's
    items, latents stacked to [B, C, h, w] and the rest in lists, and `state`: give it to `load_state_dict` to go on
    after this batch.

    Args:
        shuffle: False for the order of the collection.
        drop_last: leave out batches that are not full, and a last round that has no batch for every rank, so that
            all ranks see equally many.
        rank, world_size: of the process; None for torch.distributed's.
        window: shards whose images are shuffled together.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        batch_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        window: int = _WINDOW,
        scaled: bool = False,
    ) -> None:
        if batch_size < 1 or window < 1:
            raise ConfigError(f"batches of {batch_size} from {window} shards cannot be made; give positive numbers.")
        self.collection, self.scaled = _open(out), scaled
        self.batch_size, self.shuffle, self.seed, self.window = batch_size, shuffle, seed, window
        self.drop_last = drop_last
        self.rank, self.world_size = _rank(rank, world_size)
        self.epoch = self._skip = 0
        names = [record["name"] for record in self.collection.all_records() if record["images"]]
        self._shards = [(int(split), int(chunk)) for split, _, chunk in (name.partition("-") for name in names)]

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: another order, and new samples of moments."""
        self.epoch, self._skip = epoch, 0

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, int]:
        """Where to go on after a batch; without one, where iteration would begin now."""
        return dict(batch["state"]) if batch is not None else {"epoch": self.epoch, "batches": self._skip}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state says. Iteration begins there once; the next epoch begins with `set_epoch`."""
        self.epoch, self._skip = int(state["epoch"]), int(state["batches"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        skip, self._skip = self._skip, 0
        for number, batch in enumerate(self._of_rank()):
            # Workers are asked in turn, the first for the first batch that is not skipped.
            if number >= skip and (number - skip) % workers == worker:
                yield self._read(batch, number + 1)

    def _of_rank(self) -> Iterator[list[tuple[tuple[int, int], dict[str, Any]]]]:
        turn: list[Any] = []
        for batch in self._batches():
            turn.append(batch)
            if len(turn) == self.world_size:
                yield turn[self.rank]
                turn = []
        if self.rank < len(turn) and not self.drop_last:
            yield turn[self.rank]

    def _batches(self) -> Iterator[list[tuple[tuple[int, int], dict[str, Any]]]]:
        """Every batch of the epoch, of all ranks: pairs of a shard and an image's record."""
        chance = random.Random(f"{self.seed} {self.epoch}")
        shards = list(self._shards)
        if self.shuffle:
            chance.shuffle(shards)
        waiting: dict[tuple[int, ...], list[Any]] = {}
        for start in range(0, len(shards), self.window):
            images = [(shard, image) for shard in shards[start : start + self.window] for image in self._images(shard)]
            if self.shuffle:
                chance.shuffle(images)
            for shard, image in images:
                shape = (*image["shape"], *image["bucket"])
                batch = waiting.setdefault(shape, [])
                batch.append((shard, image))
                if len(batch) == self.batch_size:
                    yield waiting.pop(shape)
        if not self.drop_last:
            yield from (waiting[shape] for shape in sorted(waiting))

    def _images(self, shard: tuple[int, int]) -> list[dict[str, Any]]:
        record = self.collection.read_record(*shard)
        if record is None:
            raise DatasetError(f"{self.collection.record_path(*shard)} is gone. Run encode-dataset with --resume.")
        return record["images"]

    def _read(self, batch: Sequence[tuple[tuple[int, int], dict[str, Any]]], number: int) -> dict[str, Any]:
        items = []
        for shard, image in batch:
            record = self.collection.read_record(*shard)
            assert record is not None
            tensors = self.collection.read_images(record, [image])[0]
            items.append(_item(self.collection, image, tensors, self.epoch, self.scaled))
        stacked = {
            name: torch.stack([item[name] for item in items]) if isinstance(value, Tensor) else [i[name] for i in items]
            for name, value in items[0].items()
        }
        return {**stacked, "state": {"epoch": self.epoch, "batches": number}}


def _open(out: str | os.PathLike[str]) -> Collection:
    collection = Collection.open(out)
    if collection.totals is None:
        raise DatasetError(f"{out} is not finished. Run encode-dataset with --resume first.")
    return collection


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else 1
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is not one of {world_size}; ranks count from 0.")
    return rank, world_size


def _item(
    collection: Collection, image: Mapping[str, Any], tensors: Mapping[str, Tensor], epoch: int | None, scaled: bool
) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for ending, flipped in (("", False), ("_flipped", True)):
        if f"moments{ending}" in tensors:
            source = None if epoch is None else generator(image["sha256"], flipped, epoch)
            z = sample_moments(tensors[f"moments{ending}"], source)
        elif f"latents{ending}" in tensors:
            z = collection.scale.undo(tensors[f"latents{ending}"].float())
        else:
            continue
        item[f"latents{ending}"] = to_diffusion(z[None], collection.config)[0] if scaled else z
    if "alpha_mask" in tensors:
        item["alpha_mask"] = tensors["alpha_mask"]
    return {**item, **{name: image[name] for name in ("key", "sha256", "size", "crop", "bucket")}}
