"""A pass by torch's own convolution before it runs: its strips, what they read, and what it needs of memory."""

from __future__ import annotations

import functools

import torch

from . import fused
from .activation import IN_PLACE
from .kernel import Layout, PassInputs, Strip, cut, even_size
from .program import INPUT, Convolve, PositionNorm
from .scratch import total
from .stats import StatsTable, is_measured

_UPLOADED = 4  # strips whose rows may be on an accelerator at once


class DirectPass:
    """What planning asks of `DirectConvolution`."""

    def __init__(self, inputs: PassInputs) -> None:
        assert isinstance(inputs.step, Convolve)
        self.inputs = inputs
        self.step = inputs.step
        self.layout = inputs.layout or self._lay_out()

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
        strip = self.layout.first
        batch, _, width, channels = self.inputs.source.shape
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
        strip = self.layout.first
        batch, _, width, channels = self.inputs.source.shape
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
        # What is not read into the window is converted by itself.
        if self.inputs.map_dtype != dtype or self.step.source == INPUT:
            widened = read if self._as_it_is else 0
            if self.step.shortcut is not None:
                widened += strip.positions * self.step.shortcut.in_channels
            terms["widened"] = widened * dtype.itemsize
        return terms

    def _workspace_on_a_device(self) -> dict[str, int]:
        strip = self.layout.first
        dtype = self.inputs.dtype
        conv = self.step.conv
        batch, _, width, channels = self.inputs.source.shape
        itemsize = dtype.itemsize
        first, stop = self._reads(strip)
        # Bytes of a value at once. Of what is uploaded there are this strip's rows and the next one's, and those of two
        # strips before, which the device may not be done with; the source's also go to the buffer.
        source = (_UPLOADED + 1) * itemsize
        if self.step.norm is not None and (dtype not in IN_PLACE or isinstance(self.step.norm, PositionNorm)):
            source += itemsize
        # The result and strips on their way back, and statistics of runs of positions, or deviations in float32.
        target = 4 * itemsize + (1 if self._fused else 4 + (4 if dtype != torch.float32 else 0))
        if self.step.shortcut is not None:  # fused, its result in the order of the target, if the library has another
            target += (2 if self._fused else 1) * itemsize
        if self.step.scale == "up":
            target += itemsize // 4  # a phase
        table = StatsTable.bytes(len(self.layout), (batch, conv.out_channels), dtype, self._fused)
        terms = {
            "window": batch * (stop - first) * (width + sum(self._sides)) * channels * source,
            "result": strip.positions * target * conv.out_channels,
            "statistics": 2 * table,  # the source's as well
            "weights": self._packing_bytes(),
        }
        if self.inputs.residual is not None:
            terms["residual"] = _UPLOADED * strip.positions * self.inputs.residual.shape[3] * itemsize
        return terms

    def _packing_bytes(self) -> int:
        """The weights, and what leads to them: of phases, which are added up in single precision, one at a time."""
        weight = self.step.conv.weight
        itemsize = self.inputs.dtype.itemsize
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

    @functools.cached_property
    def _fused(self) -> bool:
        """Whether one kernel does all that comes after the convolution."""
        return fused.can_finish(self.inputs.device, self.inputs.dtype)

    def _reads(self, strip: Strip) -> tuple[int, int]:
        """The rows of the source that a strip needs, [first, stop); some may be outside of the image."""
        start, stop = strip.rows
        if self.step.scale == "down":
            return 2 * start, 2 * stop + 1
        if self.step.scale == "up":
            return start // 2 - 1, stop // 2 + 1
        halo = self.step.conv.kernel_size[0] // 2
        return start - halo, stop + halo
