"""Triton's kernels for accelerators, there and in its interpreter: each against float64, then a whole decode.

The interpreter is asked for when Triton is imported, so that part runs in a process of its own.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from given.inputs import latent
from torch import nn

import vae_core
from vae_core import AutoencoderKL
from vae_core.streaming import fused
from vae_core.streaming.devices import accelerators
from vae_core.streaming.fused import Part
from vae_core.streaming.phases import PARITIES
from vae_core.streaming.stats import StripStats

TESTS = Path(__file__).resolve().parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
DEVICES = ["cpu"] if INTERPRETED else [each for each in accelerators() if each.startswith(("cuda", "xpu"))]
_SKIPPED = pytest.mark.skip(reason="runs on an accelerator, and in the process that test_in_the_interpreter starts")
on_devices = pytest.mark.parametrize("device", DEVICES or [pytest.param("cpu", marks=_SKIPPED)])

SHAPES = [(1, 3, 5, 7), (2, 9, 70, 40), (1, 1, 1, 1), (1, 20, 33, 3), (2, 2, 2, 160)]  # [B, H, W, C]
# The interpreter cuts bfloat16 off where a device rounds.
ROUNDING = {torch.float32: 2e-7, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.thorough
def test_in_the_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


def strip(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 20.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (3 * torch.randn(shape, generator=generator) + mean).to(dtype)


@on_devices
@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("act", [nn.SiLU(), nn.Identity()])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_activation(shape: tuple[int, ...], act: nn.Module, dtype: torch.dtype, device: str) -> None:
    x = strip(shape, dtype)
    scale, shift = torch.randn(shape[0], shape[3]), torch.randn(shape[0], shape[3])
    padded = torch.full((shape[0], shape[1] + 2, shape[2] + 2, shape[3]), 7.0, dtype=dtype, device=device)
    inside = padded[:, 1:-1, 1:-1]
    assert fused.activate(x.to(device), scale.to(device), shift.to(device), act, inside)
    want = act(x.double() * scale[:, None, None] + shift[:, None, None])
    size = (x.double() * scale[:, None, None]).abs().max() + shift.abs().max()
    assert (inside.cpu().double() - want).abs().max() <= ROUNDING[dtype] * size
    inside.fill_(7.0)
    assert (padded == 7.0).all()  # nothing beside it was written


@on_devices
@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = strip(shape, dtype, mean=1000.0)
    assert fused.measured(x.to(device)) is not None
    stats = StripStats.of(x.to(device)).finished()
    values = x.double().flatten(1, 2)
    torch.testing.assert_close(stats.mean, values.mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(stats.m2, (values - values.mean(1, keepdim=True)).square().sum(1), rtol=1e-5, atol=1e-5)


@on_devices
@needs_triton
def test_a_strip_whose_first_rows_are_far_from_the_others(device: str) -> None:
    """As a flat border: it must not be what deviations are taken from."""
    x = strip((1, 40, 64, 4), torch.float32, mean=0.0)
    x[:, :2] = 200.0
    stats = StripStats.of(x.to(device)).finished()
    values = x.double().flatten(1, 2)
    torch.testing.assert_close(stats.m2, (values - values.mean(1, keepdim=True)).square().sum(1), rtol=1e-6, atol=0)


@on_devices
@needs_triton
@pytest.mark.parametrize("programs", [1, 3, 1000])
def test_statistics_by_programs_that_have_more_or_less_to_do(
    programs: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_core.streaming.triton_kernels.PROGRAMS", programs)
    x = strip((1, 70, 64, 4), torch.float32, mean=0.0)
    stats = StripStats.of(x.to(device)).finished()
    values = x.double().flatten(1, 2)
    torch.testing.assert_close(stats.m2, (values - values.mean(1, keepdim=True)).square().sum(1), rtol=2e-6, atol=0)


@on_devices
@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["all", "bias alone", "residual alone, in place", "phases", "planes"])
def test_what_comes_after_a_convolution(form: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Bias, residual, where the sum goes to, and the statistics of what was stored there."""
    batch, height, width, channels = shape
    bias = None if form.startswith("residual") else torch.randn(channels)
    parts = 4 if form == "phases" else 1
    results = [strip(shape, dtype) + index for index in range(parts)]
    residual = (
        None
        if form == "bias alone"
        else strip((batch, parts // 2 * height or height, parts // 2 * width or width, channels), dtype, -3.0)
    )
    want = results[0].double()
    if form == "phases":
        want = torch.zeros(batch, 2 * height, 2 * width, channels, dtype=torch.float64)
        for (a, b), each in zip(PARITIES, results, strict=True):
            want[:, a::2, b::2] = each.double()
    if residual is not None:
        want = want + residual.double()
    if bias is not None:
        want = want + bias
    there = [each.to(device) for each in results]
    added = None if residual is None else residual.to(device)
    if form == "planes":  # an image [B, C, H, W] in another precision
        out = torch.empty(batch, channels, height, width, device=device).permute(0, 2, 3, 1)
    else:
        out = torch.full((batch, *want.shape[1:3], channels + 3), 7.0, dtype=dtype, device=device)[..., :channels]
    if form.endswith("in place"):
        out = there[0]
    cut = [(slice(a, None, 2), slice(b, None, 2)) for a, b in PARITIES] if parts == 4 else [(slice(None), slice(None))]
    row = torch.empty(3, batch, channels, device=device)
    made = [
        Part(each, None if added is None else added[:, rows, columns], out[:, rows, columns])
        for each, (rows, columns) in zip(there, cut, strict=True)
    ]
    assert fused.finish(made, None if bias is None else bias.to(device), row)
    got = out.cpu().double()
    assert (got - want).abs().max() <= ROUNDING[out.dtype] * 1.01 * want.abs().max()
    stats = StripStats(want.shape[1] * want.shape[2], *row).finished()
    values = got.flatten(1, 2)
    torch.testing.assert_close(stats.mean, values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.m2, (values - values.mean(1, keepdim=True)).square().sum(1), rtol=1e-5, atol=1e-4)
    if out._base is not None and form in ("all", "bias alone"):
        assert (out._base[..., channels:] == 7.0).all()  # nothing beside it was written


@on_devices
@needs_triton
@torch.no_grad()
def test_a_decode(device: str, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_core.streaming import triton_kernels

    calls: list[str] = []
    for name in ("activate", "finish", "merge"):
        kernel = getattr(triton_kernels, name)
        monkeypatch.setattr(
            triton_kernels, name, lambda *values, name=name, kernel=kernel: (calls.append(name), kernel(*values))[1]
        )
    z = latent(2, 6, 5)
    with vae_core.kernels("direct"), torch.backends.cudnn.flags(allow_tf32=False):
        there, strips = copy.deepcopy(vae).to(device), vae_core.TileSpec(size=None)
        got = vae_core.decode(there, z.to(device), tiling=strips).cpu()
        plan = vae_core.plan_decode(there, z.shape, tiling=strips)
    exact = copy.deepcopy(vae).double().decode_reference(z.double())
    assert (got - exact).abs().max() < 2e-5
    finished = plan.strips - 2  # but those that make keys and values, of two items
    assert calls.count("merge") == finished
    doublings = len(vae.config.block_out_channels) - 1
    assert calls.count("finish") == finished + 3 * doublings  # which have four phases
    assert 0 < calls.count("activate") < plan.strips


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_kernels_that_fail_give_way_to_torchs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where there is no C compiler: here compiled kernels are asked to run on a CPU."""
    monkeypatch.setattr(fused, "_KINDS", ("cpu",))
    fused._tried.cache_clear()
    try:
        x = strip((1, 3, 5, 7), torch.float32)
        with caplog.at_level(logging.WARNING, "seamless_vae"):
            for _ in range(2):
                assert fused.measured(x) is None
                assert not fused.activate(x, x[:, 0, 0], x[:, 0, 0], nn.SiLU(), torch.empty_like(x))
        assert len(caplog.messages) == 1 and "torch's own operations take their place" in caplog.messages[0]
    finally:
        fused._tried.cache_clear()


def test_what_the_kernels_leave_to_torch() -> None:
    """float64, other activations, channels that are not neighbours, and a CPU."""
    x = strip((1, 3, 5, 7), torch.float32)
    ones = torch.ones(1, 7)
    assert fused.measured(x) is None or INTERPRETED
    assert not fused.activate(x, ones, ones, nn.GELU(), torch.empty_like(x))
    assert not fused.activate(x.double(), ones, ones, nn.SiLU(), torch.empty_like(x).double())
    assert not fused.activate(
        x.transpose(2, 3).contiguous().transpose(2, 3), ones, ones, nn.SiLU(), torch.empty_like(x)
    )
    assert fused.measured(x.double()) is None
