"""Programs: lists of passes, each reading one feature map and writing another.

A pass sees the whole map, strip by strip, so the statistics of what it writes are complete before the next pass
needs them; that is what makes a tiled run exact. Which model a program belongs to is unknown here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Scale = Literal["same", "up", "down"]
Shape = tuple[int, int, int, int]
Linear = tuple[Tensor, Tensor]  # weight [K, C] and bias [K]
INPUT = "input"
OUTPUT = "output"


@dataclass(frozen=True)
class PositionNorm:
    """A norm of each position by itself, such as RMSNorm over channels: it needs no statistics of the map.

    Attributes:
        apply: [..., C] -> [..., C], for any device and precision.
    """

    apply: Callable[[Tensor], Tensor]


Norm = nn.GroupNorm | PositionNorm


@dataclass(frozen=True)
class Convolve:
    """target = conv(act(norm(source))) + residual, with a 3x3 or 1x1 convolution.

    Attributes:
        source, target: names of maps. A target that is also the residual is written in place.
        conv: its weight and bias are read when the pass runs; without a bias it adds nothing.
        scale: "same"; "up", where the source is first doubled by nearest neighbour (3x3 alone); "down", with stride 2
            and a padding of one row below and one column to the right (3x3 alone).
        norm, act: applied to the source in this order, where they are given; an act with a GroupNorm.
        residual: a map of the target's size that is added, through `shortcut` (1x1) if there is one.
    """

    source: str
    target: str
    conv: nn.Conv2d
    scale: Scale = "same"
    norm: Norm | None = None
    act: nn.Module | None = None
    residual: str | None = None
    shortcut: nn.Conv2d | None = None

    @property
    def reuses(self) -> str | None:
        """The map whose memory the target takes over, if any.

        It is the residual, where its shortcut makes it no wider: a position is written after it has been read, and
        no later pass reads a residual.
        """
        narrows = self.shortcut is not None and self.shortcut.out_channels <= self.shortcut.in_channels
        return self.residual if narrows else None

    @property
    def reads(self) -> tuple[str, ...]:
        """The maps that the pass reads."""
        return (self.source,) if self.residual is None else (self.source, self.residual)

    def target_shape(self, source: Shape) -> Shape:
        """[B, H, W, C] of the target, from that of the source."""
        batch, height, width, _ = source
        if self.scale == "up":
            height = 2 * height
            width = 2 * width
        elif self.scale == "down":
            height = height // 2
            width = width // 2
        return batch, height, width, self.conv.out_channels

    def flops(self, positions: int) -> int:
        """FLOPs of the convolution as torch computes it, for so many positions of the target."""
        weights = self.conv.weight.numel() + (0 if self.shortcut is None else self.shortcut.weight.numel())
        return 2 * weights * positions


class AttentionWeights(Protocol):
    """The layers of a single-head attention, read when the pass runs."""

    def query_key_value(self) -> list[Linear]:
        """The three projections, [C, C] each."""
        ...

    def output(self) -> Linear:
        """The projection of what was attended to, [C, C]."""
        ...


@dataclass(frozen=True)
class Attend:
    """target = source + output(attention(norm(source))) over all positions; source and target may be one map.

    Attributes:
        channels: of both maps.
    """

    source: str
    target: str
    channels: int
    norm: Norm
    weights: AttentionWeights

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source,)

    def target_shape(self, source: Shape) -> Shape:
        return source

    def flops(self, positions: int) -> int:
        """FLOPs of four projections and two products, for a map of so many positions."""
        return 8 * positions * self.channels**2 + 4 * positions**2 * self.channels


Pass = Convolve | Attend


class ProgramBuilder:
    """Writes a program down pass by pass; `current` is the map that the last one has written."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.current = INPUT
        self._made = 0

    def new_map(self) -> str:
        self._made += 1
        return f"map{self._made}"

    def convolve(
        self,
        conv: nn.Conv2d,
        scale: Scale = "same",
        norm: Norm | None = None,
        act: nn.Module | None = None,
        residual: str | None = None,
        shortcut: nn.Conv2d | None = None,
        in_place: bool = False,
    ) -> None:
        """A convolution of `current`; `in_place` writes where the residual is."""
        target = residual if in_place and residual is not None else self.new_map()
        self.passes.append(Convolve(self.current, target, conv, scale, norm, act, residual, shortcut))
        self.current = target

    def attend(self, channels: int, norm: Norm, weights: AttentionWeights) -> None:
        """An attention on `current`, in place."""
        self.passes.append(Attend(self.current, self.current, channels, norm, weights))

    def finish(self) -> list[Pass]:
        """The program, whose last convolution writes the output."""
        last = self.passes[-1]
        if not isinstance(last, Convolve) or last.target == last.residual:
            raise ValueError("a program ends with a convolution that is not in place")
        final = Convolve(last.source, OUTPUT, last.conv, last.scale, last.norm, last.act, last.residual, last.shortcut)
        return [*self.passes[:-1], final]


def map_shapes(passes: Sequence[Pass], shape: Shape) -> Iterator[tuple[Pass, Shape, Shape]]:
    """Each pass of a program with [B, H, W, C] of its source and of its target, for an input [B, C, H, W]."""
    batch, channels, height, width = shape
    shapes = {INPUT: (batch, height, width, channels)}
    for step in passes:
        source = shapes[step.source]
        shapes[step.target] = step.target_shape(source)
        yield step, source, shapes[step.target]


def program_flops(passes: list[Pass], shape: Shape) -> int:
    """FLOPs of a program for an input [B, C, H, W]."""
    total = 0
    for step, _, (batch, height, width, _) in map_shapes(passes, shape):
        total += batch * step.flops(height * width)
    return total


def largest_map(passes: list[Pass], shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of the largest map that a program writes for an input [B, C, H, W]."""
    return max(math.prod(target) for _, _, target in map_shapes(passes, shape)) * dtype.itemsize
