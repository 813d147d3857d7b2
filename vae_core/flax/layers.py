"""The layers that have weights, on maps [B, H, W, C]."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

NORM_EPS = 1e-6  # of every GroupNorm in the model, the attention's included


def conv(channels: int, kernel_size: int, dtype: Any, stride: int = 1, padding: int = 0) -> nn.Conv:
    """A square convolution with as much padding on every side."""
    sides = ((padding, padding), (padding, padding))
    return nn.Conv(channels, (kernel_size, kernel_size), (stride, stride), padding=sides, dtype=dtype)


def group_norm(num_groups: int, dtype: Any) -> nn.GroupNorm:
    """A norm whose statistics are taken in float32 whatever the type, the variance from the deviations.

    Linen's default, mean(x^2) - mean(x)^2, loses the digits that a map far from zero needs.
    """
    return nn.GroupNorm(num_groups, epsilon=NORM_EPS, dtype=dtype, use_fast_variance=False)
