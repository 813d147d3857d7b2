"""Images to latents, batch by batch: the one place where the model runs, for every engine."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL
from ..errors import NonFiniteError
from ..image import bytes_to_model_range
from ..posterior import DiagonalGaussianDistribution
from ..running import prepare_encode
from ..streaming.job import Job
from ..streaming.options import Options
from ..threads import torch_threads
from .prepare import Prepared, Result
from .settings import STORED, Failure, Scale, Settings

logger = logging.getLogger("seamless_vae")


@dataclass(frozen=True)
class EncodedImage:
    """An image's latents as they are written.

    Attributes:
        image: what it was made of, without its pixels.
        latents: [C, h, w], or moments [2C, h, w], of the stored type.
        flipped: the same of the mirrored image; None if it is not kept.
    """

    image: Prepared
    latents: Tensor
    flipped: Tensor | None


class BatchEncoder:
    """A VAE with the settings of a collection.

    Attributes:
        seconds: that it was at work.
    """

    def __init__(self, vae: AutoencoderKL, settings: Settings) -> None:
        self.vae = vae
        self.settings = settings
        self.scale = Scale.of(settings, vae.config)
        self.seconds = 0.0
        self._jobs: dict[tuple[int, ...], Job] = {}  # prepared once for each shape of a batch

    def __call__(self, batch: list[Prepared]) -> list[EncodedImage | Failure]:
        """Encode images of one size, at most `settings.batch` of them."""
        began = time.monotonic()
        with torch_threads(self.settings.threads):
            pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
            plain = self._latents(pixels, batch, False)
            mirrored = self._latents(pixels.flip(2), batch, True) if self.settings.flip else [None] * len(batch)
        self.seconds += time.monotonic() - began
        results: list[EncodedImage | Failure] = []
        for image, latents, flipped in zip(batch, plain, mirrored, strict=True):
            kept = [each for each in (latents, flipped) if each is not None]
            if not all(torch.isfinite(each).all() for each in kept):
                reason = "its latents are not finite in this precision; encode in float32 or bfloat16"
                results.append(Failure(image.key, image.position, reason))
                continue
            results.append(EncodedImage(image, latents, flipped))
        return results

    def _latents(self, pixels: Tensor, batch: list[Prepared], flipped: bool) -> list[Tensor]:
        """What is kept of each image: [B, H, W, channels] of bytes -> B of [C, h, w]."""
        images = bytes_to_model_range(pixels.to(self.vae.device).movedim(-1, 1), self.vae.dtype).contiguous()
        posterior = self._posterior(images)
        if self.settings.keep == "moments":
            kept = torch.cat([posterior.mean, posterior.logvar], dim=1)
        elif self.settings.keep == "sample":
            kept = self.scale.apply(posterior.sample([generator(image.sha256, flipped) for image in batch]))
        else:
            kept = self.scale.apply(posterior.mode())
        return list(kept.to(STORED[self.settings.stored]))

    def _posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        shape = tuple(images.shape)
        if shape not in self._jobs:
            dtype = None if self.settings.dtype == "weights" else getattr(torch, self.settings.dtype)
            options = Options(memory_budget=self.settings.memory_budget, dtype=dtype)
            self._jobs[shape] = prepare_encode(self.vae, shape, options)
        try:
            moments = self._jobs[shape].run(images)
        except NonFiniteError as error:
            logger.warning("%s", error)
            moments = images.new_full((shape[0], 2 * self.vae.config.latent_channels, 1, 1), torch.nan)
        return DiagonalGaussianDistribution(moments.float().cpu())


def generator(sha256: str, flipped: bool = False, epoch: int = 0) -> torch.Generator:
    """The source of an image's randomness: its content alone decides it, on every machine and in any order."""
    seed = hashlib.sha256(f"{sha256} {int(flipped)} {epoch}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(seed[:8], "little") >> 1)


@dataclass
class Shard:
    """The images of one shard on their way: grouped into batches as they come, and what became of them.

    Which images share a batch follows from the order of the shard's images alone, so that the latents do not depend
    on who read the images, and when.
    """

    split: int
    chunk: int
    settings: Settings
    done: dict[int, EncodedImage | Failure] = field(default_factory=dict)
    waiting: dict[tuple[int, int], list[Prepared]] = field(default_factory=dict)
    taken: int = 0
    last: bool = False

    @property
    def name(self) -> str:
        return shard_name(self.split, self.chunk)

    @property
    def is_full(self) -> bool:
        return self.taken == self.settings.shard_images

    def take(self, result: Result) -> list[Prepared] | None:
        """The next image of the shard; returns the batch that it fills, if it fills one."""
        self.taken += 1
        if isinstance(result, Failure):
            self.done[result.position] = result
            return None
        batch = self.waiting.setdefault(result.fit.bucket, [])
        batch.append(result)
        return self.waiting.pop(result.fit.bucket) if len(batch) == self.settings.batch else None

    def rest(self) -> Iterator[list[Prepared]]:
        """The batches that no image will fill any more, when the shard is complete."""
        for bucket in sorted(self.waiting):
            yield self.waiting.pop(bucket)

    def encode(self, batch: list[Prepared], encoder: BatchEncoder) -> None:
        """Encode a batch of the shard."""
        for image, result in zip(batch, encoder(batch), strict=True):
            if isinstance(result, EncodedImage):  # the pixels are needed no more
                result = EncodedImage(_without_pixels(result.image), result.latents, result.flipped)
            self.done[image.position] = result

    def encode_all(self, results: Iterable[Result], encoder: BatchEncoder) -> Shard:
        """Take and encode every image of the shard."""
        for result in results:
            if (batch := self.take(result)) is not None:
                self.encode(batch, encoder)
        for batch in self.rest():
            self.encode(batch, encoder)
        return self

    @property
    def images(self) -> list[EncodedImage]:
        """What was encoded, in order."""
        return [result for _, result in sorted(self.done.items()) if isinstance(result, EncodedImage)]

    @property
    def failures(self) -> list[Failure]:
        """What was not, in order."""
        return [result for _, result in sorted(self.done.items()) if isinstance(result, Failure)]


def shard_name(split: int, chunk: int) -> str:
    """000012-0003: the fourth shard of split 12."""
    return f"{split:06d}-{chunk:04d}"


def shard_numbers(name: str) -> tuple[int, int]:
    """(number of the split, number of the shard in it), of the name of a shard. Raises ValueError for another name."""
    split, _, chunk = name.partition("-")
    return int(split), int(chunk)


def fingerprint(vae: AutoencoderKL) -> str:
    """SHA-256 of a VAE's encoder side and decoder side: names, types, shapes and bytes of its weights, its config."""
    digest = hashlib.sha256(json.dumps(vae.config.without_extras().to_dict(), sort_keys=True).encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_pixels(image: Prepared) -> Prepared:
    empty = np.empty((0, 0, 0), np.uint8)
    return Prepared(image.key, image.position, image.sha256, image.size, image.fit, empty, image.alpha)
