"""The attention pass: keys and values of all positions, queries in chunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attention
from .stats import ChannelStats, merge_all
from .store import MapStore

_QUERIES = 1024  # positions that attend at a time


def _folded(layer: nn.Linear, scale: Tensor, shift: Tensor, device: torch.device, dtype: torch.dtype):
    """The linear layer of x * scale + shift as one of x: weight and bias."""
    weight = layer.weight.detach().double().cpu()
    bias = layer.bias.detach().double().cpu() + weight @ shift
    return (weight * scale).to(device, dtype), bias.to(device, dtype)


class AttentionPass:
    """target = source + project(attention(norm(source))), for maps [B, H, W, C]; may be in place.

    Queries, `_QUERIES` positions at a time, see the keys and values of all positions, so this is exact. Its
    arithmetic grows with the square of the number of positions.
    """

    parallel = False
    fast = False

    def __init__(
        self,
        attention: Attention,
        source: Tensor,
        target: Tensor,
        coefficients: tuple[Tensor, Tensor] | None,
        store: MapStore,
        device: torch.device,
    ) -> None:
        self.attention, self.source, self.target, self.store, self.device = attention, source, target, store, device
        batch, height, width, channels = source.shape
        self.positions = height * width
        self.coefficients = coefficients
        self.keys = store.allocate((batch, self.positions, channels), source.dtype)
        self.values = store.allocate((batch, self.positions, channels), source.dtype)

    def prepare(self) -> None:
        out = self.attention.to_out[0]
        self.out_weight = out.weight.detach().to(self.device, self.source.dtype)
        self.out_bias = out.bias.detach().to(self.device, self.source.dtype)

    def workspace(self, workers: int) -> int:
        channels = self.source.shape[3]
        return (16 * _QUERIES * channels + 8 * channels**2) * 4

    def close(self) -> None:
        self.store.release(self.keys)
        self.store.release(self.values)

    def strips(self) -> list[tuple[int, int, int]]:
        """First what makes keys and values, (item, -1, -1), then queries, (item, start, stop)."""
        chunks = range(0, self.positions, _QUERIES)
        return [
            strip
            for item in range(self.source.shape[0])
            for strip in [(item, -1, -1), *((item, start, min(start + _QUERIES, self.positions)) for start in chunks)]
        ]

    def costs(self) -> list[int]:
        """Arithmetic of each strip."""
        channels = self.source.shape[3]
        whole = attention_cost(channels, self.positions)
        projection = 4 * self.positions * channels**2
        per_query = (whole - projection) // self.positions
        return [projection if start < 0 else per_query * (stop - start) for _, start, stop in self.strips()]

    def compute(self, strip: tuple[int, int, int]) -> tuple[int, ChannelStats] | None:
        item, start, stop = strip
        channels = self.source.shape[3]
        tokens = self.source[item].reshape(-1, channels)
        layers = self.attention
        assert self.coefficients is not None
        scale, shift = self.coefficients[0][item], self.coefficients[1][item]
        if start < 0:
            for layer, place in ((layers.to_k, self.keys), (layers.to_v, self.values)):
                weight, bias = _folded(layer, scale, shift, self.device, tokens.dtype)
                for begin in range(0, self.positions, _QUERIES):
                    chunk = tokens[begin : begin + _QUERIES].to(self.device)
                    place[item, begin : begin + _QUERIES] = F.linear(chunk, weight, bias)
            self._query = _folded(layers.to_q, scale, shift, self.device, tokens.dtype)
            return None
        chunk = tokens[start:stop].to(self.device)
        query = F.linear(chunk, *self._query)
        key, value = self.keys[item].to(self.device), self.values[item].to(self.device)
        attended = F.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])[0, 0]
        result = F.linear(attended, self.out_weight, self.out_bias) + chunk
        self.target[item].view(-1, channels)[start:stop] = result
        return item, ChannelStats.of(result[None, None])

    def combine(self, parts: list[tuple[int, ChannelStats] | None]) -> ChannelStats:
        per_item = [
            merge_all([part[1] for part in parts if part is not None and part[0] == item])
            for item in range(self.source.shape[0])
        ]
        mean, m2 = (torch.cat([getattr(stats, name) for stats in per_item]) for name in ("mean", "m2"))
        return ChannelStats(per_item[0].count, mean, m2)


def attention_cost(channels: int, positions: int) -> int:
    """Multiplications and additions of an attention over a map of so many positions: four projections, two products."""
    return 8 * positions * channels**2 + 4 * positions**2 * channels
