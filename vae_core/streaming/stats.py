"""Statistics of a feature map, gathered strip by strip, and the GroupNorm made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import fused
from .numba_functions import KINDS, as_array, jit
from .pages import pages


@dataclass
class ChannelStats:
    """Count, mean and sum of squared deviations (M2) of every channel of every batch item, in float64.

    They are on the CPU, or where a device has float64 on it, so that nothing waits for it from pass to pass.

    Attributes:
        count: values per channel so far.
        mean, m2: [B, C].
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def from_sums(cls, count: int, total: Tensor, squares: Tensor) -> ChannelStats:
        """Of sums of values and of squares in float64, [B, C]."""
        mean = total / count
        return cls(count, mean, (squares - total * mean).clamp_min_(0.0))

    @property
    def on_cpu(self) -> bool:
        """Whether to look at them is not to wait for a device."""
        return self.mean.device.type == "cpu"

    def finite(self) -> Tensor:
        """Whether no value was NaN or infinite, or too large to be squared; one truth value, where they are."""
        return torch.isfinite(self.mean).all() & torch.isfinite(self.m2).all()

    def merge(self, other: ChannelStats) -> ChannelStats:
        """The statistics of both sets of values (Chan, Golub & LeVeque, 1979, eq. 2.1)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return ChannelStats(count, mean, m2)

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """GroupNorm as one scale and one shift per channel: norm(x) = x * scale + shift, each [B, C] in float64."""
        groups = norm.num_groups
        per_channel = self.mean.unflatten(1, (groups, -1))
        mean = per_channel.mean(dim=2, keepdim=True)
        # The variance of a group: within its channels, plus that of the channels' means.
        variance = (self.m2.unflatten(1, (groups, -1)) / self.count + (per_channel - mean).square()).mean(2, True)
        inverse = torch.rsqrt(variance + norm.eps)
        weight, bias = (
            each.detach().to(self.mean.device).double().unflatten(0, (groups, -1)) for each in (norm.weight, norm.bias)
        )
        scale = weight * inverse
        return scale.flatten(1), (bias - mean * scale).flatten(1)


class TableStats:
    """The statistics of all strips of a table whose strips have counts, left where they are.

    Norms come from them there, so that nothing waits for the device from pass to pass.
    """

    on_cpu = False

    def __init__(self, table: StatsTable) -> None:
        self._table = table

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """GroupNorm as one scale and one shift per channel, each [B, C] in float32."""
        return fused.norm(self._table.values, norm)

    def finite(self) -> Tensor:
        """As that of `ChannelStats`."""
        values = self._table.values
        return torch.isfinite(values).all()

    @property
    def mean(self) -> Tensor:
        """[B, C] of all strips."""
        return self._table.merged(range(len(self._table.values))).mean


WITH_FLOAT64 = ("cuda",)  # devices that compute in it, slowly or not

# Added to a variance before its root is taken and inverted, and taken off again; it only keeps the root from zero.
_TINY = 1e-12


class StripStats(NamedTuple):
    """Of one strip, where it was computed: `finished` waits for the device, which the next strip need not.

    Attributes:
        count: values per channel.
        mean: about the true mean.
        rest: sum of deviations from `mean`, which is not quite zero.
        squares: sum of their squares. All three are [B, C].
    """

    count: int
    mean: Tensor
    rest: Tensor
    squares: Tensor

    @classmethod
    def of(cls, strip: Tensor, memory: Tensor | None = None) -> StripStats:
        """Of a strip [B, H, W, C] of any dtype: in float32, or wider if it is, about the strip's own mean.

        Args:
            memory: [B, H * W, C] of that type, for deviations on a CPU; None for some from torch.
        """
        count = strip.shape[1] * strip.shape[2]
        if (found := fused.measured(strip)) is not None:
            return cls(count, *found)
        if strip.device.type == "cuda":
            return cls(count, *_measured_on_cuda(strip))
        if strip.device.type == "cpu" and is_measured(strip.dtype, strip.shape[3]):
            return cls(count, *_measured(strip))
        # Sums are products with a vector of ones, which on a CPU take a fraction of the time of a reduction over rows.
        values = strip.flatten(1, 2).to(torch.promote_types(strip.dtype, torch.float32))
        ones = values.new_ones(1, 1, count).expand(len(values), 1, count)
        mean = (ones @ values) / count
        deviations = torch.sub(values, mean, out=memory)
        rest = (ones @ deviations)[:, 0]
        return cls(count, mean[:, 0], rest, (ones @ deviations.square_())[:, 0])

    def finished(self) -> ChannelStats:
        """In float64 on the CPU."""
        mean, rest, squares = (each.cpu().double() for each in self[1:])
        return ChannelStats(self.count, mean + rest / self.count, (squares - rest.square() / self.count).clamp_min_(0))


class StatsTable:
    """Statistics of all strips of a pass, in one piece of memory.

    As tensors of their own they would stay between the temporaries of strips, which the C library could then neither
    give back nor use again.

    Args:
        strips: how many.
        shape: [B, C] of each.
        dtype: of strips; statistics are in float32, or wider if that is.
        device: where they are until the pass is over.
        counted: a strip has a fourth row, its counts, as `fused.finish` writes it.
    """

    def __init__(
        self, strips: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, counted: bool = False
    ) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self._counts = [0] * strips
        rows = 3 + counted
        numbers = rows * strips * shape[0] * shape[1]
        if device.type == "cpu":
            memory = pages(numbers * wide.itemsize, "statistics").view(wide)
        else:
            memory = torch.empty(numbers, dtype=wide, device=device)
        self.values = memory.view(strips, rows, *shape)

    @staticmethod
    def bytes(strips: int, shape: tuple[int, int], dtype: torch.dtype, counted: bool = False) -> int:
        """What a table takes."""
        return (3 + counted) * strips * shape[0] * shape[1] * torch.promote_types(dtype, torch.float32).itemsize

    def put(self, index: int, stats: StripStats) -> None:
        """Write down a strip's."""
        self._counts[index] = stats.count
        for place, value in zip(self.values[index], stats[1:], strict=True):
            place.copy_(value)

    def row(self, index: int, count: int) -> Tensor:
        """Where to write down mean, rest, squares and counts, [4, B, C], of a strip of so many values per channel."""
        self._counts[index] = count
        return self.values[index]

    def of(self, index: int) -> StripStats:
        """A strip's, as views of the table."""
        return StripStats(self._counts[index], *self.values[index, :3])

    def merged(self, strips: Sequence[int]) -> ChannelStats:
        """The statistics of strips that follow one another, together."""
        if self.values.device.type not in WITH_FLOAT64:
            return merge_all([self.of(index).finished() for index in strips])
        mean, rest, squares = self.values[strips[0] : strips[-1] + 1, :3].double().unbind(1)  # [strips, B, C] each
        counts = [self._counts[index] for index in strips]
        count = torch.tensor(counts, dtype=torch.float64, device="cpu")[:, None, None]
        count = count.to(mean.device, non_blocking=True)
        mean = mean + rest / count
        m2 = (squares - rest.square() / count).clamp_min_(0)
        if len(strips) == 1:
            return ChannelStats(counts[0], mean[0], m2[0])
        middle = (count * mean).sum(0) / sum(counts)
        return ChannelStats(sum(counts), middle, (m2 + count * (mean - middle).square()).sum(0))


def _measured_on_cuda(strip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What StripStats has, by the one kernel that reads a strip once, in any precision, and sums in float32."""
    count = strip.shape[1] * strip.shape[2]
    means, inverses = zip(*(torch.batch_norm_stats(item.permute(2, 0, 1)[None], _TINY) for item in strip), strict=True)
    mean = torch.stack(means)
    return mean, torch.zeros_like(mean), (torch.stack(inverses).pow(-2) - _TINY) * count


def is_measured(dtype: torch.dtype, channels: int) -> bool:
    """Whether compiled code takes the statistics of such strips on a CPU."""
    return dtype in KINDS and jit() is not None and channels % jit().LANES == 0


def _measured(strip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What StripStats has, by compiled code that reads a strip [B, H, W, C] on a CPU once."""
    values = strip.contiguous().flatten(1, 2)
    items, count, channels = values.shape
    about = np.empty((items, channels), np.float32)
    total, squares = np.zeros((2, items, channels))
    for item, each in enumerate(as_array(values)):
        jit().measure(each, about[item], total[item], squares[item])
    with np.errstate(all="ignore"):  # values that are not finite are looked at later
        mean = (about + total / count).astype(np.float32)
        shift = mean.astype(np.float64) - about
        rest = total - count * shift
        squares = squares - 2 * shift * total + count * shift**2
    return torch.from_numpy(mean), torch.from_numpy(rest).float(), torch.from_numpy(squares).float()


Stats = ChannelStats | TableStats


def all_finite(several: Sequence[Stats]) -> list[bool]:
    """`finite` of each. Waits for the device once."""
    found = [stats.finite() for stats in several]
    there = [each for each in found if each.device.type != "cpu"]
    flags = iter(torch.stack(there).tolist() if there else ())
    return [bool(each) if each.device.type == "cpu" else next(flags) for each in found]


def merge_all(parts: list[ChannelStats]) -> ChannelStats:
    """The statistics of all parts together, merged in their order."""
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def join_items(per_item: list[ChannelStats]) -> ChannelStats:
    """The statistics of a batch, from those of its items in their order, all of one count."""
    mean, m2 = (torch.cat([getattr(stats, name) for stats in per_item]) for name in ("mean", "m2"))
    return ChannelStats(per_item[0].count, mean, m2)
