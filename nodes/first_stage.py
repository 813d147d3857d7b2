"""Our model under the names and calls of the host's own models, as packs use them past the VAE object."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..vae_core import AutoencoderKL, Options, TileSpec, prepare_decode, prepare_encode
from ..vae_core.patched import is_replaced
from ..vae_core.posterior import DiagonalGaussianDistribution
from ..vae_core.streaming.memory import give_back_freed
from . import latents


class Regularization(nn.Module):
    """Moments to z, as the host's own: the mean, or a sample if `sample` is set."""

    def __init__(self, sample: bool = False) -> None:
        super().__init__()
        self.sample = sample

    def get_trainable_parameters(self) -> Iterator[nn.Parameter]:
        """None of its own."""
        yield from ()

    def forward(self, moments: Tensor) -> tuple[Tensor, None]:
        posterior = DiagonalGaussianDistribution(moments)
        return (posterior.sample() if self.sample else posterior.mode()), None


_OPTIONAL_PARTS = ("quant_conv", "post_quant_conv", "bn")
_PARTS = ("encoder", "decoder", *_OPTIONAL_PARTS)


def strips_of(tile_x: int | None, tile_y: int | None, latent_width: int, width: int) -> Options:
    """Strips of about as many pixels as a tile has; the options of a whole run where no tile is given.

    Args:
        tile_x, tile_y: sides of the tile, in the unit of `width`.
        latent_width: of what is run, in raw latent pixels; `width` is the same in the caller's unit.
    """
    if tile_x is None and tile_y is None:
        return Options()
    columns = tile_x or tile_y or 1
    rows = tile_y or tile_x or 1
    unit = max(1, width) / max(1, latent_width)  # of the caller's, in a latent pixel
    return Options(TileSpec(size=max(1, int(columns * rows / (max(1, width) * unit)))))


class FirstStage(nn.Module):
    """An AutoencoderKL as the host's `first_stage_model`: `encode` and `decode` take and give tensors.

    Its children are the model's own, so that what moves the one moves the other, and one that is exchanged here, for a
    compiled decoder say, in whatever way, is exchanged in the model, too. `device` is the host's to set. When it goes,
    what its runs have left for the next ones goes back to the system.
    """

    encoder: nn.Module
    decoder: Any
    regularization: Regularization

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        own: dict[str, Any] = self.__dict__
        own["_autoencoder"] = autoencoder  # no child, whose weights would count twice
        own["regularization"] = Regularization()  # nor this, which the model has no place for
        own["_modules"] = autoencoder._modules
        self.device: torch.device | None = None
        weakref.finalize(self, give_back_freed).atexit = False
        self.eval()

    @property
    def _modules(self) -> dict[str, nn.Module | None]:  # type: ignore[override]
        """The children: the very dictionary of the model's, so that however one is exchanged, the model has it."""
        return self.__dict__["_modules"]

    @_modules.setter
    def _modules(self, children: dict[str, nn.Module | None]) -> None:
        for owner in (self, self.__dict__.get("_autoencoder", self)):
            owner.__dict__["_modules"] = children

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        model = self.__dict__.get("_autoencoder")
        if model is not None and name in _PARTS:
            setattr(model, name, value)

    @property
    def autoencoder(self) -> AutoencoderKL:
        """The model itself."""
        return self.__dict__["_autoencoder"]

    def replaced_method(self) -> str | None:
        """`encode` or `decode`, if another one was set on this object, as a compiled one may be."""
        return next((name for name in ("encode", "decode") if is_replaced(self, name)), None)

    def encode(
        self,
        x: Tensor,
        return_reg_log: bool = False,
        unregularized: bool = False,
        device: torch.device | None = None,
        **_: Any,
    ) -> Any:
        """Images [B, C, H, W] in [-1, 1] to what the LATENT wire carries.

        Args:
            return_reg_log: with it, what the regularization says besides, which is None.
            unregularized: moments instead of a latent, with an empty dictionary.
            device: where it is computed, by hosts that leave moving the images to the model.
        """
        x = x if device is None else x.to(device)
        moments = self.autoencoder.encode(x, return_dict=False)[0].parameters
        if unregularized:
            return moments, {}
        return (self._to_wire(moments), None) if return_reg_log else self._to_wire(moments)

    def decode(self, z: Tensor, output_buffer: Tensor | None = None, **_: Any) -> Tensor:
        """What the LATENT wire carries to images [B, C, H, W], about [-1, 1].

        Args:
            output_buffer: memory for the images, on any device, by hosts that make it beforehand.
        """
        z = latents.from_wire(self.autoencoder, z)
        if output_buffer is None:
            return self.autoencoder.decode(z, return_dict=False)[0]
        return prepare_decode(self.autoencoder, z.shape, device=z.device).run(z, out=output_buffer)

    # What newer hosts ask of a model that cuts its work to pieces itself.

    comfy_has_chunked_io = True  # `output_buffer` and `device` above
    comfy_decode_estimate_is_reliable = True  # it is the plan's

    def decode_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of images [B, C, H, W], for one of latents [B, C, h, w] on the wire."""
        config = self.autoencoder.config
        batch, _, height, width = latents.raw_shape(config, shape)
        return batch, config.out_channels, height * config.downscale_factor, width * config.downscale_factor

    def decode_tiled(self, z: Tensor, tile_x: int | None = None, tile_y: int | None = None, **_: Any) -> Tensor:
        """As `decode`, in strips about as large as a tile of so many latent pixels."""
        raw = latents.from_wire(self.autoencoder, z)
        options = strips_of(tile_x, tile_y, raw.shape[-1], z.shape[-1])
        return prepare_decode(self.autoencoder, raw.shape, options, device=raw.device).run(raw)

    def encode_tiled(self, x: Tensor, tile_x: int | None = None, tile_y: int | None = None, **_: Any) -> Tensor:
        """As `encode`, in strips about as large as a tile of so many pixels."""
        latent_width = x.shape[-1] // self.autoencoder.config.downscale_factor
        options = strips_of(tile_x, tile_y, latent_width, x.shape[-1])
        return self._to_wire(prepare_encode(self.autoencoder, x.shape, options, device=x.device).run(x))

    def _to_wire(self, moments: Tensor) -> Tensor:
        return latents.to_wire(self.autoencoder, self.regularization(moments)[0])

    def forward(self, x: Tensor, **decoding: Any) -> tuple[Tensor, Tensor, None]:
        """The latent of images, what it decodes to, and what the regularization says besides."""
        z = self.encode(x)
        return z, self.decode(z, **decoding), None

    # What the host's own says of itself.

    max_batch_size: int | None = None
    input_key = "jpg"
    use_ema = False

    @property
    def embed_dim(self) -> int:
        return self.autoencoder.config.latent_channels

    def get_last_layer(self) -> Tensor:
        return self.decoder.get_last_layer()

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """With the moving average of the weights, of which there is none."""
        yield
