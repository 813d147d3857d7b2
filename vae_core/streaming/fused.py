"""Norm, activation and statistics of strips on an accelerator, by Triton's kernels where they work.

Whether they do is tried out once for each device and precision, on a few numbers: Triton may be missing, without the C
compiler that its first kernel needs, or without this precision on a device of that age. torch's own operations then do
the same in more steps.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from types import ModuleType

import torch
from torch import Tensor, nn

from .devices import current
from .shortage import is_out_of_memory

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
    kernels = _kernels_for(x)
    if kernels is None:
        return False
    with current(x.device):
        kernels.activate(x, scale, shift, isinstance(act, nn.SiLU), out)
    return True


def measured(strip: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pivot, sum of deviations from it and sum of their squares, each [B, C] in float32, of a strip [B, H, W, C].

    The pivot is the mean of a few positions from all over the strip, so that squares of deviations are not much larger
    than the variance and little is lost when the pivot's own deviation is taken off. None where torch's operations
    have to do it.
    """
    kernels = _kernels_for(strip)
    if kernels is None:
        return None
    values = strip.flatten(1, 2).contiguous()
    pivot = values[:, :: max(1, values.shape[1] // _PIVOTS)].float().mean(1)
    with current(strip.device):
        return pivot, *kernels.sums_about(values, pivot)


def _kernels_for(x: Tensor) -> ModuleType | None:
    """The module of kernels; None where they cannot be used. On a CPU they run in Triton's interpreter alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or (kind not in _KINDS and not (kind == "cpu" and interpreted())):
        return None
    return _tried(x.device, x.dtype)


def interpreted() -> bool:
    """Whether Triton is to interpret its kernels, which it then does for tensors on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _tried(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from . import triton_kernels

        with current(device):
            _try(triton_kernels, device, dtype)
    except Exception as error:  # a compiler or a driver has many
        if is_out_of_memory(error):  # which says nothing of the kernels
            raise
        logger.warning(
            "Triton's kernels cannot be used on %s in %s (%s: %s); torch's own operations take their place.",
            device,
            str(dtype).removeprefix("torch."),
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return None
    return triton_kernels


def _try(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Raise if a kernel does not compute what it should: several programs along each axis, the last ones not full."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 70, 160, generator=generator).to(dtype)
    scale, shift = torch.randn(2, 2, 160, generator=generator)
    there, factors, offsets = x.to(device), scale.to(device), shift.to(device)
    values = x.float()
    for silu in (True, False):
        got, want = torch.empty_like(there), values * scale[:, None, None] + shift[:, None, None]
        kernels.activate(there, factors, offsets, silu, got)
        want = nn.functional.silu(want) if silu else want
        torch.testing.assert_close(got.cpu().float(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    deviations = values.flatten(1, 2) - shift[:, None]
    sums = kernels.sums_about(there.flatten(1, 2), offsets)
    for got, want in zip(sums, (deviations.sum(1), deviations.square().sum(1)), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-3)
