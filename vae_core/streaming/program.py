"""Encoder and decoder as programs: lists of passes, each reading one feature map and writing another.

A pass sees the whole map, strip by strip, so the statistics of what it writes are complete before the next pass
needs them; that is what makes a tiled run exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..attention import Attention
from ..blocks import Downsample, Level, ResnetBlock, UNetMidBlock2D, Upsample
from ..decoder import Decoder
from ..encoder import Encoder


@dataclass(frozen=True)
class Convolve:
    """target = conv(act(norm(source))) + residual, with a 3x3 or 1x1 convolution.

    Attributes:
        source, target: names of maps. A target that is also the residual is written in place.
        scale: "same"; "up", where the source is first doubled by nearest neighbour; "down", with stride 2 and a
            padding of one row below and one column to the right.
        norm, act: applied to the source; both or neither.
        residual: a map of the target's size that is added, through `shortcut` if there is one.
    """

    source: str
    target: str
    conv: nn.Conv2d
    scale: str = "same"
    norm: nn.GroupNorm | None = None
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


@dataclass(frozen=True)
class Attend:
    """target = source + project(attention(norm(source))); source and target may be one map."""

    source: str
    target: str
    attention: Attention


Pass = Convolve | Attend
INPUT, OUTPUT = "input", "output"


class _Builder:
    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.current = INPUT
        self._made = 0

    def new_map(self) -> str:
        self._made += 1
        return f"map{self._made}"

    def convolve(self, conv: nn.Conv2d, **options: object) -> None:
        target = self.new_map()
        self.passes.append(Convolve(self.current, target, conv, **options))  # type: ignore[arg-type]
        self.current = target

    def resnet(self, block: ResnetBlock) -> None:
        x, h = self.current, self.new_map()
        self.passes.append(Convolve(x, h, block.conv1, norm=block.norm1, act=block.nonlinearity))
        self.current = x if block.conv_shortcut is None else self.new_map()
        self.passes.append(
            Convolve(
                h,
                self.current,
                block.conv2,
                norm=block.norm2,
                act=block.nonlinearity,
                residual=x,
                shortcut=block.conv_shortcut,
            )
        )

    def attend(self, attention: Attention) -> None:
        self.passes.append(Attend(self.current, self.current, attention))

    def level(self, block: Level | UNetMidBlock2D) -> None:
        attentions = list(block.attentions or [])
        for index, resnet in enumerate(block.resnets):
            self.resnet(resnet)  # type: ignore[arg-type]
            if index < len(attentions):  # the middle block has one attention less than resnets
                self.attend(attentions[index])  # type: ignore[arg-type]

    def finish(self, model: Encoder | Decoder, last: nn.Conv2d | None) -> list[Pass]:
        self.convolve(model.conv_out, norm=model.conv_norm_out, act=model.conv_act)
        if last is not None:
            self.convolve(last)
        final = self.passes.pop()
        assert isinstance(final, Convolve)
        return [*self.passes, Convolve(final.source, OUTPUT, final.conv, norm=final.norm, act=final.act)]


def encoder_program(encoder: Encoder, quant_conv: nn.Conv2d | None) -> list[Pass]:
    """image -> moments."""
    build = _Builder()
    build.convolve(encoder.conv_in)
    for block in encoder.down_blocks:
        build.level(block)  # type: ignore[arg-type]
        for downsample in block.downsamplers or []:  # type: ignore[union-attr]
            assert isinstance(downsample, Downsample)
            build.convolve(downsample.conv, scale="down")
    build.level(encoder.mid_block)
    return build.finish(encoder, quant_conv)


def decoder_program(decoder: Decoder, post_quant_conv: nn.Conv2d | None) -> list[Pass]:
    """z -> image."""
    build = _Builder()
    if post_quant_conv is not None:
        build.convolve(post_quant_conv)
    build.convolve(decoder.conv_in)
    build.level(decoder.mid_block)
    for block in decoder.up_blocks:
        build.level(block)  # type: ignore[arg-type]
        for upsample in block.upsamplers or []:  # type: ignore[union-attr]
            assert isinstance(upsample, Upsample)
            build.convolve(upsample.conv, scale="up")
    return build.finish(decoder, None)


def sources(step: Pass) -> tuple[str, ...]:
    """The maps that a pass reads."""
    if isinstance(step, Convolve) and step.residual is not None:
        return step.source, step.residual
    return (step.source,)


def output_size(step: Pass, height: int, width: int) -> tuple[int, int]:
    """Size of a pass's target, from that of its source."""
    if isinstance(step, Convolve) and step.scale == "up":
        return 2 * height, 2 * width
    if isinstance(step, Convolve) and step.scale == "down":
        return height // 2, width // 2
    return height, width
