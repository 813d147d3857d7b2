"""The shards that a reader uses, each opened once for many images: its record, and its file's table of contents."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import DatasetError
from .collection import Collection

# Records of so many images stay in memory, about 100 MB, and so many files stay open.
_IMAGES = 2**16
_FILES = 64

ShardNumber = tuple[int, int]  # of its split, and among the shards of that


class OpenShards:
    """The records and the latents of a collection's shards. The last ones used are kept open; a copy in another process
    opens its own.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        records = max(8, _IMAGES // collection.settings.shard_images)
        self._record = functools.lru_cache(records)(self._read_record)
        self._file = functools.lru_cache(_FILES)(collection.open_shard)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenShards, (self.collection,)

    def images(self, shard: ShardNumber) -> list[dict[str, Any]]:
        """What is known of each image of a shard.

        Raises:
            DatasetError: its record is gone, or damaged.
        """
        return self.record(shard)["images"]

    def record(self, shard: ShardNumber) -> dict[str, Any]:
        """The record of a shard; raises as `images`."""
        return self._record(shard)

    def read(self, shard: ShardNumber, images: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """The tensors of some images of a shard, as its file has them. They are the caller's own.

        Raises:
            DatasetError: the file is gone, damaged, or lacks an image.
        """
        if self.collection.settings.layout == "kohya":
            return self.collection.read_images({}, images)
        found = self._file(*shard).read([f"{image['position']:06d}" for image in images])
        return list(found.values())

    def _read_record(self, shard: ShardNumber) -> dict[str, Any]:
        record = self.collection.read_record(*shard)
        if record is None:
            raise DatasetError(f"{self.collection.record_path(*shard)} is gone. Run encode-dataset with --resume.")
        images = len(record["images"])
        listed = self.listed.get(shard)
        if images != listed:
            raise DatasetError(
                f"{self.collection.record_path(*shard)} has {images} images, but the list of shards says {listed}. "
                f"Check the collection with `seamless-vae verify-dataset`."
            )
        return record

    @functools.cached_property
    def listed(self) -> dict[ShardNumber, int]:
        """How many images each shard has, by the list of shards and in its order; raises DatasetError as that."""
        return dict(self.collection.shards())
