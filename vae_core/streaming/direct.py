"""torch's own convolution, strip by strip: on any device, in any precision."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused
from .activation import activate
from .direct_pass import DirectPass
from .fused import StripPart
from .kernel import Each, Memory, PassInputs, Strip, one_by_one
from .maps import FeatureMap, joined
from .phases import PARITIES, phase_kernels
from .program import Convolve, Pass, PositionNorm
from .scratch import Scratch, Scratches, fresh
from .stats import Stats, StatsTable, StripStats, TableStats
from .transfer import Arriving, Transfers


class _Weights(NamedTuple):
    """A pass's weights on the device.

    Attributes:
        kernels: the convolution's, or its four phases after a doubling.
        bias: of the convolution; where the sum is taken at once, with that of the shortcut, in float32.
        shortcut: weight and bias, or None.
    """

    kernels: list[Tensor]
    bias: Tensor | None
    shortcut: tuple[Tensor, Tensor | None] | None


class DirectConvolution(DirectPass):
    """conv2d of torch on channels-last strips of the whole batch: any device, any precision."""

    parallel: ClassVar[bool] = False
    fast: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    def __init__(self, inputs: PassInputs) -> None:
        super().__init__(inputs)
        self._transfers: Transfers | None = None
        self._arriving: dict[Strip, Arriving] = {}
        self._buffer: Tensor | None = None
        self.scratches: Scratches | None = None
        self._scratch: Scratch | None = None

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Every convolution."""
        return isinstance(step, Convolve)

    def held(self) -> dict[str, int]:
        return {} if self.scratches is None else {"statistics": self._table.values.nbytes, **self.scratches.allocated}

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> _Weights:
        conv = self.step.conv
        shortcut = self.step.shortcut
        phases = self.step.scale == "up"
        kernels = list(phase_kernels(conv, self._kernel)) if phases else [self._kernel(conv.weight)]
        biases = [None if each is None else self._bias(each) for each in (conv, shortcut)]
        if self._fused:
            given = [bias for bias in biases if bias is not None]
            biases = [functools.reduce(torch.add, given) if given else None, None]
        also = None if shortcut is None else (self._kernel(shortcut.weight), biases[1])
        return _Weights(kernels, biases[0], also)

    def _kernel(self, weight: Tensor) -> Tensor:
        layout = torch.channels_last  # in one step, of which nothing else is left
        return weight.detach().to(self.inputs.device, self.inputs.dtype, memory_format=layout)

    def _bias(self, conv: nn.Conv2d) -> Tensor | None:
        dtype = torch.float32 if self._fused else self.inputs.dtype
        return None if conv.bias is None else conv.bias.detach().to(self.inputs.device, dtype)

    @functools.cached_property
    def _pads(self) -> bool:
        """Whether one kernel does all that comes before it."""
        return self._fused and fused.can_activate(self.step.norm, self.step.act)

    def prepare(self, packed: _Weights, each: Each = one_by_one) -> None:
        inputs = self.inputs
        self._weights = packed
        self._transfers = Transfers(inputs.device, inputs.map_dtype)
        self._following = dict(pairwise(self.layout.strips())) if self._transfers.overlap else {}
        wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        self._coefficients: tuple[Tensor, Tensor] | None = None
        if inputs.coefficients is not None:
            scale, shift = inputs.coefficients
            self._coefficients = scale.to(wide).to(inputs.device), shift.to(wide).to(inputs.device)

        strips = self.layout.strips()
        shape = (inputs.target.shape[0], self.step.conv.out_channels)
        self._numbers = {strip: number for number, strip in enumerate(strips)}
        self._table = StatsTable(len(strips), shape, inputs.dtype, inputs.device, self._fused)
        if inputs.device.type == "cpu":
            self.scratches = Scratches(inputs.store.scratch, 1, self.scratch_sizes())
            self._scratch = self.scratches.take()

    def compute(self, strip: Strip) -> int:
        """The number of the strip, whose statistics are in the table of all."""
        assert self._transfers is not None
        arriving = self._arriving.pop(strip, None) or self._upload(strip)
        if (following := self._following.get(strip)) is not None:  # before this strip's work is queued
            self._arriving[following] = self._upload(following)
        window, *residuals = arriving.here()
        number = self._numbers[strip]
        x = self._padded(window, strip)
        residual = self._residual(joined(residuals[0])) if residuals else None
        (self._finish_at_once if self._fused else self._finish)(x, residual, strip, number)
        return number

    def _residual(self, x: Tensor) -> Tensor:
        if self._weights.shortcut is None:
            return x
        x = x.to(self.inputs.dtype).permute(0, 3, 1, 2)
        return F.conv2d(x, *self._weights.shortcut).permute(0, 2, 3, 1)

    def _finish(self, x: Tensor, residual: Tensor | None, strip: Strip, number: int) -> None:
        """Convolve what is padded, and put it into the target, in torch's operations."""
        assert self._transfers is not None
        result = self._convolved(x)  # [B, rows, W, K]
        if residual is not None:
            result.add_(residual)
        self._transfers.download(result, self.inputs.target.rows(*strip.rows))
        shape = (len(result), result.shape[1] * result.shape[2], result.shape[3])
        memory = None
        if self._scratch is not None and not self._measured:
            memory = self._scratch.tensor("deviations", shape, torch.promote_types(result.dtype, torch.float32))
        self._table.put(number, StripStats.of(result, memory))

    def _finish_at_once(self, x: Tensor, residual: Tensor | None, strip: Strip, number: int) -> None:
        """The same, where one kernel does all that comes after the convolution."""
        assert self._transfers is not None
        target = self.inputs.target.rows(*strip.rows)
        stays = target.device == x.device
        results = list(self._phases(x, None))
        count = len(results) * results[0].shape[1:3].numel()
        if len(results) == 1:
            out = target if stays else results[0]
            parts = [StripPart(results[0], residual, out)]
        else:
            out = target if stays else x.new_empty(target.shape)
            of = [None if residual is None else residual[:, a::2, b::2] for a, b in PARITIES]
            to = [out[:, a::2, b::2] for a, b in PARITIES]
            parts = list(map(StripPart, results, of, to))
        fused.finish(parts, self._weights.bias, self._table.row(number, count))
        if stays:
            self._transfers.computed()
        else:
            self._transfers.download(out, target)

    def combine(self, parts: Sequence[int]) -> Stats:
        return TableStats(self._table) if self._fused else self._table.merged(parts)

    def close(self) -> None:
        self._arriving.clear()
        self._buffer = self._scratch = None
        if self.scratches is not None:
            self.scratches.close()
            self.scratches = None
        if self._transfers is not None:
            self._transfers.finish()

    def _upload(self, strip: Strip) -> Arriving:
        """The source's rows that a strip reads, as far as they exist, and the residual's."""
        assert self._transfers is not None
        windows = [self.inputs.source.around(*self._reads(strip), self.inputs.circular.y)[0]]
        if self.inputs.residual is not None:
            windows.append(self.inputs.residual.pieces(*strip.rows))
        return self._transfers.upload(*windows)

    def _convolved(self, x: Tensor) -> Tensor:
        """[B, C, rows, W], padded, to [B, rows, W, K] of the target."""
        parts = self._phases(x, self._weights.bias)
        if self.step.scale != "up":
            return next(parts)
        shape = x.shape[0], 2 * (x.shape[2] - 2), 2 * (x.shape[3] - 2), self.step.conv.out_channels
        result = x.new_empty(shape) if self._scratch is None else self._scratch.tensor("result", shape, x.dtype)
        for (a, b), part in zip(PARITIES, parts, strict=True):
            result[:, a::2, b::2] = part
        return result

    def _phases(self, x: Tensor, bias: Tensor | None) -> Iterator[Tensor]:
        """The convolution [B, rows, W, K], or its phases after a doubling, one for each parity of rows and columns."""
        kernels = self._weights.kernels
        if self.step.scale != "up":
            yield F.conv2d(x, kernels[0], bias, stride=2 if self.step.scale == "down" else 1).permute(0, 2, 3, 1)
            return
        rows = x.shape[2] - 2
        columns = x.shape[3] - 2
        for (a, b), kernel in zip(PARITIES, kernels, strict=True):
            yield F.conv2d(x[:, :, a : a + rows + 1, b : b + columns + 1], kernel, bias).permute(0, 2, 3, 1)

    def _padded(self, pieces: Sequence[Tensor], strip: Strip) -> Tensor:
        """The rows that a strip reads, normalised, activated and padded: [B, C, rows, left + W + right].

        They are in a buffer that serves all strips of the pass.
        """
        if self._as_it_is:
            return joined(pieces).to(self.inputs.dtype).permute(0, 3, 1, 2)
        first, stop = self._reads(strip)
        left, right = self._sides
        circular = self.inputs.circular
        height = self.inputs.source.shape[1]
        above, below = (0, 0) if circular.y else (max(0, -first), max(0, stop - height))
        batch, _, width, channels = pieces[0].shape
        heights = [piece.shape[1] for piece in pieces]
        rows = above + sum(heights) + below
        if self._buffer is None:
            self._buffer = self._new_buffer((batch, rows, left + width + right, channels), pieces[0])
        padded = self._buffer[:, :rows]
        if self._pads:
            heights[0] += above
            heights[-1] += below
            norm = self._coefficients
            act = self.step.act
            for index, (piece, place) in enumerate(zip(pieces, padded.split(heights, dim=1), strict=True)):
                fused.activate(piece, norm, act, place, 0 if index else above, left)
        else:
            inside = padded[:, above : rows - below, left : left + width]
            for piece, place in zip(pieces, inside.split(heights, dim=1), strict=True):
                if self.step.norm is None and self.step.act is None:
                    place.copy_(piece)
                else:
                    self._activate(piece, place)
            padded[:, :above] = 0
            padded[:, rows - below :] = 0
        if circular.x:
            padded[:, :, :left] = padded[:, :, width : width + left]
            padded[:, :, left + width :] = padded[:, :, left : left + right]
        return padded.permute(0, 3, 1, 2)

    def _new_buffer(self, shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
        """For the first strip, which is the largest; the columns at its sides are zeros, or written with each strip."""
        if self._scratch is None:
            buffer = like.new_empty(shape)
        else:
            buffer = self._scratch.tensor("window", shape, self.inputs.dtype)
        if not self._pads:
            left, right = self._sides
            buffer[:, :, :left] = 0
            buffer[:, :, shape[2] - right :] = 0
        return buffer

    def _activate(self, x: Tensor, out: Tensor) -> None:
        """out = act(norm(x)) for [B, H, W, C]."""
        act = self.step.act or nn.Identity()
        if self._coefficients is not None:
            activate(x, *self._coefficients, act, out)
            return
        if isinstance(self.step.norm, PositionNorm):
            x = self.step.norm.apply(x.to(self.inputs.dtype))
        out.copy_(act(x.to(self.inputs.dtype)))
