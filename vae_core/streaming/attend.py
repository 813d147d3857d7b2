"""The attention pass: keys and values of all positions, queries in chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attention, FusedAttnProcessor2_0
from . import winograd
from .maps import FeatureMap
from .stats import ChannelStats, StripStats, join_items, merge_all
from .store import MapStore

_QUERIES = 1024  # positions that attend at a time
_ACCELERATOR_QUERIES = 4096  # where there is more to be busy with
_KEY_BLOCK = 8192  # keys and values on the device at a time, where they lie elsewhere
_SCORES_LIMIT = 2**29  # bytes of a kernel's scores in single precision, beyond which keys are taken in blocks too
_PACKED_QUERIES = 256  # at most
_STRIPS_OF_SCORES = 8  # the scores of a chunk may take so many times what a strip does
_PACKED_KEYS = 8192  # keys and values in one packed block
_PACKED_LIMIT = 2**29  # bytes of packed keys and values beyond which they go to the store instead


def _output_layer(attention: Attention) -> nn.Linear:
    layer = attention.to_out[0]
    assert isinstance(layer, nn.Linear)
    return layer


def _projections(attention: Attention) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of query, key and value, from the layers that the attention's processor uses."""
    if isinstance(attention.processor, FusedAttnProcessor2_0):
        fused = attention.to_qkv
        return list(zip(fused.weight.detach().chunk(3), fused.bias.detach().chunk(3), strict=True))
    layers = (attention.to_q, attention.to_k, attention.to_v)
    return [(layer.weight.detach(), layer.bias.detach()) for layer in layers]


def _folded(
    layer: tuple[Tensor, Tensor], scale: Tensor, shift: Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The linear layer of x * scale + shift as one of x: weight and bias."""
    weight = layer[0].double().cpu()
    bias = layer[1].double().cpu() + weight @ shift
    return (weight * scale).to(device, dtype), bias.to(device, dtype)


class _AttentionKernel:
    """What both attention passes share."""

    def costs(self) -> list[int]:
        raise NotImplementedError

    def extent(self) -> tuple[int, int]:
        """How many strips there are, and what they cost together."""
        costs = self.costs()
        return len(costs), sum(costs)


class AttentionPass(_AttentionKernel):
    """target = source + project(attention(norm(source))), for maps [B, H, W, C]; may be in place.

    Queries, some positions at a time, see the keys and values of all positions, so this is exact. Its arithmetic
    grows with the square of the number of positions. Keys and values that do not fit on the device come to it block
    by block.
    """

    parallel = False
    fast = False

    def __init__(
        self,
        attention: Attention,
        source: FeatureMap,
        target: FeatureMap,
        coefficients: tuple[Tensor, Tensor] | None,
        store: MapStore,
        device: torch.device,
        strip_bytes: int,
    ) -> None:
        self.attention, self.source, self.target, self.store, self.device = attention, source, target, store, device
        batch, height, width, channels = source.shape
        self.positions = height * width
        self.coefficients = coefficients
        self.queries = _QUERIES
        if device.type != "cpu":  # as many as a strip has room for the scores of
            self.queries = max(64, min(_ACCELERATOR_QUERIES, strip_bytes // (8 * _KEY_BLOCK)))
        self.keys = store.allocate((batch, self.positions, 1, channels), source.dtype)
        try:
            self.values = store.allocate((batch, self.positions, 1, channels), source.dtype)
        except BaseException:
            store.release(self.keys)
            raise

    def prepare(self) -> None:
        out = _output_layer(self.attention)
        self.out_weight = out.weight.detach().to(self.device, self.source.dtype)
        self.out_bias = out.bias.detach().to(self.device, self.source.dtype)

    def workspace(self, workers: int) -> int:
        channels = self.source.shape[3]
        strips = 16 * self.queries * channels + 8 * channels**2
        block = min(self.positions, _KEY_BLOCK)
        in_blocks, whole = 2 * block * self._in_blocks, self.positions * (not self._too_many)
        if self.device.type == "cpu":
            return 4 * (strips + self.queries * in_blocks)
        return 4 * (strips + self.queries * max(in_blocks, whole) + 2 * block * channels)

    @property
    def _too_many(self) -> bool:
        """Whether the scores of all keys are too large, wherever keys lie."""
        return 4 * self.queries * self.positions > _SCORES_LIMIT

    @property
    def _in_blocks(self) -> bool:
        """Whether keys are taken block by block; by their place, which a rehearsal does not know."""
        if len(self.keys.bands) > 1:
            return True
        return self.device.type != "cpu" and (self._too_many or self.keys.devices != {self.device.type})

    def close(self) -> None:
        self.store.release(self.keys)
        self.store.release(self.values)

    def strips(self) -> list[tuple[int, int, int]]:
        """First what makes keys and values, (item, -1, -1), then queries, (item, start, stop)."""
        chunks = range(0, self.positions, self.queries)
        return [
            strip
            for item in range(self.source.shape[0])
            for strip in [
                (item, -1, -1),
                *((item, start, min(start + self.queries, self.positions)) for start in chunks),
            ]
        ]

    def costs(self) -> list[int]:
        """Arithmetic of each strip."""
        channels = self.source.shape[3]
        whole = attention_cost(channels, self.positions)
        projection = 4 * self.positions * channels**2
        per_query = (whole - projection) // self.positions
        return [projection if start < 0 else per_query * (stop - start) for _, start, stop in self.strips()]

    def compute(self, strip: tuple[int, int, int]) -> tuple[int, StripStats] | None:
        item, start, stop = strip
        dtype = self.source.dtype
        tokens, keys, values = (each.item(item) for each in (self.source.tokens(), self.keys, self.values))
        to_q, to_k, to_v = _projections(self.attention)
        assert self.coefficients is not None
        scale, shift = self.coefficients[0][item], self.coefficients[1][item]
        if start < 0:
            for layer, place in ((to_k, keys), (to_v, values)):
                weight, bias = _folded(layer, scale, shift, self.device, dtype)
                for begin in range(0, self.positions, self.queries):
                    chunk = tokens.rows(begin, min(begin + self.queries, self.positions)).to(self.device)
                    place.write(begin, F.linear(chunk, weight, bias))
            self._query = _folded(to_q, scale, shift, self.device, dtype)
            return None
        chunk = tokens.rows(start, stop).to(self.device)[0, :, 0]  # [Q, C]
        query = F.linear(chunk, *self._query)
        if self._in_blocks:
            attended = attend_in_blocks(query, keys, values)
        else:
            key, value = keys.bands[0][:, None, :, 0], values.bands[0][:, None, :, 0]
            attended = F.scaled_dot_product_attention(query[None, None], key, value)[0, 0]
        result = F.linear(attended, self.out_weight, self.out_bias) + chunk
        self.target.tokens().item(item).write(start, result[None, :, None])
        return item, StripStats.of(result[None, None])

    def combine(self, parts: list[tuple[int, StripStats] | None]) -> ChannelStats:
        return _per_item([part for part in parts if part is not None], self.source.shape[0])


class _OnlineSoftmax:
    """softmax(scores) @ values, gathered block of keys by block of keys for rows of queries.

    Source: Milakov & Gimelshein, Online normalizer calculation for softmax, 2018.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        self.attended: Tensor | float = 0.0
        self.total = like.new_zeros(rows, 1)
        self.largest = like.new_full((rows, 1), -torch.inf)

    def add(self, scores: Tensor, weigh: Callable[[Tensor], Tensor]) -> None:
        """Take in the scores [rows, keys] of a block, which are overwritten; `weigh` multiplies by its values."""
        peak = torch.maximum(self.largest, scores.amax(dim=1, keepdim=True))
        shrink = torch.exp(self.largest - peak)
        scores.sub_(peak).exp_()
        self.total.mul_(shrink).add_(scores.sum(dim=1, keepdim=True))
        self.attended = weigh(scores).add_(self.attended * shrink)
        self.largest = peak

    def result(self) -> Tensor:
        assert isinstance(self.attended, Tensor)
        return self.attended.div_(self.total)


def attend_in_blocks(query: Tensor, keys: FeatureMap, values: FeatureMap) -> Tensor:
    """Attention of queries [Q, C] over keys and values [1, N, 1, C] that may lie elsewhere.

    The softmax is in float32, or in float64 if they are.
    """
    device, dtype = query.device, query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    query = query * query.shape[1] ** -0.5
    softmax = _OnlineSoftmax(len(query), query.to(wide))
    positions = keys.shape[1]
    for start in range(0, positions, _KEY_BLOCK):
        span = start, min(start + _KEY_BLOCK, positions)
        block_of_keys, here = (each.rows(*span)[0, :, 0].to(device) for each in (keys, values))
        scores = (query @ block_of_keys.t()).to(wide)
        softmax.add(scores, lambda weights, here=here: (weights.to(dtype) @ here).to(wide))
    return softmax.result().to(dtype)


class PackedAttentionPass(_AttentionKernel):
    """The same for float32 on a CPU: products of oneDNN with keys and values packed as weights, on several threads."""

    parallel = True
    fast = False

    def __init__(
        self,
        attention: Attention,
        source: FeatureMap,
        target: FeatureMap,
        coefficients: tuple[Tensor, Tensor] | None,
        strip_bytes: int,
    ) -> None:
        self.attention, self.source, self.target, self.coefficients = attention, source, target, coefficients
        self.positions = source.shape[1] * source.shape[2]
        self.channels = source.shape[3]
        block = min(_PACKED_KEYS, self.positions)
        self.scores_per_query = block * (2 if block % winograd.VECTOR else 1)  # a copy to fill vectors up
        self.queries = max(
            8, min(_PACKED_QUERIES, self.positions, _STRIPS_OF_SCORES * strip_bytes // (12 * self.scores_per_query))
        )

    @staticmethod
    def suits(source: FeatureMap, device: torch.device) -> bool:
        """Whether this can take a map, and its keys and values are few enough to be held."""
        held = 2 * source.shape.numel() * source.dtype.itemsize
        cpu = device.type == "cpu" and source.dtype == torch.float32
        return cpu and winograd.products_available() and held <= _PACKED_LIMIT

    def prepare(self) -> None:
        assert self.coefficients is not None
        self.items = [
            _PackedItem(self.attention, self.source.tokens().item(item), scale, shift, self.queries)
            for item, (scale, shift) in enumerate(zip(*self.coefficients, strict=True))
        ]

    def workspace(self, workers: int) -> int:
        packed = 2 * self.source.shape.numel() + 2 * self.channels**2
        # To pack them, a block of them as it is and laid out anew, and the projections; allocators keep that.
        packing = 2 * min(_PACKED_KEYS, self.positions) * self.channels + 4 * self.channels**2
        scores = self.queries * (2 * self.scores_per_query + 6 * self.channels)
        return 4 * (packed + packing + workers * scores)

    def strips(self) -> list[tuple[int, int, int]]:
        """(item, start, stop) of the queries."""
        chunks = range(0, self.positions, self.queries)
        stops = [(start, min(start + self.queries, self.positions)) for start in chunks]
        return [(item, *chunk) for item in range(self.source.shape[0]) for chunk in stops]

    def costs(self) -> list[int]:
        whole = attention_cost(self.channels, self.positions)
        return [whole * (stop - start) // self.positions for _, start, stop in self.strips()]

    def compute(self, strip: tuple[int, int, int]) -> tuple[int, StripStats]:
        item, start, stop = strip
        tokens = self.source.tokens().item(item).rows(start, stop)[0, :, 0]
        result = self.items[item](tokens)
        self.target.tokens().item(item).write(start, result[None, :, None])
        return item, StripStats.of(result[None, None])

    def combine(self, parts: list[tuple[int, StripStats]]) -> ChannelStats:
        return _per_item(parts, self.source.shape[0])

    def close(self) -> None:
        self.items = []


class _PackedItem:
    """The attention of one map, of tokens [1, N, 1, C], for any of its positions [N, C]."""

    def __init__(self, attention: Attention, tokens: FeatureMap, scale: Tensor, shift: Tensor, queries: int) -> None:
        cpu, dtype = torch.device("cpu"), tokens.dtype
        _, positions, _, channels = tokens.shape
        to_q, to_k, to_v = _projections(attention)
        weight, bias = _folded(to_q, scale, shift, cpu, dtype)
        self.query = _linear(weight * channels**-0.5, queries), bias * channels**-0.5
        # Keys differ from one another by their weights alone: a bias common to all of them cancels in the softmax.
        key_weight, _ = _folded(to_k, scale, shift, cpu, dtype)
        value_weight, value_bias = _folded(to_v, scale, shift, cpu, dtype)
        out = _output_layer(attention)
        self.out = _linear(out.weight.detach().to(dtype), queries), out.bias.detach().to(dtype)
        self.blocks = []
        for start in range(0, positions, _PACKED_KEYS):
            block = tokens.rows(start, min(start + _PACKED_KEYS, positions))[0, :, 0]
            keys = _linear(F.linear(block, key_weight), queries)
            values = _linear(F.linear(block, value_weight, value_bias).t(), queries)
            self.blocks.append((keys, values))

    def __call__(self, tokens: Tensor) -> Tensor:
        query = _apply(tokens, *self.query)
        softmax = _OnlineSoftmax(len(tokens), tokens)
        for keys, values in self.blocks:
            softmax.add(_apply(query, keys), lambda weights, values=values: _apply(weights, values))
        return _apply(softmax.result(), *self.out) + tokens


def _linear(weight: Tensor, rows: int) -> winograd.PackedProducts:
    """[K, C], packed."""
    return winograd.PackedProducts.pack(weight[None], rows)


def _apply(x: Tensor, products: winograd.PackedProducts, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias for [rows, C]."""
    x = winograd.padded(x, products.in_channels - x.shape[1])
    result = products(x[:, None])[:, 0]
    return result if bias is None else result.add_(bias)


def _per_item(parts: list[tuple[int, StripStats]], items: int) -> ChannelStats:
    return join_items(
        [merge_all([stats.finished() for item, stats in parts if item == index]) for index in range(items)]
    )


def attention_cost(channels: int, positions: int) -> int:
    """Multiplications and additions of an attention over a map of so many positions: four projections, two products."""
    return 8 * positions * channels**2 + 4 * positions**2 * channels
