"""Kernels in Triton for strips on an accelerator; `fused.py` decides whether they are used.

Beside its convolution a pass is two steps over a map: one scales, shifts and activates a strip as it is read, and one
adds bias and residual to what the convolution has made, puts it where it belongs and takes its statistics, from which
the next norm comes. Each reads a value once, in the precision in which it is stored, computes in float32, and writes
no more than its result.

Maps are [B, H, W, C]; where nothing else is said channels are next to each other, and all other strides are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_POSITIONS = 32  # of a row that a program has at once
_MOST_CHANNELS = 128  # the same
# What a program merges at once.
_MERGED_BLOCKS = 128
_MERGED_CHANNELS = 16
_MERGED_STRIPS = 32
PROGRAMS = 1024  # that are busy at once on a large device


@triton.jit
def _activate(
    x,
    out,
    scale,
    shift,
    height,
    width,
    channels,
    rows,
    columns,
    above,
    left,
    x_item,
    x_row,
    x_column,
    x_channel,
    out_item,
    out_row,
    out_column,
    norm: tl.constexpr,
    silu: tl.constexpr,
    block_positions: tl.constexpr,
    block_channels: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)  # rows of all items: an offset may need more than 32 bits
    item = line // rows
    row = line % rows
    column = tl.program_id(1) * block_positions + tl.arange(0, block_positions)
    channel = tl.program_id(2) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    there_row = row - above
    there_column = column - left
    inside = (there_row >= 0) & (there_row < height) & (there_column >= 0) & (there_column < width)
    within = inside[:, None] & known[None, :]
    place = item * x_item + there_row * x_row + there_column * x_column
    value = tl.load(x + place[:, None] + channel[None, :].to(tl.int64) * x_channel, mask=within, other=0.0)
    value = value.to(tl.float32)
    if norm:
        coefficient = item * channels + channel
        factor = tl.load(scale + coefficient, mask=known, other=0.0)
        value = value * factor[None, :] + tl.load(shift + coefficient, mask=known, other=0.0)[None, :]
    if silu:
        value = value / (1.0 + tl.exp(-value))
    value = tl.where(within, value, 0.0)
    start = out + item * out_item + row * out_row
    stored = (column[:, None] < columns) & known[None, :]
    tl.store(start + column[:, None] * out_column + channel[None, :], value.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _finish(
    result,
    residual,
    out,
    bias,
    partial,
    positions,
    width,
    channels,
    blocks,
    first,
    steps,
    result_item,
    result_row,
    result_column,
    residual_item,
    residual_row,
    residual_column,
    out_item,
    out_row,
    out_column,
    out_channel,
    has_residual: tl.constexpr,
    has_out: tl.constexpr,
    has_bias: tl.constexpr,
    block_positions: tl.constexpr,
    block_channels: tl.constexpr,
):
    block = tl.program_id(0)
    item = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    added = tl.zeros([block_channels], tl.float32)
    if has_bias:
        added = tl.load(bias + channel, mask=known, other=0.0)
    pivot = tl.zeros([block_channels], tl.float32)
    total = tl.zeros([block_channels], tl.float32)
    squares = tl.zeros([block_channels], tl.float32)
    for step in range(steps):
        position = (block * steps + step) * block_positions + tl.arange(0, block_positions)
        exists = position < positions
        within = exists[:, None] & known[None, :]
        row = (position // width).to(tl.int64)
        column = position % width
        place = item * result_item + row * result_row + column * result_column
        value = tl.load(result + place[:, None] + channel[None, :], mask=within, other=0.0).to(tl.float32)
        value += added[None, :]
        if has_residual:
            place = item * residual_item + row * residual_row + column * residual_column
            value += tl.load(residual + place[:, None] + channel[None, :], mask=within, other=0.0).to(tl.float32)
        if has_out:
            place = item * out_item + row * out_row + column * out_column
            stored = value.to(out.dtype.element_ty)
            tl.store(out + place[:, None] + channel[None, :].to(tl.int64) * out_channel, stored, mask=within)
            value = stored.to(tl.float32)
        if step == 0:
            pivot = tl.sum(tl.where(within, value, 0.0), 0) / tl.sum(exists.to(tl.float32), 0)
        deviation = tl.where(within, value - pivot[None, :], 0.0)
        total += tl.sum(deviation, 0)
        squares += tl.sum(deviation * deviation, 0)
    span = steps * block_positions
    count = tl.minimum(positions - block * span, span).to(tl.float32)
    start = partial + ((item * blocks + first + block) * 4) * channels + channel
    tl.store(start, tl.zeros([block_channels], tl.float32) + count, mask=known)
    tl.store(start + channels, pivot, mask=known)
    tl.store(start + 2 * channels, total / count, mask=known)
    tl.store(start + 3 * channels, squares - total * total / count, mask=known)


@triton.jit
def _merge(
    partial,
    row,
    blocks,
    channels,
    batch,
    block_blocks: tl.constexpr,
    block_channels: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    known = channel < channels
    start = partial + item * blocks * 4 * channels
    # Means are close to one another beside their size: what is summed are differences from one of the pivots.
    origin = tl.load(start + channels + channel, mask=known, other=0.0)
    counts = tl.zeros([block_channels], tl.float32)
    total = tl.zeros([block_channels], tl.float32)
    for first in range(0, blocks, block_blocks):
        block = first + tl.arange(0, block_blocks)
        within = (block[:, None] < blocks) & known[None, :]
        place = start + block[:, None] * 4 * channels + channel[None, :]
        count = tl.load(place, mask=within, other=0.0)
        middle = tl.load(place + channels, mask=within, other=0.0) - origin[None, :]
        middle += tl.load(place + 2 * channels, mask=within, other=0.0)
        counts += tl.sum(count, 0)
        total += tl.sum(count * middle, 0)
    mean = origin + total / tl.maximum(counts, 1.0)
    rest = tl.zeros([block_channels], tl.float32)
    squares = tl.zeros([block_channels], tl.float32)
    for first in range(0, blocks, block_blocks):
        block = first + tl.arange(0, block_blocks)
        within = (block[:, None] < blocks) & known[None, :]
        place = start + block[:, None] * 4 * channels + channel[None, :]
        count = tl.load(place, mask=within, other=0.0)
        deviation = tl.load(place + channels, mask=within, other=0.0) - mean[None, :]
        deviation += tl.load(place + 2 * channels, mask=within, other=0.0)
        deviation = tl.where(within, deviation, 0.0)
        rest += tl.sum(count * deviation, 0)
        squares += tl.sum(tl.load(place + 3 * channels, mask=within, other=0.0) + count * deviation * deviation, 0)
    place = row + item * channels + channel
    tl.store(place, mean, mask=known)
    tl.store(place + batch * channels, rest, mask=known)
    tl.store(place + 2 * batch * channels, squares, mask=known)
    tl.store(place + 3 * batch * channels, counts, mask=known)


@triton.jit
def _norm(
    rows,
    weight,
    bias,
    scale,
    shift,
    strips,
    batch,
    channels,
    size,
    eps,
    block_strips: tl.constexpr,
    block_channels: tl.constexpr,
):
    item = tl.program_id(0)
    group = tl.program_id(1)
    within_group = tl.arange(0, block_channels)
    known = within_group < size
    channel = group * size + within_group
    numbers = batch * channels
    start = rows + item * channels + channel
    origin = tl.load(rows + item * channels + group * size)
    count = 0.0
    total = 0.0
    for first in range(0, strips, block_strips):
        strip = (first + tl.arange(0, block_strips)).to(tl.int64)
        within = (strip[:, None] < strips) & known[None, :]
        place = start[None, :] + strip[:, None] * 4 * numbers
        counts = tl.load(place + 3 * numbers, mask=within, other=0.0)
        middle = tl.load(place, mask=within, other=0.0) - origin
        sums = counts * middle + tl.load(place + numbers, mask=within, other=0.0)
        count += tl.sum(tl.sum(counts, 0), 0)
        total += tl.sum(tl.sum(sums, 0), 0)
    mean = total / count
    squares = 0.0
    for first in range(0, strips, block_strips):
        strip = (first + tl.arange(0, block_strips)).to(tl.int64)
        within = (strip[:, None] < strips) & known[None, :]
        place = start[None, :] + strip[:, None] * 4 * numbers
        counts = tl.load(place + 3 * numbers, mask=within, other=0.0)
        middle = tl.load(place, mask=within, other=0.0) - origin - mean
        rest = tl.load(place + numbers, mask=within, other=0.0)
        spread = tl.load(place + 2 * numbers, mask=within, other=0.0)
        spread += middle * (2.0 * rest + counts * middle)
        squares += tl.sum(tl.sum(tl.where(within, spread, 0.0), 0), 0)
    factor = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) / tl.sqrt(squares / count + eps)
    offset = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32) - (origin + mean) * factor
    tl.store(scale + item * channels + channel, factor, mask=known)
    tl.store(shift + item * channels + channel, offset, mask=known)


def activate(x: Tensor, norm: tuple[Tensor, Tensor] | None, silu: bool, out: Tensor, above: int, left: int) -> None:
    """x [B, H, W, C] of any strides, normalised and activated, into `out` with zeros around it.

    Args:
        norm: scale and shift [B, C] in float32: x * scale + shift.
        silu: then SiLU of that.
        out: [B, above + H + below, left + W + right, C], channels next to each other.
    """
    batch, height, width, channels = x.shape
    _, rows, columns, _ = out.shape
    block = _channels_at_once(channels)
    scale, shift = (x, x) if norm is None else norm
    launch: Any = _activate[batch * rows, -(-columns // _POSITIONS), -(-channels // block)]
    launch(
        x,
        out,
        scale,
        shift,
        height,
        width,
        channels,
        rows,
        columns,
        above,
        left,
        *x.stride(),
        *out.stride()[:3],
        norm=norm is not None,
        silu=silu,
        block_positions=_POSITIONS,
        block_channels=block,
    )


def finish(
    result: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None, partial: Tensor, first: int
) -> None:
    """out = result + bias + residual for [B, H, W, C], and what its statistics are made of.

    Args:
        bias: [C] in float32.
        out: of any precision and strides; None where statistics alone are asked for.
        partial: [B, N, 4, C] in float32, contiguous. `blocks_of(result.shape)` of the N are written, each of a run of
            positions of what was stored: their count, a number close to them, their mean about that, and the sum of
            squared deviations from their mean.
        first: the first one of them.
    """
    batch, height, width, channels = result.shape
    count, steps = _blocks_and_steps(batch, height * width, channels)
    block = _channels_at_once(channels)
    launch: Any = _finish[count, batch, -(-channels // block)]
    added, target = (result if each is None else each for each in (residual, out))
    launch(
        result,
        added,
        target,
        result if bias is None else bias,
        partial,
        height * width,
        width,
        channels,
        partial.shape[1],
        first,
        steps,
        *result.stride()[:3],
        *added.stride()[:3],
        *target.stride(),
        has_residual=residual is not None,
        has_out=out is not None,
        has_bias=bias is not None,
        block_positions=_POSITIONS,
        block_channels=block,
    )


def blocks_of(shape: Sequence[int]) -> int:
    """How many runs of positions `finish` cuts [B, H, W, C] into."""
    return _blocks_and_steps(shape[0], shape[1] * shape[2], shape[3])[0]


def merge(partial: Tensor, row: Tensor) -> None:
    """The statistics of all runs [B, N, 4, C] together: about the mean, sums of deviations and of their squares, count.

    Args:
        row: [4, B, C] in float32, contiguous.
    """
    batch, blocks, _, channels = partial.shape
    block = min(_MERGED_CHANNELS, _channels_at_once(channels))
    launch: Any = _merge[batch, -(-channels // block)]
    launch(partial, row, blocks, channels, batch, block_blocks=_MERGED_BLOCKS, block_channels=block)


def norm(rows: Tensor, groups: int, eps: float, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> None:
    """A GroupNorm as scale and shift [B, C] in float32.

    Args:
        rows: [strips, 4, B, C] of `merge`, contiguous.
        weight, bias: [C] of any precision.
    """
    strips, _, batch, channels = rows.shape
    size = channels // groups
    launch: Any = _norm[batch, groups]
    block = 1 << (size - 1).bit_length()
    launch(
        rows,
        weight,
        bias,
        scale,
        shift,
        strips,
        batch,
        channels,
        size,
        eps,
        block_strips=_MERGED_STRIPS,
        block_channels=block,
    )


def _blocks_and_steps(batch: int, positions: int, channels: int) -> tuple[int, int]:
    """Runs of positions of each item, and how many blocks of positions a program takes of one.

    Enough programs to fill a device, and no more, since each leaves numbers that have to be merged.
    """
    blocks = -(-positions // _POSITIONS)
    beside = batch * -(-channels // _channels_at_once(channels))
    steps = max(1, blocks * beside // PROGRAMS)
    return -(-blocks // steps), steps


def _channels_at_once(channels: int) -> int:
    """Those of a program: a power of two, as Triton's blocks have to be."""
    return min(_MOST_CHANNELS, 1 << (channels - 1).bit_length())
