"""Memory of kernels: as much as planned, term by term, made once for a pass, and given back."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from given.allocations import LargestAllocation
from given.passes import CPU, pass_inputs
from torch import nn

from vae_core.streaming import winograd
from vae_core.streaming.compiled_winograd import CompiledWinograd
from vae_core.streaming.direct import DirectConvolution
from vae_core.streaming.executor import PackedWeights
from vae_core.streaming.internals import products_available
from vae_core.streaming.kernel import one_by_one
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.options import Axes
from vae_core.streaming.program import Convolve
from vae_core.streaming.scratch import Scratches, ScratchStore, Spare, total
from vae_core.streaming.stats import StatsTable, StripStats
from vae_core.streaming.store import MapStore
from vae_core.streaming.torch_winograd import TorchWinograd


def kernel(
    kind: Any,
    channels: tuple[int, int] = (32, 48),
    scale: Any = "same",
    size: tuple[int, int] = (24, 20),
    workers: int = 2,
    shortcut: bool = False,
    circular: bool = False,
    layout: str = "whole",
    store: MapStore | None = None,
    dtype: torch.dtype = torch.float32,
    map_dtype: torch.dtype | None = None,
) -> Any:
    of_maps = map_dtype or dtype
    inputs, outputs = channels
    height, width = {"same": size, "up": (2 * size[0], 2 * size[1]), "down": (size[0] // 2, size[1] // 2)}[scale]
    activated = scale == "same"
    target = torch.empty(1, height, width, outputs, dtype=of_maps)
    if layout == "channels first":
        target = torch.empty(1, outputs, height, width, dtype=of_maps).permute(0, 2, 3, 1)
    step = Convolve(
        "source",
        "target",
        nn.Conv2d(inputs, outputs, 3, dtype=dtype),
        scale=scale,
        norm=nn.GroupNorm(1, inputs) if activated else None,
        act=nn.SiLU() if activated else None,
        residual="residual" if shortcut else None,
        shortcut=nn.Conv2d(24, outputs, 1, dtype=dtype) if shortcut else None,
    )
    return kind(
        pass_inputs(
            step,
            FeatureMap.of(torch.randn(1, *size, inputs).to(of_maps)),
            FeatureMap.of(target),
            residual=FeatureMap.of(torch.randn(1, height, width, 24).to(of_maps)) if shortcut else None,
            dtype=dtype,
            coefficients=(torch.ones(1, inputs), torch.zeros(1, inputs)) if activated else None,
            circular=Axes(y=circular, x=circular),
            max_rows=8,
            map_dtype=of_maps,
            workers=workers,
            store=store,
        )
    )


CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "more workers than strips": {"workers": 40},
    "up": {"scale": "up"},
    "down": {"scale": "down"},
    "a shortcut": {"shortcut": True},
    "circular": {"circular": True},
    "channels first": {"layout": "channels first"},
    "channels that do not fill a block of the ring": {"channels": (144, 16)},
    "weights in pieces": {"channels": (352, 352), "size": (8, 8)},
    "maps in bfloat16": {"shortcut": True, "map_dtype": torch.bfloat16},
    "a place for bfloat16": {"layout": "channels first", "map_dtype": torch.bfloat16},
    "products in bfloat16": {"shortcut": True, "map_dtype": torch.bfloat16, "dtype": torch.bfloat16},
    "products in bfloat16 of a doubled map": {"scale": "up", "map_dtype": torch.bfloat16, "dtype": torch.bfloat16},
}


COMPILED = pytest.param(
    CompiledWinograd, marks=pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed"), id="compiled"
)
TORCH = pytest.param(
    TorchWinograd, marks=pytest.mark.skipif(not products_available(), reason="torch has no oneDNN"), id="torch"
)


@pytest.mark.parametrize("kind", [COMPILED, TORCH])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_terms_of_a_fast_kernel_are_what_it_allocates(case: str, kind: Any) -> None:
    if "products in" in case and (kind is TorchWinograd or not winograd.jit().BFLOAT16):
        pytest.skip("the processor has no instructions for it, or the kernel does not use them")
    if case == "down" and kind is TorchWinograd:
        pytest.skip("this kernel has no strides")
    made = kernel(kind, **CASES[case])
    terms = made.workspace()
    packed = made.pack()
    if kind is TorchWinograd:
        weights = [each.weight.numel() * 4 for each in (*packed.products, *filter(None, [packed.shortcut]))]
    else:
        weights = [packed.weights.nbytes, packed.shortcut.nbytes]
    assert sum(weights) == terms["weights"] == made.packed_bytes()
    made.prepare(packed)
    allocated = made.scratches.allocated
    if "packing" not in terms:
        assert allocated == {name: size for name, size in terms.items() if name not in ("weights", "sums", "copy")}
        assert terms["sums"] == made._sums.nbytes
    else:
        assert sum(allocated.values()) < terms["packing"]
    made.close()


@pytest.mark.parametrize(
    ("dtype", "map_dtype"),
    [(each, each) for each in (torch.float32, torch.float64, torch.bfloat16)] + [(torch.float32, torch.bfloat16)],
)
@pytest.mark.parametrize("scale", ["same", "up", "down"])
@pytest.mark.parametrize("shortcut", [False, True])
@torch.no_grad()
def test_terms_of_the_direct_kernel_are_what_it_allocates(
    scale: str, shortcut: bool, dtype: torch.dtype, map_dtype: torch.dtype
) -> None:
    made = kernel(DirectConvolution, scale=scale, shortcut=shortcut, circular=True, dtype=dtype, map_dtype=map_dtype)
    terms = made.workspace()
    made.prepare(made.pack())
    allocated = made.scratches.allocated
    assert allocated and allocated == {name: terms[name] for name in allocated}
    passing = {name: size for name, size in terms.items() if name not in {*allocated, "statistics", "weights"}}
    passing["normalized"] = passing.get("normalized", 0) // 2  # before and after the activation
    with LargestAllocation() as taken:
        for strip in made.layout.strips():
            made.compute(strip)
    assert taken.bytes == max(passing.values())
    made.close()


@torch.no_grad()
def test_pieces_that_the_direct_kernel_joins_are_planned() -> None:
    def banded(channels: int) -> FeatureMap:
        bands = torch.randn(1, 6, 10, channels), torch.randn(1, 4, 10, channels)
        return FeatureMap(bands, torch.Size((1, 10, 10, channels)))

    step = Convolve("source", "target", nn.Conv2d(32, 8, 1), residual="residual")
    target = FeatureMap.of(torch.empty(1, 10, 10, 8))
    made: Any = DirectConvolution(pass_inputs(step, banded(32), target, residual=banded(8)))
    terms = made.workspace()
    made.prepare(made.pack())
    with LargestAllocation() as taken:
        made.compute(made.layout.first)
    assert terms["joined"] == 4 * 10 * 10 * (32 + 8)
    assert taken.bytes == 4 * 10 * 10 * 32
    made.close()


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_strips_of_a_fast_kernel_take_nothing_of_an_allocator(case: str) -> None:
    made = kernel(CompiledWinograd, **CASES[case])
    made.prepare(made.pack())
    with LargestAllocation() as largest:
        for strip in made.layout.strips():
            made.compute(strip)
    made.combine(range(len(made.layout)))
    made.close()
    assert largest.bytes <= 2**10


def test_memory_stays_from_pass_to_pass_and_what_is_too_much_is_given_back() -> None:
    store = ScratchStore()
    first = store.lend(2, 2**22)
    for block in first:
        block.data.fill_(1)
    places = [block.data.data_ptr() for block in first]
    store.take_back(first)
    second = store.lend(2, 2**20)
    if sys.platform == "linux":
        assert [block.data.data_ptr() for block in second] == places
        assert all(bool((block.data[: 2**20] == 1).all()) for block in second)
        assert not any(bool(block.data[2**20 :].any()) for block in second), "pages that are given back are zero"
    store.take_back(second)
    (third,) = store.lend(1, 2**23)
    assert third.data.numel() >= 2**23
    store.take_back([third])
    assert store.lend(0, 0) == []
    store.drop()


def test_what_a_later_pass_needs_is_room_from_the_beginning() -> None:
    store = ScratchStore(room=2**22)
    (block,) = store.lend(1, 2**20)
    block.data[: 2**20].fill_(1)
    place = block.data.data_ptr()
    assert block.used == 2**20  # of more addresses than that
    for size, kept in ((2**22, 2**20), (2**19, 2**19), (2**22, 2**19)):
        store.take_back([block])
        (block,) = store.lend(1, size)
        assert block.used == size <= block.data.numel()
        if sys.platform == "linux":
            assert block.data.data_ptr() == place
            assert int(block.data.sum()) == kept, "what was written is kept, and beyond what a pass used all is zero"
    store.take_back([block])
    assert store.lend(1, 2**23)[0].data.numel() >= 2**23


def test_parts_do_not_touch_and_begin_at_cache_lines() -> None:
    sizes = {"a": 3, "b": 4 * 7, "c": 64, "d": 8}
    scratches = Scratches(ScratchStore(), 3, sizes)
    lent = [scratches.take() for _ in range(3)]
    for scratch in lent:
        for number, part in enumerate(scratch.parts.values()):
            assert part.data_ptr() % 64 == 0
            part.fill_(number)
    for scratch in lent:
        assert [part.unique().tolist() for part in scratch.parts.values()] == [[0], [1], [2], [3]]
        assert [part.numel() for part in scratch.parts.values()] == list(sizes.values())
    assert total(sizes) == 4 * 64
    with pytest.raises(IndexError):
        scratches.take()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_table_keeps_statistics_as_they_are(dtype: torch.dtype) -> None:
    strips = [torch.randn(2, 3, 5, 7).to(dtype) for _ in range(4)]
    table = StatsTable(4, (2, 7), dtype, CPU)
    stats = [StripStats.of(strip) for strip in strips]
    for index, each in enumerate(stats):
        table.put(index, each)
    for index, each in enumerate(stats):
        found = table.of(index)
        assert found.count == each.count
        assert all(torch.equal(a, b) for a, b in zip(found[1:], each[1:], strict=True))
    assert StatsTable.bytes(4, (2, 7), dtype) == 4 * 3 * 2 * 7 * (8 if dtype == torch.float64 else 4)


def test_weights_take_over_the_memory_of_those_before() -> None:
    spare = Spare()
    first = spare.take(2**22)
    spare.give_back_untaken()
    assert spare.take(2**20).data_ptr() == first.data_ptr()  # fewer
    spare.give_back_untaken()
    more = spare.take(2**23)
    assert more.numel() == 2**23 and not more.any()  # more: fresh
    spare.give_back_untaken()
    assert spare.held == 2**23
    spare.give_back_untaken()  # a pass that has taken none
    assert spare.held == 0


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@torch.no_grad()
def test_weights_that_are_kept_have_memory_of_their_own() -> None:
    weights = PackedWeights(limit=2**20)
    first, second, third = (kernel(CompiledWinograd, channels=(16, size)) for size in (64, 2048, 1024))
    kept = weights.of(0, first, one_by_one).weights
    wanted = kept.copy()
    for index, each in ((1, second), (2, third)):
        weights.of(index, each, one_by_one)
    assert weights.of(0, first, one_by_one).weights is kept and (kept == wanted).all()
    assert weights.used == first.packed_bytes() and weights.spare.held == third.packed_bytes()
