"""One pass of a kernel by itself: its inputs, how it is run, and how exact its result has to be."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_core.streaming.kernel import Kernel, PassInputs
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.options import NO_AXES
from vae_core.streaming.program import Pass
from vae_core.streaming.stats import ChannelStats
from vae_core.streaming.store import MapStore

CPU = torch.device("cpu")


def pass_inputs(step: Pass, source: FeatureMap, target: FeatureMap, **others: Any) -> PassInputs:
    """What a kernel is made of: on the CPU, in strips of the usual size, without norm, residual or circular axes."""
    usual: dict[str, Any] = {
        "residual": None,
        "dtype": torch.float32,
        "coefficients": None,
        "circular": NO_AXES,
        "max_rows": None,
        "strip_bytes": 2**22,
        "device": CPU,
        "workers": torch.get_num_threads(),
    }
    given = {**usual, **others}
    given.setdefault("map_dtype", given["dtype"])
    return PassInputs(step=step, source=source, target=target, store=given.pop("store", None) or MapStore(CPU), **given)


def run_pass(kernel: Kernel) -> ChannelStats:
    """Compute a pass; returns the statistics of its target."""
    try:
        kernel.prepare(kernel.pack())
        stats = kernel.combine([kernel.compute(strip) for strip in kernel.layout.strips()])
        assert isinstance(stats, ChannelStats)
        return stats
    finally:
        kernel.close()


def in_bands(whole: Tensor, rows: int | None) -> FeatureMap:
    height = whole.shape[1]
    rows = rows or height
    return FeatureMap(tuple(whole[:, y : y + rows].clone() for y in range(0, height, rows)), whole.shape)


def joined(whole: FeatureMap) -> Tensor:
    return torch.cat(list(whole.bands), dim=1)


# Exactness.


class Bound(NamedTuple):
    """Of errors, in units of the exact result's root mean square: their root mean square, and the largest."""

    mean: float
    largest: float


# For 64 channels; rounding grows with the root of their number, as sums of so many products do. Each is about twice
# the worst that was measured, so that a digit lost, or half of one, breaks it:
BOUNDS = {
    "direct": Bound(5e-7, 6e-6),  # the sum of 9 * C products in float32, and the activation before it
    "winograd": Bound(8e-7, 8e-6),  # its transforms cancel some bits: see `benchmarks/winograd_points.py`
    "upsample": Bound(3e-7, 2.5e-6),  # transforms by differences of neighbours cancel none; and there is no activation
    "downsample": Bound(4e-7, 3e-6),  # half of its transforms are copies; and there is no activation
    "attention": Bound(4e-7, 3e-6),  # five products and a softmax
    "float64": Bound(2e-15, 2e-14),
}


def assert_within(kind: str, channels: int, mean: float, largest: float) -> None:
    growth = max(1.0, channels / 64) ** 0.5
    assert mean <= growth * BOUNDS[kind].mean
    assert largest <= growth * BOUNDS[kind].largest


def check_statistics(stats: ChannelStats, found: Tensor, dtype: torch.dtype) -> None:
    """Of what was written, whatever its own errors: sums in float32 over a strip, in float64 over strips."""
    mean = found.mean((1, 2))
    deviations = (found - mean[:, None, None]).square().sum((1, 2))
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    largest = found.square().mean((1, 2))
    assert stats.count == found.shape[1] * found.shape[2]
    assert ((stats.mean - mean).abs() <= tolerance * largest.sqrt()).all()
    assert ((stats.m2 - deviations).abs() <= 4 * tolerance * largest * stats.count).all()
