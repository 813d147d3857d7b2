"""Triton's kernels for accelerators, there and in its interpreter: each against float64, then a whole decode.

The interpreter is asked for when Triton is imported, so that part runs in a process of its own.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given.inputs import latent
from torch import nn

import vae_core
from vae_core import AutoencoderKL
from vae_core.streaming import fused
from vae_core.streaming.devices import accelerators
from vae_core.streaming.fused import StripPart
from vae_core.streaming.phases import PARITIES
from vae_core.streaming.stats import StatsTable, StripStats, TableStats, all_finite, merge_all

TESTS = Path(__file__).resolve().parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
THERE = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not THERE or importlib.metadata.version("triton").startswith("3.0."),
    reason="needs Triton; the interpreter of 3.0 does not run these, which is noticed, and they are not used",
)
DEVICES = ["cpu"] if INTERPRETED else [each for each in accelerators() if each.startswith(("cuda", "xpu"))]
_SKIPPED = pytest.mark.skip(reason="runs on an accelerator, and in the process that test_in_the_interpreter starts")
on_devices = pytest.mark.parametrize("device", DEVICES or [pytest.param("cpu", marks=_SKIPPED)])

SHAPES = [(1, 3, 5, 7), (2, 9, 70, 40), (1, 1, 1, 1), (1, 20, 33, 3), (2, 2, 2, 160)]  # [B, H, W, C]
CASES = [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[1], torch.float16), (SHAPES[1], torch.bfloat16)]
FORMS = ["all", "bias alone", "residual alone, into the result", "into the residual", "phases", "planes"]
# The interpreter cuts bfloat16 off where a device rounds.
ROUNDING = {torch.float32: 2e-7, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@needs_triton
@pytest.mark.skipif(bool(DEVICES), reason="this is that process, or there is a device")
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
@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("act", [nn.SiLU(), None])
@pytest.mark.parametrize("around", [(1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0)])  # above, below, left, right
def test_norm_activation_and_padding(
    around: tuple[int, ...], shape: tuple[int, ...], act: nn.Module | None, dtype: torch.dtype, device: str
) -> None:
    above, below, left, right = around
    x = strip(shape, dtype)
    scale, shift = torch.randn(2, shape[0], shape[3])
    whole = (shape[0], above + shape[1] + below, left + shape[2] + right + 2, shape[3])
    beside = torch.full(whole, 7.0, dtype=dtype, device=device)
    out = beside[:, :, 1:-1]
    for planes in (False, True):  # channels next to each other, as maps have them, or apart, as images do
        given = x.movedim(3, 1).contiguous().movedim(1, 3) if planes else x
        for norm in ((scale, shift), None):
            out.fill_(3.0)
            fused.activate(given.to(device), norm and (scale.to(device), shift.to(device)), act, out, above, left)
            want = x.double()
            size = want.abs().max()
            if norm is not None:
                want = want * scale[:, None, None] + shift[:, None, None]
                size = (x.double() * scale[:, None, None]).abs().max() + shift.abs().max()
            want = F.pad(want if act is None else act(want), (0, 0, left, right, above, below))
            assert (out.cpu().double() - want).abs().max() <= ROUNDING[dtype] * size
    out.fill_(7.0)
    assert (beside == 7.0).all()  # nothing beside it was written


@on_devices
@needs_triton
@pytest.mark.parametrize(("groups", "channels", "strips"), [(1, 3, 1), (4, 8, 3), (2, 160, 70), (7, 7, 2)])
def test_a_norm_of_strips(groups: int, channels: int, strips: int, device: str) -> None:
    """Of strips of several sizes, and of values far from zero, as `ChannelStats.affine` computes it in float64."""
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    for each in (norm.weight, norm.bias):
        nn.init.normal_(each)
    parts = [strip((2, 1 + index % 3, 5, channels), torch.float32, mean=300.0) for index in range(strips)]
    table = StatsTable(strips, (2, channels), torch.float32, torch.device(device), counted=True)
    for index, part in enumerate(parts):
        fused.finish([StripPart(part.to(device))], None, table.row(index, part.shape[1] * part.shape[2]))
    stats = TableStats(table)
    scale, shift = (each.cpu().double() for each in stats.affine(norm))
    exact = merge_all([StripStats.of(part.double()).finished() for part in parts])
    want_scale, want_shift = exact.affine(norm)
    x = torch.cat(parts, dim=1).double()
    got, want = (x * a[:, None, None] + b[:, None, None] for a, b in ((scale, shift), (want_scale, want_shift)))
    assert (got - want).abs().max() <= 1e-6 * (x * want_scale[:, None, None]).abs().max()
    torch.testing.assert_close(stats.mean.cpu(), exact.mean, rtol=1e-6, atol=0)
    assert all_finite([stats]) == [True]
    fused.finish([StripPart(torch.full_like(parts[0], torch.inf).to(device))], None, table.row(0, 5))
    assert all_finite([stats, exact]) == [False, True]


@on_devices
@needs_triton
@pytest.mark.parametrize(("shape", "dtype"), CASES)
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
@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize(
    "form", ["all", "bias alone", "residual alone, into the result", "into the residual", "phases", "planes"]
)
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
    if form == "residual alone, into the result":
        out = there[0]
    elif form == "into the residual":
        assert added is not None
        out = added
    cut = [(slice(a, None, 2), slice(b, None, 2)) for a, b in PARITIES] if parts == 4 else [(slice(None), slice(None))]
    row = torch.empty(4, batch, channels, device=device)
    made = [
        StripPart(each, None if added is None else added[:, rows, columns], out[:, rows, columns])
        for each, (rows, columns) in zip(there, cut, strict=True)
    ]
    assert fused.finish(made, None if bias is None else bias.to(device), row)
    got = out.cpu().double()
    assert (got - want).abs().max() <= ROUNDING[out.dtype] * 1.01 * want.abs().max()
    stats = StripStats(want.shape[1] * want.shape[2], *row[:3]).finished()
    assert (row[3] == stats.count).all()
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


@on_devices
@needs_triton
@pytest.mark.parametrize(
    ("circular", "kernels"),
    [
        ("both", "auto"),  # each of these takes the interpreter a minute
        pytest.param("none", "auto", marks=pytest.mark.slow),
        pytest.param("both", "direct", marks=pytest.mark.slow),
        pytest.param("none", "direct", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_many_strips(circular: Any, kernels: Any, device: str, vae: AutoencoderKL) -> None:
    """Both directions, of a batch, in strips of two latent rows whose last one is smaller, against the reference."""
    there, exact = copy.deepcopy(vae).to(device), copy.deepcopy(vae).double()
    z, image = latent(2, 7, 6), torch.rand(2, 3, 14, 12) * 2 - 1
    given: dict[str, Any] = {"tiling": vae_core.TileSpec(size=2), "circular": circular}
    with vae_core.kernels(kernels), torch.backends.cudnn.flags(allow_tf32=False):
        decoded = vae_core.decode(there, z.to(device), **given).cpu()
        encoded = vae_core.encode(there, image.to(device), **given).mean.cpu()
    with vae_core.kernels("direct"):
        given["circular"] = circular
        want = vae_core.decode(exact, z.double(), **given), vae_core.encode(exact, image.double(), **given).mean
    assert (decoded - want[0]).abs().max() < 2e-5
    assert (encoded - want[1]).abs().max() < 2e-5


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
                assert not fused.can_finish(x.device, x.dtype)
        assert len(caplog.messages) == 1 and "torch's own operations take their place" in caplog.messages[0]
    finally:
        fused._tried.cache_clear()


def test_what_the_kernels_leave_to_torch() -> None:
    """float64, other norms and activations, and a CPU."""
    x = strip((1, 3, 5, 7), torch.float32)
    assert fused.measured(x) is None or INTERPRETED
    assert fused.measured(x.double()) is None and not fused.can_finish(x.device, torch.float64)
    assert fused.can_activate(nn.GroupNorm(1, 7), nn.SiLU()) and fused.can_activate(None, None)
    assert not fused.can_activate(nn.GroupNorm(1, 7), nn.GELU())
    assert not fused.can_activate(nn.BatchNorm2d(7), nn.SiLU())
