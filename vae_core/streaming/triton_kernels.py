"""Two kernels in Triton for strips on an accelerator; `fused.py` decides whether they are used.

A GroupNorm and its activation are two passes over a map: one that sums, as each strip is written, and one that scales,
shifts and activates, as each strip is read again. Each reads a value once, in the precision in which it is stored,
computes in float32, and writes no more than its result.

Maps are [B, H, W, C], channels next to each other in memory; all other strides are free.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_POSITIONS = 32  # of a row that a program has at once
_MOST_CHANNELS = 128  # the same
_STEPS = 32  # blocks of positions that a program sums one after another


@triton.jit
def _activate(
    x,
    out,
    scale,
    shift,
    height,
    width,
    channels,
    x_item,
    x_row,
    x_column,
    out_item,
    out_row,
    out_column,
    silu: tl.constexpr,
    block_positions: tl.constexpr,
    block_channels: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)  # rows of all items: an offset may need more than 32 bits
    item, row = line // height, line % height
    column = tl.program_id(1) * block_positions + tl.arange(0, block_positions)
    channel = tl.program_id(2) * block_channels + tl.arange(0, block_channels)
    within = (column[:, None] < width) & (channel[None, :] < channels)
    coefficient = item * channels + channel
    factor = tl.load(scale + coefficient, mask=channel < channels, other=0.0)
    offset = tl.load(shift + coefficient, mask=channel < channels, other=0.0)
    start = x + item * x_item + row * x_row
    value = tl.load(start + column[:, None] * x_column + channel[None, :], mask=within, other=0.0).to(tl.float32)
    value = value * factor[None, :] + offset[None, :]
    if silu:
        value = value / (1.0 + tl.exp(-value))
    start = out + item * out_item + row * out_row
    tl.store(start + column[:, None] * out_column + channel[None, :], value.to(out.dtype.element_ty), mask=within)


@triton.jit
def _sum(
    x,
    pivot,
    sums,
    positions,
    channels,
    blocks,
    block_positions: tl.constexpr,
    block_channels: tl.constexpr,
    steps: tl.constexpr,
):
    block, item = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    middle = tl.load(pivot + item * channels + channel, mask=known, other=0.0)
    total = tl.zeros([block_channels], tl.float32)
    squares = tl.zeros([block_channels], tl.float32)
    for step in range(steps):
        position = (block * steps + step) * block_positions + tl.arange(0, block_positions)
        within = (position[:, None] < positions) & known[None, :]
        place = (item * positions + position[:, None]) * channels + channel[None, :]
        value = tl.load(x + place, mask=within, other=0.0).to(tl.float32)
        deviation = tl.where(within, value - middle[None, :], 0.0)
        total += tl.sum(deviation, 0)
        squares += tl.sum(deviation * deviation, 0)
    start = sums + (item * blocks + block) * 2 * channels + channel
    tl.store(start, total, mask=known)
    tl.store(start + channels, squares, mask=known)


def activate(x: Tensor, scale: Tensor, shift: Tensor, silu: bool, out: Tensor) -> None:
    """out = x * scale + shift for [B, H, W, C], with SiLU of that if asked; scale and shift [B, C] in float32."""
    batch, height, width, channels = x.shape
    block = _channels_at_once(channels)
    launch: Any = _activate[batch * height, -(-width // _POSITIONS), -(-channels // block)]
    strides = *x.stride()[:3], *out.stride()[:3]
    launch(
        x,
        out,
        scale.contiguous(),
        shift.contiguous(),
        height,
        width,
        channels,
        *strides,
        silu=silu,
        block_positions=_POSITIONS,
        block_channels=block,
    )


def sums_about(x: Tensor, pivot: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [B, C] of x - pivot and of its square over the positions of a contiguous [B, N, C]; pivot [B, C].

    Of runs of positions in float32, which are then added, so that long sums round no more than short ones.
    """
    batch, positions, channels = x.shape
    block = _channels_at_once(channels)
    blocks = -(-positions // (_POSITIONS * _STEPS))
    sums = x.new_empty((batch, blocks, 2, channels), dtype=pivot.dtype)
    launch: Any = _sum[blocks, batch, -(-channels // block)]
    launch(
        x,
        pivot.contiguous(),
        sums,
        positions,
        channels,
        blocks,
        block_positions=_POSITIONS,
        block_channels=block,
        steps=_STEPS,
    )
    total, squares = sums.sum(1).unbind(1)
    return total, squares


def _channels_at_once(channels: int) -> int:
    """Those of a program: a power of two, as Triton's blocks have to be."""
    return min(_MOST_CHANNELS, 1 << (channels - 1).bit_length())
