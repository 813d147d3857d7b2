"""The blocks that encoder and decoder are made of. Attribute names are those of diffusers' Flax classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from .attention import FlaxAttentionBlock
from .layers import conv, group_norm

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
# The extra row and column that keep a stride-2 convolution aligned: none before, one after.
DOWNSAMPLE_PADDING = ((0, 0), (0, 1), (0, 1), (0, 0))


class FlaxResnetBlock2D(nn.Module):
    """shortcut(x) + conv2(dropout(act(norm2(conv1(act(norm1(x))))))) on [B, H, W, C]."""

    in_channels: int
    out_channels: int
    dropout: float = 0.0
    groups: int = 32
    act_fn: str = "silu"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm1 = group_norm(self.groups, self.dtype)
        self.conv1 = conv(self.out_channels, 3, self.dtype, padding=1)
        self.norm2 = group_norm(self.groups, self.dtype)
        self.dropout_layer = nn.Dropout(self.dropout)
        self.conv2 = conv(self.out_channels, 3, self.dtype, padding=1)
        same = self.in_channels == self.out_channels
        self.conv_shortcut = None if same else conv(self.out_channels, 1, self.dtype)

    def __call__(self, hidden_states: Array, deterministic: bool = True) -> Array:
        activation = ACTIVATIONS[self.act_fn]
        h = self.conv1(activation(self.norm1(hidden_states)))
        h = self.dropout_layer(activation(self.norm2(h)), deterministic=deterministic)
        h = self.conv2(h)
        return (hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)) + h


class FlaxDownsample2D(nn.Module):
    """Halve a map: [B, H, W, C] -> [B, H // 2, W // 2, C]. An odd last row or column is dropped."""

    in_channels: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.conv = conv(self.in_channels, 3, self.dtype, stride=2)

    def __call__(self, hidden_states: Array) -> Array:
        return self.conv(jnp.pad(hidden_states, DOWNSAMPLE_PADDING))


class FlaxUpsample2D(nn.Module):
    """Double a map: nearest neighbour, then a 3x3 convolution."""

    in_channels: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.conv = conv(self.in_channels, 3, self.dtype, padding=1)

    def __call__(self, hidden_states: Array) -> Array:
        batch, height, width, channels = hidden_states.shape
        doubled = jnp.broadcast_to(hidden_states[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        return self.conv(doubled.reshape(batch, height * 2, width * 2, channels))


class Level(nn.Module):
    """Resnet blocks at one resolution, each followed by an attention where `add_attention` is set."""

    in_channels: int
    out_channels: int
    dropout: float = 0.0
    num_layers: int = 1
    resnet_groups: int = 32
    act_fn: str = "silu"
    add_attention: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        widths = [self.in_channels, *[self.out_channels] * (self.num_layers - 1)]
        self.resnets = [
            FlaxResnetBlock2D(width, self.out_channels, self.dropout, self.resnet_groups, self.act_fn, self.dtype)
            for width in widths
        ]
        self.attentions = [
            FlaxAttentionBlock(self.out_channels, self.resnet_groups, self.dtype) for _ in widths if self.add_attention
        ]

    def run(self, hidden_states: Array, deterministic: bool) -> Array:
        for i, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, deterministic=deterministic)
            if self.add_attention:
                hidden_states = self.attentions[i](hidden_states)
        return hidden_states


class FlaxDownEncoderBlock2D(Level):
    """A level of the encoder, with a downsampling after it unless it is the last."""

    add_downsample: bool = True

    def setup(self) -> None:
        super().setup()
        if self.add_downsample:
            self.downsamplers_0 = FlaxDownsample2D(self.out_channels, self.dtype)

    def __call__(self, hidden_states: Array, deterministic: bool = True) -> Array:
        hidden_states = self.run(hidden_states, deterministic)
        return self.downsamplers_0(hidden_states) if self.add_downsample else hidden_states


class FlaxUpDecoderBlock2D(Level):
    """A level of the decoder, with an upsampling after it unless it is the last."""

    add_upsample: bool = True

    def setup(self) -> None:
        super().setup()
        if self.add_upsample:
            self.upsamplers_0 = FlaxUpsample2D(self.out_channels, self.dtype)

    def __call__(self, hidden_states: Array, deterministic: bool = True) -> Array:
        hidden_states = self.run(hidden_states, deterministic)
        return self.upsamplers_0(hidden_states) if self.add_upsample else hidden_states


class FlaxUNetMidBlock2D(nn.Module):
    """Two resnet blocks at the lowest resolution, with an attention between them if asked for."""

    in_channels: int
    dropout: float = 0.0
    resnet_groups: int = 32
    act_fn: str = "silu"
    add_attention: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        channels = self.in_channels
        self.resnets = [
            FlaxResnetBlock2D(channels, channels, self.dropout, self.resnet_groups, self.act_fn, self.dtype)
            for _ in range(2)
        ]
        self.attentions = [
            FlaxAttentionBlock(channels, self.resnet_groups, self.dtype) for _ in range(1) if self.add_attention
        ]

    def __call__(self, hidden_states: Array, deterministic: bool = True) -> Array:
        hidden_states = self.resnets[0](hidden_states, deterministic=deterministic)
        for attention in self.attentions:
            hidden_states = attention(hidden_states)
        return self.resnets[1](hidden_states, deterministic=deterministic)
