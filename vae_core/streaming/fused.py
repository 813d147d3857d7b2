"""Norm, activation, sums and statistics of strips on an accelerator, by Triton's kernels where they work.

Whether they do is tried out once for each device and precision, on a few numbers: Triton may be missing, without the C
compiler that its first kernel needs, or without this precision on a device of that age. torch's own operations then do
the same in more steps.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import in_one_line
from .devices import current, module_of
from .shortage import is_out_of_memory

_KINDS = ("cuda", "xpu")  # which Triton compiles for; ROCm's are "cuda" to torch

logger = logging.getLogger("seamless_vae")


class StripPart(NamedTuple):
    """What becomes of a part of a strip: out = result + bias + residual, all of them [B, H, W, C].

    Attributes:
        out: of any precision and strides; None where statistics alone are asked for.
    """

    result: Tensor
    residual: Tensor | None = None
    out: Tensor | None = None


def can_activate(norm: object, act: nn.Module | None) -> bool:
    """Whether `activate` computes such a norm, once it is scale and shift, and such an activation."""
    return isinstance(norm, nn.GroupNorm | None) and isinstance(act, nn.SiLU | nn.Identity | None)


def activate(
    x: Tensor, norm: tuple[Tensor, Tensor] | None, act: nn.Module | None, out: Tensor, above: int, left: int
) -> None:
    """act(x * scale + shift) for [B, H, W, C] into `out`, with zeros around it, where `can_finish` and `can_activate`.

    Args:
        norm: scale and shift [B, C] in float32, contiguous.
        out: [B, above + H + below, left + W + right, C], channels next to each other.
    """
    kernels = _kernels(x.device, out.dtype)
    assert kernels is not None
    with current(x.device):
        kernels.activate(x, norm, isinstance(act, nn.SiLU), out, above, left)


def norm(rows: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """A GroupNorm as scale and shift [B, C] in float32, from rows [strips, 4, B, C] of `finish`, where it works."""
    from . import triton_kernels

    scale, shift = torch.empty((2, *rows.shape[2:]), dtype=torch.float32, device=rows.device)
    weight, bias = (
        (each.float() if each.dtype == torch.float64 else each).to(rows.device)  # there may be no float64 there
        for each in (norm.weight.detach(), norm.bias.detach())
    )
    with current(rows.device):
        triton_kernels.norm(rows, norm.num_groups, norm.eps, weight, bias, scale, shift)
    return scale, shift


def finish(parts: Sequence[StripPart], bias: Tensor | None, row: Tensor) -> bool:
    """Finish a strip, whose parts are of one shape, and say True; False if nothing was done.

    Args:
        bias: [C] in float32, or None.
        row: [4, B, C] in float32, becomes what `StripStats` has of all parts together, as they were stored, and count.
    """
    result = parts[0].result
    kernels = _kernels(result.device, result.dtype)
    if kernels is None:
        return False
    with current(result.device):
        blocks = kernels.blocks_of(result.shape)
        batch = result.shape[0]
        channels = result.shape[3]
        partial = torch.empty((batch, len(parts) * blocks, 4, channels), dtype=torch.float32, device=result.device)
        for index, (result, residual, out) in enumerate(parts):
            made, added = (
                each if each is None or each.stride(3) == 1 else each.contiguous() for each in (result, residual)
            )
            kernels.finish(made, bias, added, out, partial, index * blocks)
        kernels.merge(partial, row)
    return True


def measured(strip: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mean, sum of deviations from it and sum of their squares, each [B, C] in float32, of a strip [B, H, W, C].

    Of what no pass has finished, such as a program's input. None where torch's operations have to do it.
    """
    row = torch.empty((4, strip.shape[0], strip.shape[3]), dtype=torch.float32, device=strip.device)
    if not finish([StripPart(strip)], None, row):
        return None
    mean, rest, squares, _ = row.unbind()
    return mean, rest, squares


def can_finish(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `finish` does something for strips of a precision on a device."""
    return _kernels(device, dtype) is not None


def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module of kernels; None where they cannot be used. On a CPU they run in Triton's interpreter alone."""
    kind = device.type
    if dtype == torch.float64 or (kind not in _KINDS and not (kind == "cpu" and interpreted())):
        return None
    if kind != "cpu" and not _is_available(kind):  # a plan for another machine
        return None
    return _tried(device, dtype)


@functools.cache
def _is_available(kind: str) -> bool:
    """Whether this machine has such devices: a plan asks for each of its passes."""
    return module_of(torch.device(kind)).is_available()


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
            in_one_line(error),
        )
        return None
    return triton_kernels


def _try(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Raise if a kernel does not compute what it should: several programs along each axis, the last ones not full."""
    generator = torch.Generator().manual_seed(0)
    place: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    x = torch.randn(2, 2, 70, 160, **place).to(dtype)
    scale, shift = torch.randn(2, 2, 160, **place)
    there = x.to(device)
    factors = scale.to(device)
    offsets = shift.to(device)
    values = x.float()
    for silu in (True, False):
        got = there.new_empty(2, 4, 72, 160)
        want = values * scale[:, None, None] + shift[:, None, None]
        kernels.activate(there, (factors, offsets), silu, got, 1, 1)
        want = nn.functional.pad(nn.functional.silu(want) if silu else want, (0, 0, 1, 1, 1, 1))
        torch.testing.assert_close(got.cpu().float(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    added = torch.randn(160, **place)
    out = torch.empty_like(there)
    partial = factors.new_empty(2, kernels.blocks_of(x.shape), 4, 160)
    rows = factors.new_empty(1, 4, 2, 160)
    kernels.finish(there, added.to(device), there, out, partial, 0)
    kernels.merge(partial, rows[0])
    want = 2 * values + added
    torch.testing.assert_close(out.cpu().float(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    stored = out.cpu().float()
    deviations = stored.flatten(1, 2) - rows[0, 0].cpu()[:, None]
    wanted = want.mean((1, 2)), deviations.sum(1), deviations.square().sum(1)
    for got, want in zip(rows[0].cpu(), wanted, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-2)
    kernels.norm(rows, 8, 1e-6, there[0, 0, 0], there[0, 0, 1], factors, offsets)
    want = nn.functional.group_norm(stored.movedim(3, 1), 8, x[0, 0, 0].float(), x[0, 0, 1].float(), 1e-6)
    got = stored * factors.cpu()[:, None, None] + offsets.cpu()[:, None, None]
    torch.testing.assert_close(got, want.movedim(1, 3), rtol=1e-3, atol=1e-3)
