"""Every kernel of attention against float64, one pass at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from given.allocations import LargestAllocation
from given.passes import assert_within, check_statistics, in_bands, joined, pass_inputs, run_pass
from torch import Tensor

from vae_core.attention import Attention, FusedAttnProcessor2_0
from vae_core.halves import AttentionLayers
from vae_core.streaming.internals import products_available
from vae_core.streaming.kernel import Kernel
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.packed_attention import PackedAttention
from vae_core.streaming.program import Attend
from vae_core.streaming.stats import ChannelStats
from vae_core.streaming.stored_attention import StoredAttention, attend_in_blocks


def attention(
    name: str, module: Attention, source: FeatureMap, target: FeatureMap, affine: Any, strip_bytes: int
) -> Kernel:
    kind = PackedAttention if name == "packed" else StoredAttention
    step = Attend("source", "target", source.shape[3], module.group_norm, AttentionLayers(module))
    return kind(pass_inputs(step, source, target, coefficients=affine, strip_bytes=strip_bytes))


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
    stats = run_pass(attention(name, module, source, target, affine, case.strip_bytes))
    found = joined(target).double()
    check_statistics(stats, found, torch.float32)
    error = (found - x.double() - wanted) / (wanted.square().mean() + x.square().mean()).sqrt()
    return error.square().mean().sqrt().item(), error.abs().max().item()


@pytest.mark.skipif(not products_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("name", ["packed", "stored"])
@pytest.mark.parametrize("case", ATTENDING, ids=str)
@pytest.mark.thorough
def test_attention(case: Attending, name: str) -> None:
    assert_within("attention", case.channels, *attention_errors(name, case))


@pytest.mark.skipif(not products_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize(("size", "channels", "batch"), [((16, 16), 64, 1), ((16, 24), 32, 3), ((96, 96), 16, 1)])
@torch.no_grad()
def test_terms_of_packed_attention_are_what_it_allocates(size: tuple[int, int], channels: int, batch: int) -> None:
    module, (height, width) = make_attention(channels), size
    x = torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(0))
    affine = ChannelStats(height * width, *moments(x)).affine(module.group_norm)
    source, target = in_bands(x, None), in_bands(torch.empty_like(x), None)
    made: Any = attention("packed", module, source, target, affine, 2**22)
    terms = made.workspace()
    with LargestAllocation() as preparing:
        made.prepare(made.pack())
    packed = [
        each for item in made._items for each in (item.query[0], *(part for block in item.blocks for part in block))
    ]
    assert terms["keys"] == sum(each.weight.nbytes for each in packed)
    assert preparing.bytes <= terms["packing"]
    assert terms["statistics"] == made._table.values.nbytes
    with LargestAllocation() as computing:
        for strip in made.layout.strips():
            made.compute(strip)
    made.close()
    of_a_worker = terms["scores"] // made.inputs.workers
    assert of_a_worker // 4 <= computing.bytes <= of_a_worker


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
