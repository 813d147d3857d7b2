"""The names that LDM's classes have for the parts of a VAE, as views: for code that walks a model by them.

Tools for ComfyUI and its kin go through `decoder.mid.block_1`, `decoder.up[i].block[j].nin_shortcut` and so on. Each
name here gives the part itself under diffusers' name, or computes with its very weights; nothing is copied or added to
the state dict.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Part(property):
    """An attribute under another name; an AttributeError where there is None of it."""

    def __init__(self, name: str, index: int | None = None) -> None:
        def find(owner: Any) -> Any:
            found = getattr(owner, name)
            if index is not None:
                found = found[index] if found is not None and len(found) > index else None
            if found is None:
                raise AttributeError(name)  # torch makes the sentence, with the name that was asked for
            return found

        super().__init__(find)


class Projection:
    """A linear layer as the 1x1 convolution that LDM has in its place: [B, C, H, W] -> [B, C', H, W]."""

    kernel_size, stride, padding = (1, 1), (1, 1), (0, 0)

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self.in_channels, self.out_channels = linear.in_features, linear.out_features

    @property
    def weight(self) -> Tensor:
        """[C', C, 1, 1], a view."""
        return self._linear.weight[:, :, None, None]

    @property
    def bias(self) -> Tensor | None:
        return self._linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class LDMResnetBlock:
    """Names of LDM's ResnetBlock. `nin_shortcut` is there where the widths differ."""

    conv1: nn.Conv2d
    dropout = nn.Identity()
    use_conv_shortcut = False
    nin_shortcut = Part("conv_shortcut")
    swish = Part("nonlinearity")

    @property
    def in_channels(self) -> int:
        return self.conv1.in_channels

    @property
    def out_channels(self) -> int:
        return self.conv1.out_channels


class LDMAttention:
    """Names of LDM's AttnBlock."""

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.ModuleList
    norm = Part("group_norm")

    @property
    def in_channels(self) -> int:
        return self.to_q.in_features

    @property
    def q(self) -> Projection:
        return Projection(self.to_q)

    @property
    def k(self) -> Projection:
        return Projection(self.to_k)

    @property
    def v(self) -> Projection:
        return Projection(self.to_v)

    @property
    def proj_out(self) -> Projection:
        return Projection(self.to_out[0])  # type: ignore[arg-type]

    @staticmethod
    def optimized_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(Q^T K / sqrt(channels)) V of maps [B, C, H, W], every pixel a token: ComfyUI's name for it."""
        q, k, v = (rearrange(each, "b c h w -> b 1 (h w) c") for each in (query, key, value))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) c -> b c h w", h=query.shape[-2])


class LDMResample:
    """Names of LDM's Upsample and Downsample."""

    with_conv = True
    scale_factor = 2.0


class LDMLevel:
    """Names of LDM's levels. `attn` is empty where a level has no attention."""

    attentions: nn.ModuleList | None
    block = Part("resnets")

    @property
    def attn(self) -> nn.ModuleList:
        return nn.ModuleList() if self.attentions is None else self.attentions


class LDMMiddle:
    """Names of LDM's middle block. `attn_1` is there where it has an attention."""

    block_1, attn_1, block_2 = Part("resnets", 0), Part("attentions", 0), Part("resnets", 1)


class _Half:
    conv_in: nn.Conv2d
    conv_out: nn.Conv2d
    temb_ch = 0
    mid = Part("mid_block")
    norm_out = Part("conv_norm_out")


class LDMEncoder(_Half):
    """Names of LDM's Encoder."""

    down_blocks: nn.ModuleList
    down = Part("down_blocks")

    @property
    def ch(self) -> int:
        return self.conv_in.out_channels

    @property
    def in_channels(self) -> int:
        return self.conv_in.in_channels

    @property
    def num_resolutions(self) -> int:
        return len(self.down_blocks)

    @property
    def num_res_blocks(self) -> int:
        return len(self.down_blocks[0].resnets)  # type: ignore[arg-type]


class LDMDecoder(_Half):
    """Names of LDM's Decoder, which counts its levels from the finest and has one more block in each than it says."""

    up_blocks: nn.ModuleList
    give_pre_end = tanh_out = False

    @property
    def ch(self) -> int:
        return self.conv_out.in_channels

    @property
    def up(self) -> list[nn.Module]:
        return list(self.up_blocks)[::-1]

    @property
    def num_resolutions(self) -> int:
        return len(self.up_blocks)

    @property
    def num_res_blocks(self) -> int:
        return len(self.up_blocks[0].resnets) - 1  # type: ignore[arg-type]
