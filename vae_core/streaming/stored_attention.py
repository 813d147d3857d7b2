"""Attention over keys and values that are maps of the store: on any device, in any precision, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused
from .fused import StripPart
from .kernel import Each, Layout, Memory, PassInputs, Strip, cut, one_by_one
from .maps import FeatureMap
from .program import Attend, Linear, Pass, PositionNorm
from .scratch import fresh
from .softmax import OnlineSoftmax, folded, per_item, projections
from .stats import WITH_FLOAT64, ChannelStats, StatsTable, StripStats

_QUERIES = 1024  # positions that attend at a time
_ACCELERATOR_QUERIES = 4096  # where there is more to be busy with
KEY_BLOCK = 8192  # keys and values on the device at a time, where they are elsewhere
_SCORES_LIMIT = 2**29  # bytes of a kernel's scores in single precision, beyond which keys are taken in blocks too
_STRIPS_WRITTEN_OUT = 4  # sizes of a strip that all that is written out may have, where no kernel attends
_MAKE_KEYS = (-1, -1)  # the rows of the strip that makes an item's keys and values


class StoredAttention:
    """Queries, some positions at a time, see the keys and values of all positions, so this is exact.

    Its FLOPs grow with the square of the number of positions. Keys and values that do not fit on the device come to it
    block by block. A strip's rows are positions; the first strip of each item makes its keys and values.
    """

    parallel: ClassVar[bool] = False
    fast: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False

    def __init__(self, inputs: PassInputs) -> None:
        assert isinstance(inputs.step, Attend)
        self.inputs = inputs
        self.step = inputs.step
        batch, height, width, channels = inputs.source.shape
        self.positions = height * width
        self.queries = _QUERIES
        if inputs.device.type != "cpu":  # as many as a strip has room for the scores of
            self.queries = max(64, min(_ACCELERATOR_QUERIES, inputs.strip_bytes // (8 * KEY_BLOCK)))
        self.layout = inputs.layout or self._lay_out()
        self.keys = inputs.store.allocate((batch, self.positions, 1, channels), inputs.dtype)
        try:
            self.values = inputs.store.allocate((batch, self.positions, 1, channels), inputs.dtype)
        except BaseException:
            inputs.store.release(self.keys)
            raise

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Every attention."""
        return isinstance(step, Attend)

    def _lay_out(self) -> Layout:
        rows = replace(cut(self.positions, self.queries), before=_MAKE_KEYS)
        return Layout(cut(self.inputs.source.shape[0], 1), rows, cut(1, 1))

    def workspace(self) -> dict[str, int]:
        """Rows of queries and what they attend to, scores, and blocks of keys and values."""
        channels = self.inputs.source.shape[3]
        block = min(self.positions, KEY_BLOCK)
        in_blocks = 2 * block * self._in_blocks
        terms = {
            "queries": 64 * self.queries * channels,
            "weights": 32 * channels**2,
            "scores": 4 * self.queries * in_blocks,
            "statistics": StatsTable.bytes(len(self.layout), (1, channels), self.inputs.dtype, self._counted),
        }
        if self.inputs.device.type != "cpu":
            scores, keys = (0, 0) if self._too_many else self._written_out
            terms["scores"] = max(self._wide.itemsize * self.queries * in_blocks, scores)
            terms["keys"] = max(3 * self.inputs.dtype.itemsize * block * channels, keys)  # joined of pieces
        return terms

    def held(self) -> dict[str, int]:
        return {"statistics": self._table.values.nbytes}

    def packed_bytes(self) -> int:
        return 0

    def scratch_bytes(self) -> int:
        return 0

    def flops(self, strip: Strip) -> int:
        channels = self.step.channels
        projection = 4 * self.positions * channels**2
        if strip.rows == _MAKE_KEYS:
            return projection
        return (self.step.flops(self.positions) - projection) // self.positions * strip.height

    @property
    def _counted(self) -> bool:
        """Whether strips are finished by a kernel, which writes their counts too."""
        return fused.can_finish(self.inputs.device, self.inputs.dtype)

    @property
    def _has_kernel(self) -> bool:
        """Whether torch attends on the device without writing scores out."""
        return self.inputs.device.type == "cuda" and self.inputs.dtype != torch.float64

    @property
    def _wide(self) -> torch.dtype:
        """Of what is written out."""
        return torch.promote_types(self.inputs.dtype, torch.float32)

    @property
    def _written_out(self) -> tuple[int, int]:
        """Bytes that a call of torch's attention over all keys needs: of scores, and of keys and values.

        Without a kernel there are scores and their softmax, and keys that are scaled; in half precision keys and values
        in single precision, too.
        """
        of_each = self._wide.itemsize * self.positions
        if self._has_kernel:
            return of_each * self.queries, 0
        copies = 3 if self.inputs.dtype.itemsize < 4 else 1
        return 2 * of_each * self.queries, copies * of_each * self.step.channels

    @property
    def _too_many(self) -> bool:
        """Whether all keys at once need too much memory, wherever they are."""
        limit = _SCORES_LIMIT if self._has_kernel else _STRIPS_WRITTEN_OUT * self.inputs.strip_bytes
        return sum(self._written_out) > limit

    @property
    def _in_blocks(self) -> bool:
        """Whether keys are taken block by block; by their place, which a dry run does not know."""
        if self.keys.band_count > 1:  # and the values' too, which are as many
            return True
        device = self.inputs.device.type
        elsewhere = (self.keys.devices | self.values.devices) - {device}
        return device != "cpu" and (self._too_many or bool(elsewhere))

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> None:
        return None

    def prepare(self, packed: None, each: Each = one_by_one) -> None:
        device = self.inputs.device
        dtype = self.inputs.dtype
        place = device if device.type in WITH_FLOAT64 else torch.device("cpu")
        self._projections = projections(self.step.weights, place)
        self._norm = [each.to(place).double() for each in self.inputs.coefficients or ()]
        strips = self.layout.strips()
        self._numbers = {strip: number for number, strip in enumerate(strips)}
        self._table = StatsTable(len(strips), (1, self.step.channels), dtype, device, self._counted)
        self.inputs.store.scratch.drop()  # what passes before have left is not needed here

    def close(self) -> None:
        self.inputs.store.release(self.keys)
        self.inputs.store.release(self.values)

    def compute(self, strip: Strip) -> int | None:
        """The number of the strip, whose statistics are in the table of all; None for keys and values."""
        item = strip.items[0]
        start, stop = strip.rows
        tokens, keys, values = (each.item(item) for each in (self.inputs.source.tokens(), self.keys, self.values))
        if strip.rows == _MAKE_KEYS:
            to_q, to_k, to_v = (self._of_normalized(layer, item) for layer in self._projections)
            for layer, place in ((to_k, keys), (to_v, values)):
                for begin, end in cut(self.positions, self.queries):
                    chunk = tokens.rows_on(self.inputs.device, begin, end).to(self.inputs.dtype)
                    place.write(begin, F.linear(self._normalized(chunk), *layer))
            self._query = to_q
            return None
        chunk = tokens.rows_on(self.inputs.device, start, stop).to(self.inputs.dtype)[0, :, 0]  # [Q, C]
        query = F.linear(self._normalized(chunk), *self._query)
        if self._in_blocks:
            attended = attend_in_blocks(query, keys, values)
        else:
            key = keys.bands[0][:, None, :, 0]
            value = values.bands[0][:, None, :, 0]
            attended = F.scaled_dot_product_attention(query[None, None], key, value)[0, 0]
        number = self._numbers[strip]
        self._finish(
            attended[None, :, None], chunk[None, :, None], self.inputs.target.tokens().item(item), start, number
        )
        return number

    def _finish(self, attended: Tensor, chunk: Tensor, target: FeatureMap, start: int, number: int) -> None:
        """Put what is attended to [1, Q, 1, C] and what it is added to into the target, and take the statistics."""
        pieces = target.pieces(start, start + attended.shape[1])
        whole = len(pieces) == 1 and pieces[0].device == attended.device
        out = pieces[0] if whole else attended
        row = self._table.row(number, attended.shape[1])
        if not fused.finish([StripPart(attended, chunk, out)], None, row):
            out = attended + chunk
            self._table.put(number, StripStats.of(out))
            whole = False
        if not whole:
            target.write(start, out)

    def _of_normalized(self, layer: Linear, item: int) -> Linear:
        """A projection of what `_normalized` leaves: a GroupNorm is part of its weights."""
        device = self.inputs.device
        dtype = self.inputs.dtype
        if self._norm:
            scale, shift = self._norm
            return folded(layer, scale[item], shift[item], device, dtype)
        weight, bias = (each.detach().to(dtype).to(device) for each in layer)  # there may be no float64 there
        return weight, bias

    def _normalized(self, tokens: Tensor) -> Tensor:
        norm = self.step.norm
        return norm.apply(tokens) if isinstance(norm, PositionNorm) else tokens

    def combine(self, parts: Sequence[int | None]) -> ChannelStats:
        strips = self.layout.strips()
        found = [(strips[number].items[0], number) for number in parts if number is not None]
        return per_item(self._table, found, self.inputs.source.shape[0])


def attend_in_blocks(query: Tensor, keys: FeatureMap, values: FeatureMap) -> Tensor:
    """Attention of queries [Q, C] over keys and values [1, N, 1, C] that may be on another device.

    The softmax is in float32, or in float64 if they are.
    """
    device = query.device
    dtype = query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    query = query * query.shape[1] ** -0.5
    softmax = OnlineSoftmax(len(query), query.to(wide))
    for span in cut(keys.shape[1], KEY_BLOCK):
        block_of_keys, here = (each.rows_on(device, *span)[0, :, 0] for each in (keys, values))
        scores = (query @ block_of_keys.t()).to(wide)
        softmax.add(scores, lambda weights, here=here: (weights.to(dtype) @ here).to(wide))
    return softmax.result().to(dtype)
