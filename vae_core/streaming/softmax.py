"""What both kernels of attention are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .program import AttentionWeights, Linear
from .stats import ChannelStats, StatsTable, join_items


class OnlineSoftmax:
    """softmax(scores) @ values for rows of queries, from one block of keys after another.

    Source: Milakov & Gimelshein, Online normalizer calculation for softmax, 2018.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        self._attended = like.new_zeros(())
        self._total = like.new_zeros(rows, 1)
        self._largest = like.new_full((rows, 1), -torch.inf)

    def add(self, scores: Tensor, weigh: Callable[[Tensor], Tensor]) -> None:
        """Take in the scores [rows, keys] of a block, which are overwritten; `weigh` multiplies by its values."""
        peak = torch.maximum(self._largest, scores.amax(dim=1, keepdim=True))
        shrink = torch.exp(self._largest - peak)
        scores.sub_(peak).exp_()
        self._total.mul_(shrink).add_(scores.sum(dim=1, keepdim=True))
        self._attended = weigh(scores).addcmul_(self._attended, shrink)
        self._largest = peak

    def result(self) -> Tensor:
        return self._attended.div_(self._total)


def folded(layer: Linear, scale: Tensor, shift: Tensor, device: torch.device, dtype: torch.dtype) -> Linear:
    """The linear layer of x * scale + shift as one of x: weight and bias. scale and shift [C] are in float64."""
    weight, bias = (each.detach().to(scale.device).double() for each in layer)
    bias = bias + weight @ shift
    return (weight * scale).to(dtype).to(device), bias.to(dtype).to(device)  # there may be no float64 there


def projections(weights: AttentionWeights, place: torch.device) -> tuple[Linear, Linear, Linear]:
    """Of queries, keys and values, where the output's projection is part of the values'.

    The weights of a softmax add up to one, so what is attended to may be projected, bias and all, before it is summed.

    Args:
        place: a device with float64.
    """
    to_q, to_k, to_v = weights.query_key_value()
    (inner, inner_bias), (outer, outer_bias) = (
        [each.detach().to(place).double() for each in layer] for layer in (to_v, weights.output())
    )
    return to_q, to_k, (outer @ inner, outer @ inner_bias + outer_bias)


def per_item(table: StatsTable, parts: Sequence[tuple[int, int]], items: int) -> ChannelStats:
    """The statistics of a batch, from a table of those of its strips: pairs of an item and a strip, in their order."""
    return join_items([table.merged([strip for item, strip in parts if item == index]) for index in range(items)])
