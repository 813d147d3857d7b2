"""Every kernel against convolutions and attention in float64, one pass at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.attention import Attention, FusedAttnProcessor2_0
from vae_core.halves import AttentionLayers
from vae_core.streaming import winograd
from vae_core.streaming.compiled_winograd import CompiledWinograd
from vae_core.streaming.direct import DirectConvolution
from vae_core.streaming.internals import products_available
from vae_core.streaming.kernel import Kernel, PassInputs
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.options import NO_AXES, Axes
from vae_core.streaming.packed_attention import PackedAttention
from vae_core.streaming.program import Attend, Convolve
from vae_core.streaming.stats import ChannelStats
from vae_core.streaming.store import MapStore
from vae_core.streaming.stored_attention import StoredAttention, attend_in_blocks
from vae_core.streaming.torch_winograd import TorchWinograd
from vae_core.streaming.transforms import TILE

CPU = torch.device("cpu")


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
    "attention": Bound(4e-7, 3e-6),  # five products and a softmax
    "float64": Bound(2e-15, 2e-14),
}


def assert_within(kind: str, channels: int, mean: float, largest: float) -> None:
    growth = max(1.0, channels / 64) ** 0.5
    assert mean <= growth * BOUNDS[kind].mean
    assert largest <= growth * BOUNDS[kind].largest


# How a kernel is made and run: the only place here that knows.


def run(kernel: Kernel) -> ChannelStats:
    """Compute a pass; returns the statistics of its target."""
    try:
        kernel.prepare(kernel.pack())
        return kernel.combine([kernel.compute(strip) for strip in kernel.layout.strips()])
    finally:
        kernel.close()


def convolution(name: str, case: Convolution, maps: Maps) -> Kernel:
    kind = {"direct": DirectConvolution, "compiled": CompiledWinograd, "torch": TorchWinograd}[name]
    step = Convolve(
        "source",
        "target",
        maps.conv,
        scale=case.scale,  # type: ignore[arg-type]
        norm=nn.GroupNorm(1, case.channels[0]) if case.act else None,
        act=nn.SiLU() if case.act else None,
        residual=case.residual and "residual",
        shortcut=maps.shortcut,
    )
    return kind(
        PassInputs(
            step=step,
            source=maps.source,
            target=maps.target,
            residual=maps.residual,
            dtype=maps.source.dtype,
            coefficients=maps.coefficients,
            circular=Axes(y="y" in case.circular, x="x" in case.circular),
            max_rows=case.max_rows,
            strip_bytes=case.strip_bytes,
            device=CPU,
            workers=torch.get_num_threads(),
            store=MapStore(CPU),
        )
    )


def attention(
    name: str, module: Attention, source: FeatureMap, target: FeatureMap, affine: Any, strip_bytes: int
) -> Kernel:
    kind = PackedAttention if name == "packed" else StoredAttention
    return kind(
        PassInputs(
            step=Attend("source", "target", source.shape[3], module.group_norm, AttentionLayers(module)),
            source=source,
            target=target,
            residual=None,
            dtype=source.dtype,
            coefficients=affine,
            circular=NO_AXES,
            max_rows=None,
            strip_bytes=strip_bytes,
            device=CPU,
            workers=torch.get_num_threads(),
            store=MapStore(CPU),
        )
    )


# Convolutions.


@dataclass(frozen=True)
class Convolution:
    """One pass.

    Attributes:
        size: rows and columns of the source.
        channels: of the source and of the target.
        residual: "another" map, "in place", "shortcut" through a 1x1 convolution, or none.
        bands: rows of the source's and the target's bands; None for one band.
        layout: of the target: "whole", "narrowed" (the first channels of a wider map), or "channels first".
    """

    size: tuple[int, int] = (13, 17)
    channels: tuple[int, int] = (64, 48)
    scale: str = "same"
    act: bool = True
    residual: str | None = None
    circular: str = ""
    batch: int = 1
    max_rows: int | None = None
    strip_bytes: int = 2**22
    bands: int | None = None
    layout: str = "whole"
    dtype: torch.dtype = torch.float32
    kernel_size: int = 3

    def __str__(self) -> str:
        fields = [(name, value) for name, value in vars(self).items() if value != getattr(Convolution(), name)]
        return " ".join(f"{name}={value}".replace("torch.", "") for name, value in fields) or "usual"


@dataclass(frozen=True)
class Maps:
    conv: nn.Conv2d
    shortcut: nn.Conv2d | None
    source: FeatureMap
    target: FeatureMap
    residual: FeatureMap | None
    coefficients: tuple[Tensor, Tensor] | None


def in_bands(whole: Tensor, rows: int | None) -> FeatureMap:
    height = whole.shape[1]
    rows = rows or height
    return FeatureMap(tuple(whole[:, y : y + rows].clone() for y in range(0, height, rows)), whole.shape)


def laid_out(whole: Tensor, case: Convolution) -> FeatureMap:
    if case.layout == "channels first":
        return FeatureMap.of(whole.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    if case.layout == "narrowed":
        wider = torch.cat([whole, torch.full_like(whole, 7.0)], dim=3)
        return in_bands(wider, case.bands).narrowed(whole.shape[3])
    return in_bands(whole, case.bands)


def joined(whole: FeatureMap) -> Tensor:
    return torch.cat(list(whole.bands), dim=1)


def target_size(case: Convolution) -> tuple[int, int]:
    height, width = case.size
    return {"same": (height, width), "up": (2 * height, 2 * width), "down": (height // 2, width // 2)}[case.scale]


def make(case: Convolution) -> Maps:
    """Random maps and weights; the exact convolution's variance is about one third."""
    generator = torch.Generator().manual_seed(0)
    (inputs, outputs), dtype = case.channels, case.dtype

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def layer(inputs: int, size: int) -> nn.Conv2d:
        conv = nn.Conv2d(inputs, outputs, size, dtype=dtype)
        conv.weight.data = random(*conv.weight.shape) / (inputs * size * size) ** 0.5
        conv.bias.data = random(outputs)  # type: ignore[union-attr]
        return conv

    conv = layer(inputs, case.kernel_size)
    shape = (case.batch, *target_size(case), outputs)
    target = laid_out(random(*shape), case)
    residual, shortcut = None, None
    if case.residual == "in place":
        residual = target
    elif case.residual == "another":
        residual = in_bands(random(*shape), case.bands)
    elif case.residual == "shortcut":  # of a width that does not fill vectors
        residual, shortcut = in_bands(random(*shape[:3], 40), case.bands), layer(40, 1)
    affine = (1 + 0.2 * random(case.batch, inputs), random(case.batch, inputs)) if case.act else None
    source = in_bands(random(case.batch, *case.size, inputs), case.bands)
    return Maps(conv, shortcut, source, target, residual, affine)


def exact(case: Convolution, maps: Maps) -> tuple[Tensor, Tensor]:
    """In float64, [B, H, W, K]: the convolution with its bias, and what is added to it."""

    def convolve(x: Tensor, conv: nn.Conv2d, stride: int = 1) -> Tensor:
        return F.conv2d(x, conv.weight.double(), conv.bias.double(), stride)  # type: ignore[union-attr]

    x = joined(maps.source).double().permute(0, 3, 1, 2)
    if maps.coefficients is not None:
        scale, shift = (each.double()[:, :, None, None] for each in maps.coefficients)
        x = F.silu(x * scale + shift)
    if case.scale == "up":
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    before = 0 if case.scale == "down" else case.kernel_size // 2
    after = 1 if case.scale == "down" else before
    for axis, name in ((3, "x"), (2, "y")):  # one row or column may be its own neighbour, which F.pad does not allow
        size = x.shape[axis]
        places = torch.arange(-before, size + after)
        outside = (places < 0) | (places >= size)
        x = x.index_select(axis, places % size)
        if name not in case.circular:
            x.index_fill_(axis, outside.nonzero()[:, 0], 0.0)
    result = convolve(x, maps.conv, 2 if case.scale == "down" else 1).permute(0, 2, 3, 1)
    if maps.residual is None:
        return result, torch.zeros_like(result)
    added = joined(maps.residual).double()
    if maps.shortcut is not None:
        added = convolve(added.permute(0, 3, 1, 2), maps.shortcut).permute(0, 2, 3, 1)
    return result, added.clone()


@torch.no_grad()
def errors(name: str, case: Convolution) -> tuple[float, float]:
    """Root mean square and largest error of a kernel; its statistics are checked on the way."""
    maps = make(case)
    result, added = exact(case, maps)
    stats = run(convolution(name, case, maps))
    found = joined(maps.target).double()
    check_statistics(stats, found, case.dtype)
    if case.layout == "narrowed":
        for band in maps.target.bands:
            assert (band.as_strided(band.shape, band.stride(), band.storage_offset() + band.shape[3]) == 7.0).all()
    # The sum with the residual is rounded once more, relative to a larger number.
    unit = (result.square().mean() + added.square().mean()).sqrt()
    error = (found - result - added) / unit
    return error.square().mean().sqrt().item(), error.abs().max().item()


def check_statistics(stats: ChannelStats, found: Tensor, dtype: torch.dtype) -> None:
    """Of what was written, whatever its own errors: sums in float32 over a strip, in float64 over strips."""
    mean = found.mean((1, 2))
    deviations = (found - mean[:, None, None]).square().sum((1, 2))
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    largest = found.square().mean((1, 2))
    assert stats.count == found.shape[1] * found.shape[2]
    assert ((stats.mean - mean).abs() <= tolerance * largest.sqrt()).all()
    assert ((stats.m2 - deviations).abs() <= 4 * tolerance * largest * stats.count).all()


COMPILED = pytest.param("compiled", marks=pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed"))
KERNELS = ["direct", COMPILED, "torch"]
SIZES = sorted(
    {*product((TILE - 1, TILE, TILE + 1), repeat=2), (2 * TILE, 2 * TILE + 1), (1, 1), (1, 9), (9, 1), (2, 2)}
)
USUAL = Convolution()
CASES = [
    *(replace(USUAL, size=size) for size in SIZES),
    *(
        replace(USUAL, size=size, scale="up", act=False)
        for size in [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (3, 4), (7, 9)]
    ),
    *(
        replace(USUAL, size=size, circular=axes)
        for size in [(1, 1), (1, 6), (7, 1), (5, 8)]
        for axes in ("x", "y", "xy")
    ),
    *(replace(USUAL, size=(3, 5), circular=axes, scale="up", act=False) for axes in ("x", "y", "xy")),
    *(replace(USUAL, residual=residual) for residual in ("another", "in place", "shortcut")),
    *(replace(USUAL, residual=residual, size=(1, 1)) for residual in ("another", "in place", "shortcut")),
    replace(USUAL, act=False),
    replace(USUAL, batch=3, residual="in place"),
    replace(USUAL, batch=2, size=(6, 6), scale="up", act=False),
    # Strips that are not full: rows left over, and few rows for products packed for many.
    replace(USUAL, size=(13, 17), max_rows=8),
    replace(USUAL, size=(21, 5), max_rows=8, residual="another"),
    replace(USUAL, size=(9, 30), scale="up", act=False, max_rows=4),
    replace(USUAL, size=(5, 700), channels=(256, 256), strip_bytes=2**19),  # several strips beside one another
    # Bands, whose edges strips do not cross, and windows that do.
    *(replace(USUAL, size=(19, 6), bands=bands, residual="shortcut") for bands in (4, 8)),
    replace(USUAL, size=(16, 6), bands=8, residual="in place", circular="xy"),
    replace(USUAL, size=(12, 6), bands=4, residual="another", max_rows=8),
    # Memory that is not a map's own.
    *(replace(USUAL, layout=layout) for layout in ("narrowed", "channels first")),
    replace(USUAL, layout="narrowed", residual="in place", bands=4),
    replace(USUAL, layout="narrowed", scale="up", act=False),
    # So many channels that the weights are packed line by line; and several blocks of the ring.
    replace(USUAL, size=(6, 7), channels=(352, 352), residual="another"),
    replace(USUAL, size=(6, 7), channels=(432, 416), scale="up", act=False),
    replace(USUAL, size=(9, 9), channels=(144, 16)),
]


def kind_of(name: str, case: Convolution) -> str:
    if name == "direct":
        return "direct"
    return "upsample" if case.scale == "up" else "winograd"


@pytest.mark.skipif(not products_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution(case: Convolution, name: str) -> None:
    mean, largest = errors(name, case)
    assert_within(kind_of(name, case), case.channels[0], mean, largest)


@pytest.mark.parametrize(
    "case",
    [
        *(Convolution(size=size, scale="down", act=False) for size in [(2, 2), (3, 5), (8, 9), (9, 8)]),
        *(Convolution(size=(8, 10), scale="down", act=False, circular=axes) for axes in ("x", "y", "xy")),
        Convolution(size=(24, 6), scale="down", act=False, bands=8, max_rows=3),
        Convolution(kernel_size=1, channels=(8, 8), act=False, circular="xy"),
        Convolution(channels=(3, 5), act=False),
        Convolution(channels=(5, 3), layout="channels first", max_rows=3),
    ],
    ids=str,
)
def test_what_only_the_direct_kernel_computes(case: Convolution) -> None:
    assert_within("direct", case.channels[0], *errors("direct", case))


@pytest.mark.parametrize("case", [case for case in CASES if case.channels == USUAL.channels], ids=str)
def test_double_precision_is_double_throughout(case: Convolution) -> None:
    assert_within("float64", case.channels[0], *errors("direct", replace(case, dtype=torch.float64)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", ["same", "up", "down"])
def test_half_precision_rounds_each_step_once(dtype: torch.dtype, scale: str) -> None:
    """The norm's result, the kernel (summed in float32 for a doubling), the sum and the residual's sum are rounded."""
    case = Convolution(scale=scale, act=scale == "same", residual="another" if scale == "same" else None, dtype=dtype)
    maps = make(case)
    result, added = exact(case, maps)
    with torch.no_grad():
        run(convolution("direct", case, maps))
    error = (joined(maps.target).double() - result - added).square().mean().sqrt()
    assert error <= 1.0 * torch.finfo(dtype).eps / 2 * (result + added).square().mean().sqrt()


@pytest.mark.parametrize("name", [COMPILED, "torch"])
@torch.no_grad()
def test_strips_in_any_order_and_some_of_them_twice(name: str) -> None:
    """What one strip leaves in the operands' memory must not reach the next, which may be smaller."""
    case = replace(USUAL, size=(13, 9), max_rows=8, residual="another")
    maps = make(case)
    result, added = exact(case, maps)
    kernel = convolution(name, case, maps)
    try:
        prepared_strips = prepare(kernel)
        for strip in [*reversed(prepared_strips), *prepared_strips[:1], prepared_strips[-1]]:
            kernel.compute(strip)
    finally:
        kernel.close()
    error = joined(maps.target).double() - result - added
    assert error.abs().max() <= BOUNDS["winograd"].largest * result.square().mean().sqrt()


def prepare(kernel: Any) -> list[Any]:
    kernel.prepare(kernel.pack())
    return kernel.layout.strips()


# Attention.


def make_attention(channels: int) -> Attention:
    """Weights such that scores are of unit variance, as far as the norm makes tokens so."""
    generator = torch.Generator().manual_seed(1)
    module = Attention(channels, norm_num_groups=8)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = values / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 0.5 + 0.2 * values
    return module


def exact_attention(module: Attention, x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    """What attention adds to [B, N, C], in float64."""

    def apply(layer: Any, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight.double(), layer.bias.double())

    tokens = x.double() * affine[0][:, None].double() + affine[1][:, None].double()
    query, key, value = (apply(layer, tokens) for layer in (module.to_q, module.to_k, module.to_v))
    parts = [torch.softmax(each @ key.mT / x.shape[2] ** 0.5, dim=-1) @ value for each in query.split(1024, dim=1)]
    return apply(module.to_out[0], torch.cat(parts, dim=1))


class Attending(NamedTuple):
    size: tuple[int, int]
    channels: int = 64
    batch: int = 1
    in_place: bool = False
    fused: bool = False
    strip_bytes: int = 2**22
    bands: int | None = None


ATTENDING = [
    *(Attending(size) for size in [(1, 1), (1, 2), (1, 17), (17, 1), (15, 17), (16, 16), (1, 257), (32, 33)]),
    Attending((12, 9), channels=24),  # fewer than fill vectors
    Attending((12, 9), channels=512),
    Attending((12, 9), in_place=True),
    Attending((12, 9), fused=True),
    Attending((12, 9), batch=3, in_place=True),
    Attending((21, 19), strip_bytes=2**10),  # chunks of few queries, the last of them shorter
    Attending((91, 91), channels=32),  # more keys than one packed block takes
    Attending((20, 9), bands=8),
]


@torch.no_grad()
def attention_errors(name: str, case: Attending) -> tuple[float, float]:
    """As `errors`."""
    generator = torch.Generator().manual_seed(0)
    module, (height, width) = make_attention(case.channels), case.size
    x = torch.randn(case.batch, height, width, case.channels, generator=generator) + 0.5
    source = in_bands(x, case.bands)
    affine = ChannelStats(height * width, *moments(x)).affine(module.group_norm)
    wanted = exact_attention(module, x.flatten(1, 2), affine).view_as(x)
    if case.fused:
        module.fuse_projections()
        module.set_processor(FusedAttnProcessor2_0())
    target = source if case.in_place else in_bands(torch.full_like(x, torch.nan), case.bands)
    stats = run(attention(name, module, source, target, affine, case.strip_bytes))
    found = joined(target).double()
    check_statistics(stats, found, torch.float32)
    error = (found - x.double() - wanted) / (wanted.square().mean() + x.square().mean()).sqrt()
    return error.square().mean().sqrt().item(), error.abs().max().item()


@pytest.mark.skipif(not products_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("name", ["packed", "stored"])
@pytest.mark.parametrize("case", ATTENDING, ids=str)
def test_attention(case: Attending, name: str) -> None:
    assert_within("attention", case.channels, *attention_errors(name, case))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of [B, H, W, C], each [B, C] in float64."""
    mean = x.double().mean((1, 2))
    return mean, (x.double() - mean[:, None, None]).square().sum((1, 2))


@torch.no_grad()
def test_attention_over_keys_that_come_in_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(count, 32, generator=generator) for count in (5, 8200, 8200))
    keys[8195] *= 8  # the largest scores are in the second block
    maps = [in_bands(each[None, :, None], 4096) for each in (keys, values)]
    found = attend_in_blocks(query, *maps).double()
    wanted = torch.softmax(query.double() @ keys.double().t() / 32**0.5, dim=1) @ values.double()
    error = (found - wanted) / wanted.square().mean().sqrt()
    # A weight's error is the rounding of its score, which is up to about 30 here.
    assert error.abs().max() <= 30 * 2**-22
