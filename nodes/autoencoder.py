"""An AutoencoderKL on the wire, ours or another loader's: what is asked of it becomes a job of vae_core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import vae_core
from ..vae_core import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution, Job, Options
from ..vae_core.image import FittedImage, to_unit_range
from . import checks, host, latents, previews, report
from .adopt import Borrowed, copied
from .jobs import run_job
from .status import NodeStatus

_EXAMPLE_PIXELS = 1024


@dataclass
class Autoencoder:
    """A model and what the host knows about it.

    Attributes:
        vae: the object on the wire.
        model: has its weights within `weights`; at other times it may be on the meta device.
        borrowed: where the weights come from, if they are another loader's.
    """

    vae: Any
    model: AutoencoderKL
    borrowed: Borrowed | None = None

    @property
    def config(self) -> AutoencoderKLConfig:
        return self.model.config

    @property
    def downscale_factor(self) -> int:
        return latents.wire_factor(self.config)

    @property
    def tile_unit(self) -> int:
        return self.config.downscale_factor

    def image_channels(self) -> int:
        return self.config.in_channels

    def require_autoencoder(self, purpose: str, remedy: str = "") -> Autoencoder:
        return self

    def describe(self, latent: Mapping[str, Any] | None) -> list[report.Line]:
        if latent is not None:
            job = self.prepare_decode(latent, Options()).job
        else:
            side = _EXAMPLE_PIXELS // self.config.downscale_factor
            job = self.decode_job((1, self.config.latent_channels, side, side))
        parameters = sum(weight.numel() for weight in self.model.parameters())
        return [
            *report.model_lines(self.config, parameters),
            report.Fact("report.loaded.own" if self.borrowed is None else "report.loaded.borrowed"),
            report.Fact("report.precision", dtype=str(self.dtype).removeprefix("torch.")),
            report.Fact("report.device", device=str(self.device)),
            *report.cost_lines(job),
        ]

    # Devices and weights.

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        patcher = getattr(self.vae, "patcher", None)
        device = getattr(patcher, "load_device", None) or getattr(self.vae, "device", None)
        return torch.device(device) if device is not None else self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.model.dtype

    @property
    def output_device(self) -> torch.device:
        device = getattr(self.vae, "output_device", None)
        return torch.device(device) if device is not None else host.intermediate_device()

    @property
    def output_dtype(self) -> torch.dtype:
        ask = getattr(self.vae, "vae_output_dtype", None)
        return ask() if ask is not None else host.intermediate_dtype()

    @contextmanager
    def weights(self) -> Iterator[AutoencoderKL]:
        """The model with its weights, wherever the host has them."""
        if self.borrowed is None:
            yield self.model
        else:
            with self.borrowed.weights() as model:
                yield model

    @contextmanager
    def loaded_for(self, job: Job) -> Iterator[None]:
        """The model with its weights, ready for a job.

        A job on another device than the VAE's reads each weight from where it is.
        """
        if job.device == self.device:
            patcher = getattr(self.vae, "patcher", None)
            moved = self.borrowed is not None and host.keeps_weights_back(patcher)
            host.load_model(patcher, job.bytes.device + (self.model.get_memory_footprint() if moved else 0))
        with self.weights():
            yield

    def copy_on_cpu(self, dtype: torch.dtype | None = None) -> AutoencoderKL:
        """The model with its weights on the CPU, in another precision if one is given."""
        with self.weights() as model:
            return copied(model, torch.device("cpu"), dtype)

    # Runs.

    def encode_job(self, shape: tuple[int, ...], options: Options | None = None) -> Job:
        """A job that encodes images of a shape [B, C, H, W].

        Raises:
            ShapeError, TilingError, MemoryBudgetError: as `vae_core.prepare_encode`.
        """
        available = host.available_memory(self.device)
        return vae_core.prepare_encode(self.model, shape, options, device=self.device, available=available)

    def decode_job(self, shape: tuple[int, ...], options: Options | None = None) -> Job:
        """A job that decodes raw z of a shape [B, C, h, w]; see `encode_job`."""
        available = host.available_memory(self.device)
        return vae_core.prepare_decode(self.model, shape, options, device=self.device, available=available)

    def encode(self, image: FittedImage, options: Options, status: NodeStatus) -> DiagonalGaussianDistribution:
        """The posterior of images as the wire carries latents, in float32.

        Raises:
            ShapeError: images that do not fit the model.
            NonFiniteError: images with NaN or infinite values.
            MemoryBudgetError: out of memory, in every way of running.
        """
        pixels = image.pixels
        job = self.encode_job(tuple(pixels.shape), options)
        status.stage(lambda: previews.thumbnail(pixels[:1, :3]))
        moments = torch.empty(job.output_shape, dtype=torch.float32, device=self.output_device)
        run_job(job, pixels, moments, status, self.loaded_for)
        with self.weights() as model:
            return latents.posterior_to_wire(model, DiagonalGaussianDistribution(moments))

    def prepare_decode(self, latent: Mapping[str, Any], options: Options) -> AutoencoderDecoding:
        """Check and plan the decode of what the LATENT wire carries.

        Raises:
            ShapeError: a latent of something else, or of another family.
            TilingError, MemoryBudgetError: options that are not possible, or images larger than all memory.
        """
        samples = latents.samples_of(latent)
        shape = latents.raw_shape(self.config, samples.shape)
        sides = (side * self.config.downscale_factor for side in shape[2:])
        size = (shape[0], *sides, self.config.out_channels)
        checks.check_room(size, self.output_dtype, self.output_device, host.total_memory(self.output_device))
        return AutoencoderDecoding(self, samples, self.decode_job(shape, options))


@dataclass
class AutoencoderDecoding:
    """A decode as a job.

    Attributes:
        samples: as the wire carries them.
    """

    vae: Autoencoder
    samples: Tensor
    job: Job

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, channels, height, width = self.job.output_shape
        return batch, height, width, channels

    def run(self, status: NodeStatus, clamp: bool = True) -> Tensor:
        image = to_unit_range(self.run_to_model_range(status), in_place=True)
        return image.clamp_(0.0, 1.0) if clamp else image

    def run_to_model_range(self, status: NodeStatus) -> Tensor:
        """Images [B, H, W, C], about [-1, 1], on the VAE's output device.

        Raises:
            NonFiniteError: latents with NaN or infinite values.
            MemoryBudgetError: out of memory, in every way of running.
        """
        vae = self.vae
        samples = self.samples
        status.stage(lambda: previews.latent_preview(samples))
        image = torch.empty(self.shape, dtype=vae.output_dtype, device=vae.output_device)
        with vae.weights() as model:
            z = latents.from_wire(model, samples.float())
        run_job(self.job, z, image.movedim(-1, 1), status, vae.loaded_for)
        status.show(lambda: previews.thumbnail(image.movedim(-1, 1)[:, :3]))
        return image
