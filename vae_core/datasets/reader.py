"""What training reads: a collection as a map-style dataset, and as a stream of batches that can be resumed."""

from __future__ import annotations

import bisect
import operator
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import ConfigError, DatasetError, brief
from ..latent import to_diffusion
from .collection import Collection
from .decode import sample_moments
from .encode import generator
from .opened import OpenShards, ShardNumber
from .settings import Scale
from .shared import SharedNumber

_WINDOW = 32  # shards that are shuffled together


class LatentDataset(Dataset):
    """A collection by index. Items are dictionaries:

        latents: [C, h, w] in float32: raw z; where moments were kept, a sample that is new in each epoch.
        latents_flipped: of the mirrored image, if it was kept.
        alpha_mask: [H, W] in float32 in [0, 1], if it was kept.
        key, sha256, size, resized, crop, bucket: of the image; sizes are (width, height). `resized` is smaller than
            `bucket` where the image was padded at the right and below.

    Args:
        out: the collection's folder.
        scaled: give what the diffusion model takes, scale * (z - shift), instead of raw z; of FLUX.2 packed and
            normalised.

    Raises:
        DatasetError: there is no finished collection.
    """

    def __init__(self, out: str | os.PathLike[str], *, scaled: bool = False) -> None:
        self.collection = _open(out)
        self.scaled = scaled
        self._epoch = SharedNumber(0)
        self._opened = OpenShards(self.collection)
        self._shards = []
        self._starts = [0]
        for shard, images in self._opened.listed.items():
            if images:
                self._shards.append(shard)
                self._starts.append(self._starts[-1] + images)

    def __len__(self) -> int:
        return self._starts[-1]

    def set_epoch(self, epoch: int | None) -> None:
        """The epoch whose samples of moments are given; None for their mean. Workers that are running follow."""
        self._epoch.value = None if epoch is None else _whole("epoch", epoch)

    def files(self, index: int) -> list[Path]:
        """The files that an image's latents are read from, the record first."""
        shard, i = self._find(index)
        record = self._opened.record(shard)
        kohya = record["images"][i].get("file")
        files = [kohya] if kohya else [file["path"] for file in record["files"]]
        return [self.collection.record_path(*shard), *(self.collection.out / file for file in files)]

    def scale(self, index: int) -> Scale:
        """How the latents in an image's file are scaled."""
        return self.collection.scale

    def image(self, index: int) -> dict[str, Any]:
        """What is known of an image: key, sha256, size, resized, crop, bucket, shape."""
        shard, i = self._find(index)
        return self._opened.images(shard)[i]

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, i = self._find(index)
        image = self._opened.images(shard)[i]
        (tensors,) = self._opened.read(shard, [image])
        return _item(self.collection, image, tensors, self._epoch.value, self.scaled)

    def _find(self, index: int) -> tuple[ShardNumber, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a collection of {len(self)}")
        index %= len(self)
        place = bisect.bisect_right(self._starts, index) - 1
        return self._shards[place], index - self._starts[place]


_Batch = list[tuple[ShardNumber, dict[str, Any]]]


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

    Raises:
        DatasetError: there is no finished collection.
        ConfigError: numbers that are not whole, or that make no batches.
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
        self.collection = _open(out)
        self.scaled = scaled
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.shuffle = shuffle
        self.seed = _whole("seed", seed)
        self.window = _whole("window", window, 1)
        self.drop_last = drop_last
        self.rank, self.world_size = _rank(rank, world_size)
        self._epoch = SharedNumber(0)
        self._skip = SharedNumber(0)
        self._opened = OpenShards(self.collection)
        self._shards = [shard for shard, images in self._opened.listed.items() if images]

    @property
    def epoch(self) -> int:
        return self._epoch.value or 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: another order, and new samples of moments. Workers that wait for the next one follow."""
        self._epoch.value = _whole("epoch", epoch)
        self._skip.value = 0

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, int]:
        """Where to go on after a batch; without one, where iteration begins now. It has what decides the order too."""
        return dict(batch["state"]) if batch is not None else self._state(self._skip.value or 0)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state says. Iteration begins there until `set_epoch` is called.

        Raises:
            ConfigError: the state is of a stream that has another order, so that images would be seen twice or never;
                or it is not a state.
        """
        mine = self._state(0)
        if not isinstance(state, Mapping):
            raise ConfigError(f"the state is {brief(state)}, not a dictionary. Give what `state_dict` returned.")
        others = [
            f"{name} {state.get(name)} instead of {mine[name]}"
            for name in mine
            if name not in ("epoch", "batches") and state.get(name) != mine[name]
        ]
        if others:
            raise ConfigError(
                f"this state belongs to another stream: {', '.join(others)}. Make the stream as it was then."
            )
        epoch = _whole("epoch", state.get("epoch"))
        batches = _whole("batches", state.get("batches"), 0)
        self._epoch.value = epoch
        self._skip.value = batches

    def _state(self, batches: int) -> dict[str, int]:
        order = {name: getattr(self, name) for name in ("seed", "batch_size", "world_size", "window")}
        flags = {"shuffle": int(self.shuffle), "drop_last": int(self.drop_last)}
        images = (self.collection.totals or {}).get("images", 0)
        return {"epoch": self.epoch, "batches": batches, **order, **flags, "images": images}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        skip = self._skip.value or 0
        for number, batch in enumerate(self._of_rank()):
            # Workers are asked in turn, the first for the first batch that is not skipped.
            if number >= skip and (number - skip) % workers == worker:
                yield self._read(batch, number + 1)

    def _of_rank(self) -> Iterator[_Batch]:
        turn: list[_Batch] = []
        for batch in self._batches():
            turn.append(batch)
            if len(turn) == self.world_size:
                yield turn[self.rank]
                turn = []
        if self.rank < len(turn) and not self.drop_last:
            yield turn[self.rank]

    def _batches(self) -> Iterator[_Batch]:
        """Every batch of the epoch, of all ranks: pairs of a shard and an image's record."""
        chance = random.Random(f"{self.seed} {self.epoch}")
        shards = list(self._shards)
        if self.shuffle:
            chance.shuffle(shards)
        waiting: dict[tuple[int, ...], _Batch] = {}
        for start in range(0, len(shards), self.window):
            window = shards[start : start + self.window]
            images = [(shard, image) for shard in window for image in self._opened.images(shard)]
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

    def _read(self, batch: _Batch, number: int) -> dict[str, Any]:
        """A batch, each of its shards asked once."""
        places: dict[ShardNumber, list[int]] = {}
        for i, (shard, _) in enumerate(batch):
            places.setdefault(shard, []).append(i)
        tensors: dict[int, dict[str, Tensor]] = {}
        for shard, wanted in places.items():
            tensors |= zip(wanted, self._opened.read(shard, [batch[i][1] for i in wanted]), strict=True)
        epoch = self.epoch
        items = [_item(self.collection, image, tensors[i], epoch, self.scaled) for i, (_, image) in enumerate(batch)]
        stacked = {
            name: torch.stack([item[name] for item in items]) if isinstance(value, Tensor) else [i[name] for i in items]
            for name, value in items[0].items()
        }
        return {**stacked, "state": self._state(number)}


def _open(out: str | os.PathLike[str]) -> Collection:
    collection = Collection.open(out)
    if collection.totals is None:
        raise DatasetError(f"{out} is not finished. Run encode-dataset with --resume first.")
    return collection


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of at least so much, of Python's or of NumPy's."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        wanted = "a whole number" if least is None else f"a whole number of at least {least}"
        raise ConfigError(f"{name} is {brief(value)}; give {wanted}.")
    return number


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
        item[f"latents{ending}"] = to_diffusion(z[None], collection.config, *collection.batch_norm)[0] if scaled else z
    if "alpha_mask" in tensors:  # kohya's files have it in [0, 1], the others as bytes
        mask = tensors["alpha_mask"]
        item["alpha_mask"] = mask if mask.is_floating_point() else mask.float() / 255
    return {**item, **{name: image[name] for name in ("key", "sha256", "size", "resized", "crop", "bucket")}}
