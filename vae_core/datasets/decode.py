"""Collections back to images: to look at them, and to measure what the latents keep."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL
from ..errors import ConfigError, DatasetError, VAEError
from ..file_names import folded_name, safe_path
from ..image import bytes_to_model_range, to_pil
from ..metrics import psnr
from ..running import decode
from .collection import Collection
from .encode import fingerprint, generator, shard_numbers
from .prepare import Prepared, prepare
from .sources import read_split
from .transfer import Raw
from .writing import local_folder, remove_leftovers, write_bytes

logger = logging.getLogger("seamless_vae")


@dataclass(frozen=True)
class Decoded:
    """An image that was decoded.

    Attributes:
        key: its name in the source.
        file: where it was written.
        psnr: in dB, against the source resized and cropped as it was encoded; None if the source is gone or changed.
    """

    key: str
    file: Path
    psnr: float | None


def decode_dataset(
    out: str | os.PathLike[str],
    images: str | os.PathLike[str],
    vae: AutoencoderKL,
    *,
    limit: int | None = None,
    memory_budget: int | None = None,
    compare: bool = True,
    overwrite: bool = False,
) -> Iterator[Decoded]:
    """Decode a collection into PNG files, named after their keys; gives each as it is written.

    Images of equal keys, as several tars have them, get the numbers of their split and their position appended.

    Args:
        images: a folder for them.
        vae: the one that it was encoded with.
        limit: so many images at most; none of them for 0.
        compare: read the source once more and measure the PSNR.
        overwrite: replace files that are in the folder already.

    Raises:
        DatasetError: another VAE, a shard that cannot be read, an image that exists or cannot be written.
        ConfigError: a limit below 0.
    """
    if limit is not None and limit < 0:
        raise ConfigError(f"the limit is {limit} images; give a number of at least 0.")
    images = local_folder(images)
    collection = Collection.open(out)
    _check_place(images, collection)
    _check_vae(collection, vae)
    remove_leftovers(images)
    sources = _Sources(collection, vae.config.in_channels) if compare else None
    count = 0
    taken = set()
    for record in collection.all_records():
        wanted = record["images"] if limit is None else record["images"][: limit - count]
        split, _ = shard_numbers(record["name"])
        found = sources.of(split, [image["position"] for image in wanted]) if sources else {}
        for image, tensors in zip(wanted, collection.read_images(record, wanted), strict=True):
            file = images / _unique(safe_path(image["key"]) or "image", f"{split:06d}-{image['position']:06d}", taken)
            if overwrite:
                _check_is_no_source(file, collection)
            z = raw_z(tensors, collection, image["sha256"])
            pixels = decode(vae, z[None].to(vae.device, vae.dtype), memory_budget=memory_budget).float().cpu()
            width, height = image["resized"]  # smaller where the image was padded
            buffer = io.BytesIO()
            to_pil(pixels[..., :height, :width])[0].save(buffer, "PNG")
            write_bytes(file, buffer.getvalue(), overwrite)
            yield Decoded(image["key"], file, _psnr(pixels, found.get(image["position"]), image["sha256"]))
        count += len(wanted)
        if limit is not None and count >= limit:
            return


def _source_folder(collection: Collection) -> Path | None:
    """The folder of images that a collection was made of; None if it was made of something else, or that is gone."""
    source = Path(os.path.realpath(collection.manifest["source"]))
    return source if source.is_dir() else None


def _check_place(images: Path, collection: Collection) -> None:
    """Raise DatasetError for the folder that a collection was made of, or its own; warn of one within the former."""
    place = Path(os.path.realpath(images))
    source = _source_folder(collection)
    if place in (source, Path(os.path.realpath(collection.out))):
        raise DatasetError(
            f"{images} is the folder of the collection, or of the images that it was made of, among which decoded ones "
            f"would be taken for images of their own. Give another folder."
        )
    if source is not None and source in place.parents:
        logger.warning(
            "%s is in %s, whose images the collection was made of: another collection of these would have the decoded "
            "ones too.",
            images,
            source,
        )


def _check_is_no_source(file: Path, collection: Collection) -> None:
    """Raise DatasetError for a file that is there, in the folder of images that the collection was made of."""
    source = _source_folder(collection)
    if source is not None and os.path.lexists(file) and source in Path(os.path.realpath(file)).parents:
        raise DatasetError(
            f"{file} is in {source}, whose images the collection was made of, and would be replaced. Give another "
            f"folder for the decoded ones."
        )


def _unique(name: str, number: str, taken: set[str]) -> str:
    """A file's name that no other of this run has, by `folded_name`."""
    name = f"{name}.png"
    while folded_name(name) in taken:
        name = f"{name.removesuffix('.png')}_{number}.png"
    taken.add(folded_name(name))
    return name


def raw_z(tensors: dict[str, Tensor], collection: Collection, sha256: str, epoch: int | None = None) -> Tensor:
    """Raw z of an image, [C, h, w] in float32, from what a collection has of it.

    Args:
        epoch: for moments, draw the sample of this epoch; None for the mean.
    """
    if "moments" not in tensors:
        return collection.scale.undo(tensors["latents"].float())
    return sample_moments(tensors["moments"], None if epoch is None else generator(sha256, epoch=epoch))


def sample_moments(moments: Tensor, source: torch.Generator | None) -> Tensor:
    """A sample of moments [2C, h, w], or their mean without a source of randomness: [C, h, w] in float32."""
    mean, logvar = moments.float().chunk(2)
    if source is None:
        return mean
    return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=source, dtype=torch.float32, device="cpu")


def _check_vae(collection: Collection, vae: AutoencoderKL) -> None:
    config = collection.config
    if config.latent_channels != vae.config.latent_channels or config.downscale_factor != vae.config.downscale_factor:
        raise DatasetError(
            f"{collection.out} has latents of {config.latent_channels} channels at 1/{config.downscale_factor}, and "
            f"this VAE decodes {vae.config.latent_channels} at 1/{vae.config.downscale_factor}. "
            f"Give the VAE it was encoded with."
        )
    begun = collection.manifest["vae"]["sha256"]
    if fingerprint(vae) != begun:
        raise DatasetError(
            f"{collection.out} was encoded with another VAE, or with this one in another number type "
            f"(SHA-256 {begun[:12]}... is expected). Give that one, with the same --dtype."
        )


class _Sources:
    """The images of a collection as they were encoded. Each split is read once, in the order of its shards."""

    def __init__(self, collection: Collection, channels: int) -> None:
        self.settings = collection.settings
        self.channels = channels
        self._splits = {split.number: split for split in collection.splits()}
        self._number = -1
        self._raws = iter(())

    def of(self, number: int, positions: Sequence[int]) -> dict[int, Prepared]:
        """Images of a split by position; what cannot be read any more is left out."""
        split = self._splits.get(number)
        if split is None or not positions:
            return {}
        if split.kind == "files":
            raws = zip(positions, read_split(split, self.settings.column, positions), strict=False)
        else:
            if number != self._number:
                self._number = number
                self._raws = enumerate(read_split(split, self.settings.column))
            raws = self._until(positions[-1])
        found = {}
        wanted = frozenset(positions)
        try:
            for position, raw in raws:
                if position in wanted:
                    image = prepare(raw, position, self.settings, self.channels)
                    if isinstance(image, Prepared):
                        found[position] = image
        except (VAEError, OSError):
            return found
        return found

    def _until(self, last: int) -> Iterator[tuple[int, Raw]]:
        for position, raw in self._raws:
            yield position, raw
            if position >= last:
                return


def _psnr(pixels: Tensor, source: Prepared | None, sha256: str) -> float | None:
    if source is None or source.sha256 != sha256:
        return None
    reference = bytes_to_model_range(torch.from_numpy(source.pixels.copy()).movedim(-1, 0)[None])
    if reference.shape != pixels.shape:
        return None
    return float(psnr(pixels.clamp(-1, 1), reference, data_range=2.0))
