"""Attention in float32 on a CPU: products with keys and values packed as weights, on several threads.

The products are oneDNN's, or, where the precision of the pass is bfloat16, compiled ones of what is rounded to that;
scores and sums are in float32 either way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .internals import products_available
from .kernel import Each, Layout, PassInputs, Strip, cut, one_by_one
from .maps import FeatureMap
from .products import VECTOR, PackedProducts, padded
from .program import Attend, AttentionWeights, Pass, PositionNorm
from .rounded_products import RoundedProducts
from .softmax import OnlineSoftmax, folded, per_item, projections
from .stats import ChannelStats, StatsTable, StripStats

_CPU = torch.device("cpu")
_DTYPE = torch.float32
_QUERIES = 256  # at most
_STRIPS_OF_SCORES = 8  # the scores of a chunk may take so many times what a strip does
PACKED_KEYS = 8192  # keys and values in one packed block
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
        self.queries = max(8, min(_QUERIES, self.positions, room))
        self.layout = inputs.layout or self._lay_out()
        self._items: list[_PackedItem] = []

    @staticmethod
    def suits(step: Pass, source: FeatureMap, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this kernel can compute a pass, and its keys and values are few enough to be held."""
        if not isinstance(step, Attend) or isinstance(step.norm, PositionNorm):
            return False
        if device.type != "cpu" or dtype != torch.float32 or not products_available():
            return False
        return 2 * source.shape.numel() * dtype.itemsize <= _PACKED_LIMIT

    def _lay_out(self) -> Layout:
        return Layout(cut(self.inputs.source.shape[0], 1), cut(self.positions, self.queries), cut(1, 1))

    def workspace(self) -> dict[str, int]:
        """Keys, values and projections of each item, what they are packed from, and the scores of each thread."""
        channels = self.step.channels
        copies = 2 if self.inputs.map_dtype == _DTYPE else 3
        return {
            "statistics": StatsTable.bytes(len(self.layout), (1, channels), _DTYPE),
            "keys": self.inputs.source.shape[0] * self._bytes_of_an_item(),
            # A block of them as it is and laid out again, and the projections; allocators keep that.
            "packing": 4 * (copies * min(PACKED_KEYS, self.positions) * channels + 4 * channels**2),
            "scores": 4 * self.inputs.workers * self.queries * (2 * self.scores_per_query + 6 * channels),
        }

    def _bytes_of_an_item(self) -> int:
        """Of its keys and values, and what makes queries, packed."""
        channels = self.step.channels
        if self.inputs.dtype == _DTYPE:
            return 8 * self.positions * channels + 4 * channels**2
        keys = [stop - start for start, stop in cut(self.positions, PACKED_KEYS)]
        matrices = [(channels, channels), *((each, channels) for each in keys), *((channels, each) for each in keys)]
        return sum(RoundedProducts.bytes(*shape) for shape in matrices)

    def packed_bytes(self) -> int:
        return 0

    def flops(self, strip: Strip) -> int:
        return self.step.flops(self.positions) * strip.height // self.positions

    def pack(self, each: Each = one_by_one) -> None:
        return None

    def prepare(self, packed: None) -> None:
        assert self.inputs.coefficients is not None
        strips = self.layout.strips()
        self._numbers = {strip: number for number, strip in enumerate(strips)}
        self._table = StatsTable(len(strips), (1, self.step.channels), _DTYPE, _CPU)
        self.inputs.store.scratch.drop()  # what passes before have left is not needed here
        self._items = [
            _PackedItem(
                self.step.weights, self.inputs.source.tokens().item(item), scale, shift, self.queries, self.inputs.dtype
            )
            for item, (scale, shift) in enumerate(zip(*map(Tensor.double, self.inputs.coefficients), strict=True))
        ]

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
        queries: int,
        dtype: torch.dtype,
    ) -> None:
        pack = RoundedProducts.pack if dtype == torch.bfloat16 else functools.partial(_packed, rows=queries)
        _, positions, _, channels = tokens.shape
        to_q, to_k, to_v = projections(weights, _CPU)
        weight, bias = folded(to_q, scale, shift, _CPU, _DTYPE)
        self.query = pack(weight * channels**-0.5), bias * channels**-0.5
        # Keys differ from one another by their weights alone: a bias common to all of them cancels in the softmax.
        key_weight, _ = folded(to_k, scale, shift, _CPU, _DTYPE)
        value_weight, value_bias = folded(to_v, scale, shift, _CPU, _DTYPE)
        self.blocks = []
        for span in cut(positions, PACKED_KEYS):
            block = tokens.rows(*span)[0, :, 0].to(_DTYPE)
            keys = pack(F.linear(block, key_weight))
            values = pack(F.linear(block, value_weight, value_bias).t())
            self.blocks.append((keys, values))

    def __call__(self, tokens: Tensor) -> Tensor:
        query = _apply(tokens, *self.query)
        softmax = OnlineSoftmax(len(tokens), tokens)
        for keys, values in self.blocks:
            softmax.add(_apply(query, keys), lambda weights, values=values: _apply(weights, values))
        return softmax.result().add_(tokens)


def _packed(weight: Tensor, rows: int) -> PackedProducts:
    """[K, C], packed by oneDNN."""
    return PackedProducts.pack(weight[None], rows)


def _apply(x: Tensor, products: PackedProducts | RoundedProducts, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias for [rows, C]."""
    x = padded(x, products.in_channels - x.shape[1])
    result = products(x[:, None])[:, 0]
    return result if bias is None else result.add_(bias)
