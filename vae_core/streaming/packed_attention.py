"""Attention in float32 on a CPU: products with keys and values packed as weights, on several threads.

The products are compiled ones, or without numba oneDNN's. Where the precision of the pass is bfloat16, what is
multiplied is rounded to that; scores and sums are in float32 either way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..units import round_up
from . import winograd
from .compiled_products import CompiledProducts
from .compiled_softmax import CompiledSoftmax
from .internals import products_available
from .kernel import Each, Layout, Memory, PassInputs, Span, Spans, Strip, cut, one_by_one
from .maps import FeatureMap
from .products import VECTOR, PackedProducts, padded, whole_vectors
from .program import Attend, AttentionWeights, Pass, PositionNorm
from .scratch import fresh
from .softmax import OnlineSoftmax, folded, per_item, projections
from .stats import ChannelStats, StatsTable, StripStats

_CPU = torch.device("cpu")
_DTYPE = torch.float32
_QUERIES = 256  # at most
_STRIPS_OF_SCORES = 8  # the scores of a chunk may take so many times what a strip does
PACKED_KEYS = 1024  # keys and values in one packed block, whose scores stay in the second cache
_PACKED_LIMIT = 2**29  # bytes of packed keys and values beyond which they go to the store instead


class PackedAttention:
    """As StoredAttention, with keys and values beside the maps. A strip's rows are positions."""

    parallel: ClassVar[bool] = True
    fast: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False

    def __init__(self, inputs: PassInputs) -> None:
        assert isinstance(inputs.step, Attend)
        self.inputs = inputs
        self.step = inputs.step
        self.positions = inputs.source.shape[1] * inputs.source.shape[2]
        block = min(PACKED_KEYS, self.positions)
        self.scores_per_query = block * (2 if block % VECTOR else 1)  # a copy to fill vectors up
        room = _STRIPS_OF_SCORES * inputs.strip_bytes // (12 * self.scores_per_query)
        self.queries = self._even(max(8, min(_QUERIES, self.positions, room)))
        self.layout = inputs.layout or self._lay_out()
        self._items: list[_PackedItem] = []

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this kernel can compute a pass, and its keys and values are few enough to be held."""
        if not isinstance(step, Attend) or isinstance(step.norm, PositionNorm):
            return False
        if device.type != "cpu" or dtype != torch.float32 or not (winograd.compiled() or products_available()):
            return False
        return 2 * source.shape.numel() * dtype.itemsize <= _PACKED_LIMIT

    def _even(self, most: int) -> int:
        """Queries of a strip, up to `most`: so many that no worker has more to do, and no rows of products are lost."""
        rows = winograd.jit().ROWS if winograd.compiled() else 1
        workers = self.inputs.workers
        counts = range(round_up(-(-self.positions // most), workers), self.positions // rows, workers)
        found = (round_up(-(-self.positions // count), rows) for count in counts)
        return next((each for each in found if each <= most), most)

    def _lay_out(self) -> Layout:
        return Layout(cut(self.inputs.source.shape[0], 1), cut(self.positions, self.queries), cut(1, 1))

    def workspace(self) -> dict[str, int]:
        """Keys, values and projections of each item, what they are packed from, and the scores of each thread."""
        channels = self.step.channels
        block = min(PACKED_KEYS, self.positions)
        copies = min(self.inputs.workers, len(self._spans)) * (4 if self.inputs.map_dtype == _DTYPE else 5)
        return {
            "statistics": StatsTable.bytes(len(self.layout), (1, channels), _DTYPE),
            "keys": self.inputs.source.shape[0] * self._bytes_of_an_item(),
            # Of each thread a block as it is and laid out anew, and the projections; allocators keep that.
            "packing": 4 * (copies * block * channels + 5 * channels**2),
            "scores": 4 * self.inputs.workers * self.queries * (2 * self.scores_per_query + 6 * channels),
        }

    @property
    def _spans(self) -> Spans:
        """Of keys in a block."""
        return cut(self.positions, PACKED_KEYS)

    def _bytes_of_an_item(self) -> int:
        """Of its keys and values, and what makes queries, packed."""
        channels = self.step.channels
        keys = [stop - start for start, stop in self._spans]
        matrices = [(channels, channels), *((each, channels) for each in keys), *((channels, each) for each in keys)]
        return sum(_bytes(*shape, self.inputs.dtype) for shape in matrices)

    def held(self) -> dict[str, int]:
        return {"statistics": self._table.values.nbytes, "keys": sum(item.bytes for item in self._items)}

    def packed_bytes(self) -> int:
        return 0

    def scratch_bytes(self) -> int:
        return 0

    def flops(self, strip: Strip) -> int:
        return self.step.flops(self.positions) * strip.height // self.positions

    def pack(self, each: Each = one_by_one, memory: Memory = fresh) -> None:
        return None

    def prepare(self, packed: None, each: Each = one_by_one) -> None:
        assert self.inputs.coefficients is not None
        strips = self.layout.strips()
        self._numbers = {strip: number for number, strip in enumerate(strips)}
        self._table = StatsTable(len(strips), (1, self.step.channels), _DTYPE, _CPU)
        self.inputs.store.scratch.drop()  # what passes before have left is not needed here
        spans = list(self._spans)
        self._items = [
            _PackedItem(
                self.step.weights, self.inputs.source.tokens().item(item), scale, shift, self.inputs.dtype, spans
            )
            for item, (scale, shift) in enumerate(zip(*map(Tensor.double, self.inputs.coefficients), strict=True))
        ]
        for item in self._items:
            item.prepare(self.queries, each)

    def compute(self, strip: Strip) -> int:
        """The number of the strip, whose statistics are in the table of all."""
        item = strip.items[0]
        start, stop = strip.rows
        tokens = self.inputs.source.tokens().item(item).rows(start, stop)[0, :, 0].to(_DTYPE)
        result = self._items[item](tokens)
        self.inputs.target.tokens().item(item).write(start, result[None, :, None])
        self._table.put(self._numbers[strip], StripStats.of(result[None, None]))
        return self._numbers[strip]

    def combine(self, parts: Sequence[int]) -> ChannelStats:
        strips = self.layout.strips()
        found = [(strips[number].items[0], number) for number in parts]
        return per_item(self._table, found, self.inputs.source.shape[0])

    def close(self) -> None:
        self._items = []


class _PackedItem:
    """The attention of one map, of tokens [1, N, 1, C], for any of its positions [N, C]."""

    def __init__(
        self,
        weights: AttentionWeights,
        tokens: FeatureMap,
        scale: Tensor,
        shift: Tensor,
        dtype: torch.dtype,
        spans: Sequence[Span],
    ) -> None:
        self.tokens = tokens
        self.dtype = dtype
        self.spans = spans
        self.blocks: list[tuple[_Products, _Products]] = []
        to_q, to_k, to_v = (folded(each, scale, shift, _CPU, _DTYPE) for each in projections(weights, _CPU))
        root = tokens.shape[3] ** -0.5
        self._to_query = to_q[0] * root, to_q[1] * root
        # Keys differ from one another by their weights alone: a bias common to all of them cancels in the softmax.
        self._to_key = to_k[0]
        self._to_value = to_v

    def prepare(self, queries: int, each: Each) -> None:
        """Project and pack keys and values, for so many queries at a time."""
        weight, bias = self._to_query
        self.query = _packed(weight, queries, self.dtype), bias
        most = max(stop - start for start, stop in self.spans)
        to_key, to_value = (_packed(weight, most, self.dtype) for weight in (self._to_key, self._to_value[0]))
        packed: list[Any] = [None] * 2 * len(self.spans)  # keys and values of a block

        def pack(number: int) -> None:
            block = self.tokens.rows(*self.spans[number // 2])[0, :, 0].to(self.dtype)
            if number % 2:
                packed[number] = _packed_matrix(_apply(block, to_value, self._to_value[1]), queries, self.dtype)
            else:
                packed[number] = _packed(_apply(block, to_key), queries, self.dtype)

        each(pack, len(packed))
        self.blocks = list(zip(packed[::2], packed[1::2], strict=True))

    @property
    def bytes(self) -> int:
        """Of all that is packed."""
        packed = (each.weight for each in (self.query[0], *itertools.chain(*self.blocks)))
        return sum(math.prod(each.shape) * each.itemsize for each in packed)  # oneDNN's have no `nbytes`

    def __call__(self, tokens: Tensor) -> Tensor:
        query = _apply(tokens, *self.query)
        softmax = (
            CompiledSoftmax(len(tokens), self.dtype) if winograd.compiled() else OnlineSoftmax(len(tokens), tokens)
        )
        for keys, values in self.blocks:
            softmax.add(_apply(query, keys), lambda weights, values=values: _apply(weights, values))
        return softmax.result().add_(tokens)


_Products = PackedProducts | CompiledProducts


def _packed(weight: Tensor, rows: int, dtype: torch.dtype) -> _Products:
    """For x @ weight^T of up to so many rows, in a precision."""
    return CompiledProducts.pack(weight, dtype) if winograd.compiled() else PackedProducts.pack(weight[None], rows)


def _packed_matrix(matrix: Tensor, rows: int, dtype: torch.dtype) -> _Products:
    """For x @ matrix."""
    if winograd.compiled():
        return CompiledProducts.pack_matrix(matrix, dtype)
    return PackedProducts.pack(matrix.t()[None], rows)


def _bytes(out_channels: int, in_channels: int, dtype: torch.dtype) -> int:
    """Of a matrix that is packed."""
    if winograd.compiled():
        return CompiledProducts.bytes(out_channels, in_channels, dtype)
    return dtype.itemsize * out_channels * whole_vectors(in_channels)


def _apply(x: Tensor, products: _Products, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias for [rows, C]."""
    x = padded(x, products.in_channels - x.shape[1])
    result = products(x[:, None])[:, 0]
    return result if bias is None else result.add_(bias)
