"""Small models and VAEs of the pack, and what goes into them."""

from __future__ import annotations

from typing import Any

import torch
from host.stand_in import Pack

# Two ways through float32 arithmetic, of values near 1.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}
FIELDS: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}
FACTOR = 2


class Makers:
    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def model(self, seed: int = 0, **fields: Any) -> Any:
        torch.manual_seed(seed)
        return self.pack.module("vae_core").AutoencoderKL(**{**FIELDS, **fields}).eval().requires_grad_(False)

    def vae(self, seed: int = 0, **fields: Any) -> Any:
        """Our VAE on the wire."""
        return self.pack.module("nodes.wire").wrap(self.model(seed, **fields))

    def latent(self, *shape: int, **others: Any) -> dict[str, Any]:
        shape = shape or (1, 4, 10, 12)
        generator = torch.Generator().manual_seed(1)  # of four axes, or of five as a host gives video
        return {"samples": torch.randn(shape, generator=generator), **others}

    def image(self, *shape: int) -> torch.Tensor:
        shape = shape or (1, 20, 24, 3)
        return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def encode(pack: Pack, vae: Any, pixels: torch.Tensor, **options: Any) -> tuple[Any, Any, torch.Tensor]:
    """The results of Seamless VAE Encode."""
    given = {"pixels": pixels, "vae": vae, "sample_mode": "mean", "seed": 0, "fit": "crop"}
    return pack.run("SeamlessVAEEncode", **{**given, **options})
