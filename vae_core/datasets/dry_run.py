"""What a run would do, from a sample of its images: counts, sizes, buckets, time and bytes."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ..autoencoder_kl import AutoencoderKL
from ..errors import DatasetError, in_one_line
from ..printable import printable
from .encode import BatchEncoder, Shard
from .prepare import Prepared, prepare
from .progress import in_bytes, in_time
from .run import Engine, default_workers
from .settings import STORED, Failure, Settings
from .sources import Split, find_splits, read_split
from .transfer import Raw, size_of

SAMPLE = 32


@dataclass(frozen=True)
class RunEstimate:
    """What a run would do.

    Attributes:
        images: in the source; a guess from the sizes of files where `exact` is False.
        shards: that would be written.
        sample: images that were looked at.
        failures: (key, reason) among them.
        sizes: least and greatest (width, height) of the sample, by area.
        buckets: bucket -> share of the sample.
        seconds: of the whole run, as long as the slower of reading and encoding takes.
        read_seconds, encode_seconds: of one image, by one reader and by the encoder.
        bytes: that would be written.
    """

    images: int
    exact: bool
    shards: int
    sample: int
    failures: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    buckets: dict[tuple[int, int], float]
    seconds: float
    read_seconds: float
    encode_seconds: float
    bytes: int

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        lines = [f"{about}{self.images} images in {about}{self.shards} shards; {self.sample} of them were looked at"]
        if self.sizes is not None:
            (w0, h0), (w1, h1) = self.sizes
            lines.append(f"sizes       {w0}x{h0} to {w1}x{h1}")
        for (width, height), share in sorted(self.buckets.items(), key=lambda each: (-each[1], each[0])):
            lines.append(f"bucket      {width}x{height}: {share:.0%}")
        read = self.read_seconds * 1e3
        encode = self.encode_seconds * 1e3
        lines.append(f"one image   {read:.1f} ms to read and resize, {encode:.1f} ms to encode")
        lines.append(f"time        about {in_time(self.seconds)}")
        lines.append(f"bytes       about {in_bytes(self.bytes)}")
        lines += [f"failed      {printable(key)}: {printable(reason)}" for key, reason in self.failures]
        return "\n".join(lines)


def estimate(
    source: str | os.PathLike[str],
    vae: AutoencoderKL,
    settings: Settings,
    engine: Engine | None = None,
    sample: int = SAMPLE,
) -> RunEstimate:
    """Look at a sample of a source, evenly spread over it, and encode it; writes nothing.

    Raises:
        DatasetError: a source that cannot be read.
    """
    engine = engine or Engine()
    splits = find_splits(source, settings.shard_images, settings.column)
    began = time.perf_counter()
    raws = _sample(splits, settings, sample)
    results = []
    for position, raw in enumerate(raws):
        results.append(prepare(raw, position, settings, vae.config.in_channels))
    read = (time.perf_counter() - began) / max(1, len(raws))

    good = [result for result in results if isinstance(result, Prepared)]
    encoder = BatchEncoder(vae, settings)
    if good:
        encoder(good[:1])  # the first run prepares the weights
        encoder.seconds = 0.0
    Shard(0, 0, settings).encode_all(results, encoder)
    encode = encoder.seconds / max(1, len(good))

    images, exact = _count(splits, raws)
    counts = [split.count for split in splits] if exact else [images]
    shards = sum(math.ceil((count or 0) / settings.shard_images) for count in counts)
    workers = default_workers(vae) if engine.workers is None or engine.name == "ray" else engine.workers
    devices = max(1, len(engine.devices))
    seconds = images * max(read / max(1, workers), encode / devices, 0 if workers else read + encode)
    areas = sorted((result.size for result in good), key=lambda size: size[0] * size[1])
    share = len(good) / max(1, len(results))
    counted = Counter(result.fit.bucket for result in good)
    return RunEstimate(
        images,
        exact,
        shards,
        len(results),
        tuple((each.key, each.reason) for each in results if isinstance(each, Failure)),
        (areas[0], areas[-1]) if areas else None,
        {bucket: count / len(good) for bucket, count in counted.items()},
        seconds,
        read,
        encode,
        round(images * share * _bytes_of(counted, vae, settings)),
    )


def _sample(splits: Sequence[Split], settings: Settings, count: int) -> list[Raw]:
    """Raw images from splits all over the source; of tars, those at their beginning."""
    total = sum(split.count or 0 for split in splits)
    if not total:
        chosen = [splits[i * len(splits) // min(4, len(splits))] for i in range(min(4, len(splits)))]
        each = math.ceil(count / len(chosen))
        return [raw for split in chosen for _, raw in zip(range(each), read_split(split), strict=False)][:count]
    wanted = sorted({i * total // min(count, total) for i in range(min(count, total))})
    raws = []
    before = 0
    for split in splits:
        size = cast(int, split.count)
        inside = [i - before for i in wanted if before <= i < before + size]
        before += size
        raws += read_split(split, settings.column, inside)
    return raws


def _count(splits: Sequence[Split], raws: Sequence[Raw]) -> tuple[int, bool]:
    counts = [split.count for split in splits]
    if None not in counts:
        return sum(cast(list[int], counts)), True
    size = sum(_size(split.urls[0]) for split in splits)
    each = sum(len(raw.data or b"") for raw in raws) / max(1, len(raws))
    return max(len(raws), round(size / (each + 1024))), False  # a tar has a header of 512 bytes, and rounds up


def _size(url: str) -> int:
    try:
        return size_of(url)
    except Exception as error:  # each file system has its own
        raise DatasetError(f"the size of {url} cannot be determined: {in_one_line(error)}.") from None


def _bytes_of(buckets: Counter[tuple[int, int]], vae: AutoencoderKL, settings: Settings) -> float:
    """Bytes of one image's latents, on average over the sample."""
    factor = vae.config.downscale_factor
    channels = vae.config.latent_channels
    per_value = STORED[settings.stored].itemsize * (2 if settings.keep == "moments" else 1) * (1 + settings.flip)
    total = 0
    for (width, height), count in buckets.items():
        latent = width // factor * (height // factor) * channels * per_value
        mask = width * height * (4 if settings.layout == "kohya" else 1) if settings.alpha_mask else 0
        total += count * (latent + mask)
    return total / max(1, sum(buckets.values()))
