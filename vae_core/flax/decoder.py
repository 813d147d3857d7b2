"""z -> image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..config import AutoencoderKLConfig
from .blocks import FlaxUNetMidBlock2D, FlaxUpDecoderBlock2D
from .layers import conv, group_norm


class FlaxDecoder(nn.Module):
    """[B, h, w, latent_channels] -> [B, h * factor, w * factor, out_channels], about [-1, 1], not clamped."""

    config: Mapping[str, Any]  # linen keeps dictionaries as its own kind of them
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config = AutoencoderKLConfig.from_dict(self.config)
        dtype = self.dtype
        widths = config.decoder_widths[::-1]
        groups = config.norm_num_groups  # coarsest first
        self.conv_in = conv(widths[0], 3, dtype, padding=1)
        self.mid_block = FlaxUNetMidBlock2D(
            widths[0], self.dropout, groups, config.act_fn, config.mid_block_add_attention, dtype
        )
        self.up_blocks = [
            FlaxUpDecoderBlock2D(
                previous,
                width,
                self.dropout,
                config.layers_per_block + 1,
                groups,
                config.act_fn,
                add_attention=block_type.startswith("Attn"),
                add_upsample=level < len(widths) - 1,
                dtype=dtype,
            )
            for level, (previous, width, block_type) in enumerate(
                zip((widths[0], *widths), widths, config.up_block_types, strict=False)
            )
        ]
        self.conv_norm_out = group_norm(groups, dtype)
        self.conv_out = conv(config.out_channels, 3, dtype, padding=1)

    def __call__(self, sample: Array, deterministic: bool = True) -> Array:
        x = self.conv_in(sample)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, deterministic=deterministic)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))  # silu whatever act_fn is, as in diffusers
