"""The blocks that encoder and decoder are made of. Attribute names are diffusers', because they name the weights.

So are the parameters of `forward`, which packs and processors pass by name. Two of them are None for an AutoencoderKL:
a time embedding (`temb`) and latent embeddings (`latent_embeds`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention
from .config import NORM_EPS
from .diffusers_names import DiffusersLevel, DiffusersMiddle, DiffusersResample, DiffusersResnetBlock
from .errors import ShapeError
from .layers import conv2d, group_norm
from .ldm_names import Fixed, LDMLevel, LDMMiddle, LDMResample, LDMResnetBlock, RenamedPart

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}
CHECKPOINT: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
# The extra column and row that keep a stride-2 convolution aligned: (left, right, top, bottom).
DOWNSAMPLE_PADDING = (0, 1, 0, 1)


class ResnetBlock(LDMResnetBlock, DiffusersResnetBlock, nn.Module):
    """shortcut(x) + conv2(act(norm2(conv1(act(norm1(x)))))) on [B, C, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int, act_fn: str = "silu") -> None:
        super().__init__()
        self.norm1 = group_norm(norm_num_groups, in_channels, eps=NORM_EPS)
        self.conv1 = conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(norm_num_groups, out_channels, eps=NORM_EPS)
        self.conv2 = conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATION_MODULES[act_fn]()
        self.conv_shortcut = conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        check_no_embedding(temb)
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)) + h


class Downsample(LDMResample, DiffusersResample, nn.Module):
    """Halve a map: [B, C, H, W] -> [B, C, H // 2, W // 2]. An odd last row or column is dropped."""

    name = "op"  # this and the padding: diffusers' words for it
    padding = 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.conv(F.pad(hidden_states, DOWNSAMPLE_PADDING))


class Upsample(LDMResample, DiffusersResample, nn.Module):
    """Double a map: nearest neighbour, then a 3x3 convolution."""

    name = "conv"  # diffusers' words for it
    scale_factor = Fixed(2.0)
    interpolate = True
    use_conv_transpose = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv2d(channels, channels, 3, padding=1)

    def forward(
        self, hidden_states: Tensor, output_size: tuple[int, int] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W], or of `output_size` rows and columns."""
        factor = 2.0 if output_size is None else None
        return self.conv(F.interpolate(hidden_states, size=output_size, scale_factor=factor, mode="nearest"))


class Level(LDMLevel, DiffusersLevel, nn.Module):
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

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        check_no_embedding(temb)
        x = hidden_states
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions is not None:
                x = self.attentions[i](x)
        return x


class DownBlock(Level):
    """A level of the encoder, with a downsampling after it unless it is the last."""

    downsample = RenamedPart("downsamplers", 0)

    def __init__(self, *args, add_downsample: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.downsamplers = nn.ModuleList([Downsample(self.channels)]) if add_downsample else None

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        x = super().forward(hidden_states, temb)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpBlock(Level):
    """A level of the decoder, with an upsampling after it unless it is the last."""

    upsample = RenamedPart("upsamplers", 0)

    def __init__(self, *args, add_upsample: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsamplers = nn.ModuleList([Upsample(self.channels)]) if add_upsample else None

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        x = super().forward(hidden_states, temb)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class UNetMidBlock2D(LDMMiddle, DiffusersMiddle, nn.Module):  # diffusers' name, which training scripts look for
    """Two resnet blocks at the lowest resolution, with an attention between them if asked for.

    Attributes:
        gradient_checkpointing: remember only the inputs of the attention and of the second resnet block for the
            backward pass.
    """

    def __init__(self, channels: int, norm_num_groups: int, act_fn: str, add_attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, norm_num_groups)] if add_attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, norm_num_groups, act_fn) for _ in range(2))
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = CHECKPOINT

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        check_no_embedding(temb)
        x = self.resnets[0](hidden_states)
        for block in (*self.attentions, self.resnets[1]):
            x = run_block(self, block, x)
        return x


def run_block(owner: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    """block(x), remembering only x for the backward pass where `owner.gradient_checkpointing` is set."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return owner._gradient_checkpointing_func(block, x)  # type: ignore[operator]
    return block(x)


def check_no_embedding(embedding: Tensor | None) -> None:
    """Raise ShapeError for a time or a latent embedding: an AutoencoderKL has no weights for one."""
    if embedding is not None:
        raise ShapeError(
            f"an embedding of shape {tuple(embedding.shape)} was given; the blocks of an AutoencoderKL take none. "
            f"Pass None."
        )
