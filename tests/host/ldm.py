"""A small autoencoder with the layers and the names of LDM's, as a host builds it: what adoption must recognise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Mid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            Block(channels, channels),
            Attention(channels),
            Block(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    def __init__(self, before: int, after: int, blocks: int, resample: str | None) -> None:
        super().__init__()
        self.block = nn.ModuleList([Block(before if i == 0 else after, after) for i in range(blocks)])
        self.attn = nn.ModuleList()
        if resample is not None:
            setattr(self, resample, Resample(after, resample == "downsample"))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Encoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, latent_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        last = len(widths) - 1
        self.down = nn.ModuleList(
            [Level(a, b, blocks, "downsample" if i < last else None) for i, (a, b) in enumerate(pairs)]
        )
        self.mid = Mid(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, latent_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Mid(widths[-1])
        levels = []
        for i, width in enumerate(widths):  # the finest first; run from the coarsest
            before = widths[min(i + 1, len(widths) - 1)]
            levels.append(Level(before, width, blocks + 1, "upsample" if i > 0 else None))
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoencoderKL(nn.Module):
    """`encode` gives z, the mode; `decode` gives images. Both as tensors."""

    def __init__(self, widths: tuple[int, ...] = (32, 64), blocks: int = 1, latent_channels: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder(widths, blocks, latent_channels)
        self.decoder = Decoder(widths, blocks, latent_channels)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class Tiny(nn.Module):
    """No AutoencoderKL: one convolution each way, as the small approximations are."""

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2))
        self.taesd_decoder = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, stride=2))

    def encode(self, x: Tensor) -> Tensor:
        return self.taesd_encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return torch.tanh(self.taesd_decoder(z))
