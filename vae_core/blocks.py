"""The blocks that encoder and decoder are made of. Attribute names are diffusers', for they name the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import NORM_EPS, Attention
from .layers import conv2d, group_norm

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}
# The extra column and row that keep a stride-2 convolution aligned: (left, right, top, bottom).
DOWNSAMPLE_PADDING = (0, 1, 0, 1)


class ResnetBlock(nn.Module):
    """shortcut(x) + conv2(act(norm2(conv1(act(norm1(x)))))) on [B, C, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int, act_fn: str = "silu") -> None:
        super().__init__()
        self.norm1 = group_norm(norm_num_groups, in_channels, eps=NORM_EPS)
        self.conv1 = conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(norm_num_groups, out_channels, eps=NORM_EPS)
        self.conv2 = conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATION_MODULES[act_fn]()
        self.conv_shortcut = conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Downsample(nn.Module):
    """Halve a map: [B, C, H, W] -> [B, C, H // 2, W // 2]. An odd last row or column is dropped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, DOWNSAMPLE_PADDING))


class Upsample(nn.Module):
    """Double a map: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Resnet blocks at one resolution, each followed by an attention where `add_attention` is set."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        norm_num_groups: int,
        act_fn: str,
        add_attention: bool,
    ) -> None:
        super().__init__()
        self.channels = out_channels
        widths = [in_channels, *[out_channels] * (num_layers - 1)]
        # The order of the two is diffusers', for an optimizer's state knows parameters by their order.
        self.attentions = (
            nn.ModuleList(Attention(out_channels, norm_num_groups) for _ in widths) if add_attention else None
        )
        self.resnets = nn.ModuleList(ResnetBlock(width, out_channels, norm_num_groups, act_fn) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions is not None:
                x = self.attentions[i](x)
        return x


class DownBlock(Level):
    """A level of the encoder, with a downsampling after it unless it is the last."""

    def __init__(self, *args, add_downsample: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.downsamplers = nn.ModuleList([Downsample(self.channels)]) if add_downsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpBlock(Level):
    """A level of the decoder, with an upsampling after it unless it is the last."""

    def __init__(self, *args, add_upsample: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = nn.ModuleList([Upsample(self.channels)]) if add_upsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class MidBlock(nn.Module):
    """Two resnet blocks at the lowest resolution, with an attention between them if asked for."""

    def __init__(self, channels: int, norm_num_groups: int, act_fn: str, add_attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, norm_num_groups)] if add_attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, norm_num_groups, act_fn) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


def run_block(block: nn.Module, x: Tensor, gradient_checkpointing: bool) -> Tensor:
    """block(x), remembering only x for the backward pass where `gradient_checkpointing` is set."""
    if gradient_checkpointing:
        return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
    return block(x)
