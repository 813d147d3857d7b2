"""Norm, activation and statistics of strips on an accelerator, by Triton's kernels where they work.

Whether they do is tried out once for each device, on a few numbers: Triton may be missing, too old for the device, or
without the C compiler that its first kernel needs. torch's own operations then do the same in more steps.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from types import ModuleType

import torch
from torch import Tensor, nn

_KINDS = ("cuda", "xpu")  # which Triton compiles for; ROCm's are "cuda" to torch
_PIVOTS = 64  # positions whose mean the deviations are taken from

logger = logging.getLogger("seamless_vae")


def activate(x: Tensor, scale: Tensor, shift: Tensor, act: nn.Module, out: Tensor) -> bool:
    """Write act(x * scale + shift) for [B, H, W, C] to `out` and say True; False if nothing was done.

    Args:
        scale, shift: [B, C] in float32.
        act: SiLU or Identity; nothing is done for another.
    """
    if not isinstance(act, nn.SiLU | nn.Identity) or x.dtype == torch.float64 or x.stride(3) != 1:
        return False
    kernels = _kernels_on(x.device)
    if kernels is None:
        return False
    kernels.activate(x, scale, shift, isinstance(act, nn.SiLU), out)
    return True


def measured(strip: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pivot, sum of deviations from it and sum of their squares, each [B, C] in float32, of a strip [B, H, W, C].

    The pivot is the mean of a few positions, so that squares of deviations are not much larger than the variance and
    little is lost when the pivot's own deviation is taken off. None where torch's operations have to do it.
    """
    kernels = None if strip.dtype == torch.float64 else _kernels_on(strip.device)
    if kernels is None:
        return None
    values = strip.flatten(1, 2).contiguous()
    pivot = values[:, :_PIVOTS].float().mean(1)
    return pivot, *kernels.sums_about(values, pivot)


def _kernels_on(device: torch.device) -> ModuleType | None:
    """The module of kernels; None where they cannot be used. On a CPU they run in Triton's interpreter alone."""
    if device.type not in _KINDS and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return _tried_on(device)


@functools.cache
def _tried_on(device: torch.device) -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from . import triton_kernels

        x = torch.linspace(-4, 4, 2 * 3 * 5 * 6, device=device).reshape(2, 3, 5, 6)
        scale, shift = x[:, 0, 0] + 0.5, x[:, 0, 1]
        got, want = torch.empty_like(x), nn.functional.silu(x * scale[:, None, None] + shift[:, None, None])
        triton_kernels.activate(x, scale, shift, True, got)
        total, squares = triton_kernels.sums_about(x.flatten(1, 2), shift)
        deviations = x.flatten(1, 2) - shift[:, None]
        for each, true in ((got, want), (total, deviations.sum(1)), (squares, deviations.square().sum(1))):
            torch.testing.assert_close(each, true, rtol=1e-4, atol=1e-4)
    except Exception as error:  # a compiler or a driver has many
        logger.warning(
            "Triton's kernels cannot be used on %s (%s: %s); torch's own operations take their place.",
            device,
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return None
    return triton_kernels
