"""torch's own convolution, strip by strip: on any device, in any precision."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused
from .activation import IN_PLACE, activate
from .fused import StripPart
from .kernel import Each, Layout, Memory, PassInputs, Strip, cut, even_size, one_by_one
from .maps import FeatureMap, joined
from .phases import PARITIES, phase_kernels
from .program import Convolve, Pass, PositionNorm
from .scratch import Scratch, Scratches, fresh, total
from .stats import Stats, StatsTable, StripStats, TableStats, is_measured
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


class DirectConvolution:
    """conv2d of torch on channels-last strips of the whole batch: any device, any precision."""

    parallel: ClassVar[bool] = False
    fast: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    def __init__(self, inputs: PassInputs) -> None:
        assert isinstance(inputs.step, Convolve)
        self.inputs = inputs
        self.step = inputs.step
        self.layout = inputs.layout or self._lay_out()
        self._transfers: Transfers | None = None
        self._arriving: dict[Strip, Arriving] = {}
        self._buffer: Tensor | None = None
        self.scratches: Scratches | None = None
        self._scratch: Scratch | None = None

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Every convolution."""
        return isinstance(step, Convolve)

    def _lay_out(self) -> Layout:
        batch, height, width, channels = self.inputs.target.shape
        widest = max(channels, self.inputs.source.shape[3])
        rows = max(1, self.inputs.strip_bytes // (batch * width * widest * self.inputs.dtype.itemsize))
        if self.inputs.max_rows is not None:
            rows = min(rows, self.inputs.max_rows)
        multiple = 2 if self.step.scale == "up" else 1
        within = self.inputs.target.band_rows
        if self.inputs.device.type != "cpu":  # where a new shape costs a search for its fastest kernel
            rows = even_size(within, rows, multiple)
        return Layout(cut(batch, batch), cut(height, rows, multiple, within), cut(width, width))

    @property
    def _sides(self) -> tuple[int, int]:
        """Columns of padding at the left and the right."""
        if self.step.scale == "down":
            return 0, 1
        halo = 1 if self.step.scale == "up" else self.step.conv.kernel_size[0] // 2
        return halo, halo

    @property
    def _measured(self) -> bool:
        """Whether a strip's statistics are taken by one reading of it, with nothing beside."""
        return is_measured(self.inputs.dtype, self.step.conv.out_channels)

    @property
    def _as_it_is(self) -> bool:
        """Whether a strip reads the source's own rows, neither changed nor padded."""
        return self.step.norm is None and self.step.act is None and self._sides == (0, 0)

    def scratch_sizes(self) -> dict[str, int]:
        """Bytes of each part of the memory for strips, on a CPU."""
        strip, (batch, _, width, channels) = self.layout.first, self.inputs.source.shape
        first, stop = self._reads(strip)
        itemsize = self.inputs.dtype.itemsize
        results = strip.positions * self.step.conv.out_channels
        sizes = {}
        if not self._measured:
            sizes["deviations"] = results * max(4, itemsize)
        if not self._as_it_is:
            sizes["window"] = batch * (stop - first) * (width + sum(self._sides)) * channels * itemsize
        if self.step.scale == "up":
            sizes["result"] = results * itemsize
        return sizes

    def workspace(self) -> dict[str, int]:
        """The window that a strip reads, its result, what leads to them, statistics, and the weights."""
        if self.inputs.device.type != "cpu":
            return self._workspace_on_a_device()
        strip, (batch, _, width, channels) = self.layout.first, self.inputs.source.shape
        first, stop = self._reads(strip)
        conv = self.step.conv
        dtype = self.inputs.dtype
        norm = self.step.norm
        read = batch * (stop - first) * width * channels
        results = strip.positions * conv.out_channels
        terms = {
            **self.scratch_sizes(),
            "statistics": StatsTable.bytes(len(self.layout), (batch, conv.out_channels), dtype),
            "weights": self._packing_bytes(),
        }
        if norm is not None and (dtype not in IN_PLACE or isinstance(norm, PositionNorm)):
            terms["normalized"] = 8 * read
        residual = self.inputs.residual
        joins = read if self._as_it_is and self.inputs.source.band_count > 1 else 0  # else pieces go to the window
        if residual is not None and residual.band_count > 1:
            joins += strip.positions * residual.shape[3]
        if joins:
            terms["joined"] = self.inputs.map_dtype.itemsize * joins
        terms["convolution"] = results * dtype.itemsize // (4 if self.step.scale == "up" else 1)  # a phase
        if dtype not in IN_PLACE and not self._measured:
            terms["values"] = 4 * results
        if self.step.shortcut is not None:
            terms["shortcut"] = results * dtype.itemsize
        if self.inputs.map_dtype != dtype:  # what is not read into the window is made wider by itself
            widened = read if self._as_it_is else 0
            if self.step.shortcut is not None:
                widened += strip.positions * self.step.shortcut.in_channels
            terms["widened"] = widened * dtype.itemsize
        return terms

    def held(self) -> dict[str, int]:
        return {} if self.scratches is None else {"statistics": self._table.values.nbytes, **self.scratches.allocated}

    def _workspace_on_a_device(self) -> dict[str, int]:
        strip = self.layout.first
        dtype = self.inputs.dtype
        conv = self.step.conv
        batch, _, width, channels = self.inputs.source.shape
        itemsize = dtype.itemsize
        first, stop = self._reads(strip)
        source = 4 * itemsize  # bytes of a value at once: the buffer, what leads to it, and strips on their way
        if self.step.norm is not None and (dtype not in IN_PLACE or isinstance(self.step.norm, PositionNorm)):
            source += itemsize
        # The result and strips on their way back, and statistics of runs of positions, or deviations in float32.
        target = 4 * itemsize + (1 if self._fused else 4 + (4 if dtype != torch.float32 else 0))
        if self.step.shortcut is not None:
            target += itemsize
        if self.step.scale == "up":
            target += itemsize // 4  # a phase
        table = StatsTable.bytes(len(self.layout), (batch, conv.out_channels), dtype, self._fused)
        terms = {
            "window": batch * (stop - first) * (width + sum(self._sides)) * channels * source,
            "result": strip.positions * target * conv.out_channels,
            "statistics": 2 * table,  # the source's as well
            "weights": self._packing_bytes(),
        }
        if self.inputs.residual is not None:  # this strip's and the next one's
            terms["residual"] = 2 * strip.positions * self.inputs.residual.shape[3] * itemsize
        return terms

    def _packing_bytes(self) -> int:
        """The weights, and what leads to them: of phases, which are added up in single precision, one at a time."""
        weight, itemsize = self.step.conv.weight, self.inputs.dtype.itemsize
        if self.step.scale != "up":
            return 2 * weight.numel() * itemsize
        wide = torch.promote_types(weight.dtype, torch.float32)
        ninths = 12 * (itemsize + wide.itemsize) + (9 * wide.itemsize if wide != weight.dtype else 0)
        return weight.numel() * ninths // 9

    def packed_bytes(self) -> int:
        phases = 16 / 9 if self.step.scale == "up" else 1
        return int(phases * self.step.flops(1) / 2) * self.inputs.dtype.itemsize

    def scratch_bytes(self) -> int:
        return total(self.scratch_sizes()) if self.inputs.device.type == "cpu" else 0

    def flops(self, strip: Strip) -> int:
        return self.step.flops(strip.positions)

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> _Weights:
        conv, shortcut = self.step.conv, self.step.shortcut
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
    def _fused(self) -> bool:
        """Whether one kernel does all that comes after the convolution."""
        return fused.can_finish(self.inputs.device, self.inputs.dtype)

    @functools.cached_property
    def _pads(self) -> bool:
        """Whether one kernel does all that comes before it."""
        return self._fused and fused.can_activate(self.step.norm, self.step.act)

    def prepare(self, packed: _Weights, each: Each = one_by_one) -> None:
        inputs = self.inputs
        self._weights = packed
        self._transfers = Transfers(inputs.device)
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

    def _reads(self, strip: Strip) -> tuple[int, int]:
        """The rows of the source that a strip needs, [first, stop); some may be outside of the image."""
        start, stop = strip.rows
        if self.step.scale == "down":
            return 2 * start, 2 * stop + 1
        if self.step.scale == "up":
            return start // 2 - 1, stop // 2 + 1
        halo = self.step.conv.kernel_size[0] // 2
        return start - halo, stop + halo

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
        rows, columns = x.shape[2] - 2, x.shape[3] - 2
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
            norm, act = self._coefficients, self.step.act
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
        act: Any = self.step.act or nn.Identity()
        if self._coefficients is not None:
            activate(x, *self._coefficients, act, out)
            return
        if isinstance(self.step.norm, PositionNorm):
            x = self.step.norm.apply(x.to(self.inputs.dtype))
        out.copy_(act(x.to(self.inputs.dtype)))
