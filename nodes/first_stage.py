"""Our model under the names and calls of the host's own models, as packs use them past the VAE object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..vae_core import AutoencoderKL
from ..vae_core.posterior import DiagonalGaussianDistribution
from . import latents


class Regularization(nn.Module):
    """Moments to z, as the host's own: the mean, or a sample if `sample` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.sample = False

    def forward(self, moments: Tensor) -> tuple[Tensor, None]:
        posterior = DiagonalGaussianDistribution(moments)
        return (posterior.sample() if self.sample else posterior.mode()), None


_PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "bn")


class FirstStage(nn.Module):
    """An AutoencoderKL as the host's `first_stage_model`: `encode` and `decode` take and give tensors.

    Its children are the model's own, so that what moves the one moves the other, and one that is exchanged here, for a
    compiled decoder say, is exchanged in the model, too. `device` is the host's to set.
    """

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.decoder = autoencoder.decoder
        self.quant_conv = autoencoder.quant_conv
        self.post_quant_conv = autoencoder.post_quant_conv
        if autoencoder.config.has_batch_norm:
            self.bn = autoencoder.bn
        self.regularization = Regularization()
        self.device: torch.device | None = None
        self.__dict__["_autoencoder"] = autoencoder  # no child, whose weights would count twice
        self.eval()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        model = self.__dict__.get("_autoencoder")
        if model is not None and name in _PARTS:
            setattr(model, name, value)

    @property
    def autoencoder(self) -> AutoencoderKL:
        """The model itself."""
        return self.__dict__["_autoencoder"]

    def encode(self, x: Tensor, **_: Any) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] to what the LATENT wire carries."""
        moments = self.autoencoder.encode(x, return_dict=False)[0].parameters
        return latents.to_wire(self.autoencoder, self.regularization(moments)[0])

    def decode(self, z: Tensor, **_: Any) -> Tensor:
        """What the LATENT wire carries to images [B, C, H, W], about [-1, 1]."""
        return self.autoencoder.decode(latents.from_wire(self.autoencoder, z), return_dict=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
