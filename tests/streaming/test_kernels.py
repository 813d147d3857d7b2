"""Every kernel of convolutions against float64, one pass at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given.passes import BOUNDS, assert_within, check_statistics, in_bands, joined, pass_inputs, run_pass
from torch import Tensor, nn

from vae_core.streaming import internals, winograd
from vae_core.streaming.compiled_winograd import CompiledWinograd
from vae_core.streaming.direct import DirectConvolution
from vae_core.streaming.kernel import Kernel
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.options import Axes
from vae_core.streaming.program import Convolve
from vae_core.streaming.torch_winograd import TorchWinograd
from vae_core.streaming.transforms import TILE


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


def convolution(name: str, case: Convolution, maps: Maps, dtype: torch.dtype | None = None) -> Kernel:
    """For maps, computing in their own precision, or in another."""
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
        pass_inputs(
            step,
            maps.source,
            maps.target,
            residual=maps.residual,
            dtype=dtype or maps.source.dtype,
            map_dtype=maps.source.dtype,
            coefficients=maps.coefficients,
            circular=Axes(y="y" in case.circular, x="x" in case.circular),
            max_rows=case.max_rows,
            strip_bytes=case.strip_bytes,
        )
    )


def laid_out(whole: Tensor, case: Convolution) -> FeatureMap:
    if case.layout == "channels first":
        return FeatureMap.of(whole.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    if case.layout == "narrowed":
        wider = torch.cat([whole, torch.full_like(whole, 7.0)], dim=3)
        return in_bands(wider, case.bands).narrowed(whole.shape[3])
    return in_bands(whole, case.bands)


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
    stats = run_pass(convolution(name, case, maps))
    found = joined(maps.target).double()
    check_statistics(stats, found, case.dtype)
    if case.layout == "narrowed":
        for band in maps.target.bands:
            assert (band.as_strided(band.shape, band.stride(), band.storage_offset() + band.shape[3]) == 7.0).all()
    # The sum with the residual is rounded once more, relative to a larger number.
    unit = (result.square().mean() + added.square().mean()).sqrt()
    error = (found - result - added) / unit
    return error.square().mean().sqrt().item(), error.abs().max().item()


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
    return {"same": "winograd", "up": "upsample", "down": "downsample"}[case.scale]


@pytest.mark.skipif(not internals.products_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.thorough
def test_a_convolution(case: Convolution, name: str) -> None:
    mean, largest = errors(name, case)
    assert_within(kind_of(name, case), case.channels[0], mean, largest)


STRIDED = [
    *(
        Convolution(size=size, scale="down", act=False)
        for size in [(2, 2), (3, 5), (2, 20), (20, 2), (8, 9), (9, 8), (16, 24), (19, 33)]
    ),
    *(
        Convolution(size=size, scale="down", act=False, circular=axes)
        for size in [(2, 2), (8, 10), (18, 16)]
        for axes in ("x", "y", "xy")
    ),
    Convolution(size=(26, 22), scale="down", act=False, batch=3),
    Convolution(size=(40, 6), scale="down", act=False, max_rows=8),
    Convolution(size=(40, 14), scale="down", act=False, bands=12),
    Convolution(size=(18, 10), scale="down", act=False, layout="narrowed"),
    Convolution(size=(18, 10), scale="down", act=False, layout="channels first"),
    Convolution(size=(10, 12), channels=(144, 16), scale="down", act=False),
    Convolution(size=(10, 12), channels=(16, 176), scale="down", act=False),
]


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_a_convolution_with_a_stride(case: Convolution) -> None:
    assert_within("downsample", case.channels[0], *errors("compiled", case))


@pytest.mark.parametrize(
    "case",
    [
        *STRIDED,
        Convolution(size=(24, 6), scale="down", act=False, bands=8, max_rows=3),
        Convolution(kernel_size=1, channels=(8, 8), act=False, circular="xy"),
        Convolution(channels=(3, 5), act=False),
        Convolution(channels=(5, 3), layout="channels first", max_rows=3),
    ],
    ids=str,
)
def test_what_torchs_own_convolution_computes(case: Convolution) -> None:
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
        run_pass(convolution("direct", case, maps))
    error = (joined(maps.target).double() - result - added).square().mean().sqrt()
    assert error <= 1.0 * torch.finfo(dtype).eps / 2 * (result + added).square().mean().sqrt()


@pytest.mark.skipif(not internals.products_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", [*CASES, replace(USUAL, scale="down", act=False, size=(8, 6))], ids=str)
@torch.no_grad()
@pytest.mark.thorough
def test_maps_in_bfloat16_are_what_float32_gives_rounded_once(case: Convolution, name: str) -> None:
    if name == "torch" and case.scale == "down":
        pytest.skip("this kernel has no strides")
    stored = make(replace(case, dtype=torch.bfloat16))
    affine = stored.coefficients and (stored.coefficients[0].float(), stored.coefficients[1].float())
    source, target = widened(stored.source, case), widened(stored.target, case)
    residual = target if case.residual == "in place" else stored.residual and widened(stored.residual, case)
    wide = Maps(stored.conv.float(), stored.shortcut and stored.shortcut.float(), source, target, residual, affine)
    expected = run_pass(convolution(name, case, wide))
    found = run_pass(convolution(name, case, replace(stored, coefficients=affine), torch.float32))
    assert torch.equal(joined(stored.target), joined(wide.target).bfloat16())
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.m2, expected.m2)


def widened(whole: FeatureMap, case: Convolution) -> FeatureMap:
    """A map in float32, in bands as large as before."""
    return in_bands(joined(whole).float(), case.bands)


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
