"""A decoder of another architecture: each position is normalised by itself, and levels begin with the doubling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.streaming import Half
from vae_core.streaming.program import Linear, Pass, PositionNorm, ProgramBuilder


class GivenDecoder(nn.Module):
    def __init__(self, latents: int = 4, channels: int = 32, levels: int = 2) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latents, channels, 3, padding=1)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3 * levels))
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)
        self.gammas = nn.ParameterList(torch.rand(channels) + 0.5 for _ in range(2 * levels + 2))

    def rms_norm(self, index: int) -> PositionNorm:  # over the last dimension
        return PositionNorm(lambda x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.gammas[index])

    def activated(self, x: Tensor, index: int) -> Tensor:
        return F.silu(self.rms_norm(index).apply(x.movedim(1, -1)).movedim(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        query, key, value = self.qkv(self.rms_norm(0).apply(x.flatten(2).mT)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value)).mT.unflatten(2, x.shape[2:])
        for level in range(len(self.convs) // 3):
            x = self.convs[3 * level](F.interpolate(x, scale_factor=2.0))
            h = self.convs[3 * level + 1](self.activated(x, 2 * level + 1))
            x = x + self.convs[3 * level + 2](self.activated(h, 2 * level + 2))
        return self.conv_out(self.activated(x, len(self.gammas) - 1))

    def query_key_value(self) -> list[Linear]:
        return list(zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True))

    def output(self) -> Linear:
        return self.out.weight, self.out.bias

    def program(self) -> list[Pass]:
        build, silu = ProgramBuilder(), nn.SiLU()
        build.convolve(self.conv_in)
        build.attend(self.conv_in.out_channels, self.rms_norm(0), self)
        for level in range(len(self.convs) // 3):
            up, first, second = self.convs[3 * level : 3 * level + 3]
            build.convolve(up, scale="up")  # type: ignore[arg-type]
            x = build.current
            norms = self.rms_norm(2 * level + 1), self.rms_norm(2 * level + 2)
            build.convolve(first, norm=norms[0], act=silu)  # type: ignore[arg-type]
            build.convolve(second, norm=norms[1], act=silu, residual=x, in_place=True)  # type: ignore[arg-type]
        build.convolve(self.conv_out, norm=self.rms_norm(len(self.gammas) - 1), act=silu)
        return build.finish()

    def half(self) -> Half:
        at, side = (torch.device("cpu"), torch.float32), 2 ** (len(self.convs) // 3)
        made = self.program
        return Half("latent", {"decoder": self}, lambda: at, made, made, lambda: None, lambda shape: None, 3, 1, side)
