"""A VAE on its way to another process: its config and its weights, without the paths that only one machine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autoencoder_kl import AutoencoderKL


@dataclass(frozen=True)
class PackedVAE:
    """What a VAE is made of: the fields of its config, and its weights on the CPU."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, vae: AutoencoderKL) -> PackedVAE:
        return cls(
            dict(vae.config.without_extras()),
            {name: weight.detach().cpu() for name, weight in vae.state_dict().items()},
        )

    def unpack(self, device: torch.device | str) -> AutoencoderKL:
        """The VAE on a device, ready to run."""
        with torch.device("meta"):
            vae = AutoencoderKL(**self.config)
        vae.load_state_dict(self.weights, assign=True)
        return vae.to(device).eval().requires_grad_(False)
