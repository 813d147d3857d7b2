"""How a collection is encoded: everything that decides the bytes that are written, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from ..config import AutoencoderKLConfig
from ..errors import ConfigError, brief, check_choice, in_one_line
from ..units import MIB
from .buckets import Buckets

Layout = Literal["shards", "webdataset", "kohya"]
Keep = Literal["mean", "sample", "moments"]
KohyaFamily = Literal["sd", "sdxl", "flux", "sd3", "lumina"]

# Of kohya's families, those whose files have scale * (z - shift), as FLUX.1's autoencoder gives it.
KOHYA_SCALED = ("flux", "lumina")
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Pixels of a shard's images, as bytes: what is in memory of one shard at a time.
_SHARD_PIXEL_BYTES = 256 * MIB
_SHARD_IMAGES = (16, 4096)


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a collection. Two runs with equal settings write equal files.

    Attributes:
        buckets: the sizes that images are resized and cropped to.
        layout: what is written: safetensors shards, WebDataset tars, or kohya's cache files beside the images.
        keep: the posterior's mean, a sample of it (seeded by the image's content), or its moments.
        stored: number type of the latents in the files.
        dtype: number type to work in; "weights" for that of the VAE's weights.
        batch: images of one size that are encoded together; at most so many.
        memory_budget: bytes of working memory of the encoder.
        threads: of the encoder on a CPU. Sums are split among them, so that the last bits depend on their number.
        shard_images: images of a shard.
        flip: encode each image mirrored as well.
        alpha_mask: keep the opacity of each image.
        kohya: the family whose cache files are written, for the layout kohya.
        column: of a table, the one that has the images; empty for the first that looks like it.

    Raises:
        ConfigError: settings that contradict each other.
    """

    buckets: Buckets
    layout: Layout = "shards"
    keep: Keep = "mean"
    stored: str = "float32"
    dtype: str = "weights"
    batch: int = 1
    memory_budget: int = 2**32
    threads: int = 1
    shard_images: int = 256
    flip: bool = False
    alpha_mask: bool = False
    kohya: KohyaFamily | None = None
    column: str = ""

    def __post_init__(self) -> None:
        for name, kind in (("layout", Layout), ("keep", Keep)):
            check_choice(name, getattr(self, name), get_args(kind))
        check_choice("the stored type", self.stored, list(STORED))
        for name in ("batch", "shard_images", "memory_budget", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {brief(value)}; give a whole number of at least 1.")
        if self.layout == "webdataset" and self.stored == "bfloat16":
            raise ConfigError(
                "WebDataset files contain numpy arrays, which have no bfloat16. Store float32 or float16."
            )
        if self.layout == "kohya":
            self._check_kohya()
        elif self.kohya is not None:
            raise ConfigError(
                f"a kohya family ({brief(self.kohya)}) was given for the layout {self.layout}. Leave it out."
            )

    def _check_kohya(self) -> None:
        if self.kohya not in get_args(KohyaFamily):
            raise ConfigError(
                f"kohya's cache files are named after the model's family, and this VAE's is not known "
                f"({brief(self.kohya)}). Give one of {', '.join(get_args(KohyaFamily))}."
            )
        if self.keep == "moments":
            raise ConfigError("kohya's cache files contain latents, not moments. Keep sample (as kohya does) or mean.")
        if self.stored != "float32":
            raise ConfigError(f"kohya's cache files are float32, and {self.stored} was asked for. Leave it out.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """What `to_dict` gave. Raises ConfigError for unknown fields."""
        known = {each.name for each in fields(cls)}
        if set(values) != known:
            found = in_one_line(", ".join(sorted(values)))
            raise ConfigError(
                f"settings have the fields {found}; this version knows {', '.join(sorted(known))}. Finish the "
                f"collection with the version that began it."
            )
        return cls(**{**values, "buckets": Buckets(**values["buckets"])})

    def differences(self, other: Settings) -> list[str]:
        """What differs, in words: "size 512 instead of 256"."""
        mine = self.to_dict()
        others = other.to_dict()
        return [f"{name} {mine[name]!r} instead of {others[name]!r}" for name in mine if mine[name] != others[name]]


@dataclass(frozen=True)
class Scale:
    """How the latents in the files relate to raw z: (z - shift) * factor.

    Attributes:
        convention: "raw" for z itself, as ComfyUI's LATENT and the VAE have it; "diffusion" for scaled and shifted.
        scaling_factor, shift_factor: of the VAE's family; applied only with "diffusion".
    """

    convention: Literal["raw", "diffusion"]
    scaling_factor: float
    shift_factor: float = 0.0

    @classmethod
    def of(cls, settings: Settings, config: AutoencoderKLConfig) -> Scale:
        """Raw in every layout, except some of kohya's files."""
        scaled = settings.layout == "kohya" and settings.kohya in KOHYA_SCALED
        return cls("diffusion" if scaled else "raw", config.scaling_factor, config.shift_factor or 0.0)

    def apply(self, z: torch.Tensor) -> torch.Tensor:
        """Raw z as the files have it."""
        return z if self.convention == "raw" else self.scaling_factor * (z - self.shift_factor)

    def undo(self, latents: torch.Tensor) -> torch.Tensor:
        """What the files have as raw z."""
        return latents if self.convention == "raw" else latents / self.scaling_factor + self.shift_factor

    @property
    def formula(self) -> str:
        """What `apply` computes."""
        return "z" if self.convention == "raw" else f"{self.scaling_factor:g} * (z - {self.shift_factor:g})"

    def __str__(self) -> str:
        return "raw z, not scaled" if self.convention == "raw" else f"scaled: {self.formula}"


def automatic_shard(buckets: Buckets) -> int:
    """Images of a shard, so that their pixels take about 256 MiB: a power of two."""
    least, most = _SHARD_IMAGES
    images = _SHARD_PIXEL_BYTES // (3 * buckets.width * buckets.height)
    return max(least, min(most, 2 ** max(0, images.bit_length() - 1)))


def automatic_batch(buckets: Buckets, memory_budget: int, device: torch.device) -> int:
    """Images of a batch: on a CPU as many as its kernels profit from, elsewhere what the memory takes."""
    pixels = 512 * 512 if device.type == "cpu" else max(512 * 512, min(16 * 2**20, memory_budget // _BYTES_A_PIXEL))
    return max(1, min(64, pixels // (buckets.width * buckets.height)))


# Four maps of 128 channels in float32 for each pixel, and as much again in hand.
_BYTES_A_PIXEL = 4096


def automatic_budget(available: int | None) -> int:
    """Working memory for the encoder: a power of two of at most half of what is free, and 64 MiB at least."""
    half = (available or 2**33) // 2
    return max(2**26, 2 ** (half.bit_length() - 1))


@dataclass(frozen=True)
class Failure:
    """An image that was not encoded, and why.

    Attributes:
        position: of the image in its split.
    """

    key: str
    position: int
    reason: str = field(default="")
