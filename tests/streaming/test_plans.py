"""The numbers of a plan: what runs, in how many parts, how much of it, and in how much memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from given.models import SMALL, make

import vae_core
from vae_core import AutoencoderKL, MemoryBudgetError, Options, Plan, TileSpec
from vae_core.streaming.plan import parts_of
from vae_core.tiling.blend import cut_tiles, kept_positions

MIB = 2**20
TILES = TileSpec(size=16, overlap=4, mode="blended")


@pytest.fixture(params=["winograd", "direct"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    with vae_core.kernels(request.param):
        yield request.param


def planned(vae: AutoencoderKL, batch: int, **options: Any) -> Plan:
    return vae_core.prepare_decode(vae, (batch, 4, 40, 40), Options(**options)).plan


@pytest.mark.parametrize("batch, items, parts", [(1, 1, [1]), (2, 2, [2]), (4, 2, [2, 2]), (5, 2, [2, 2, 1])])
def test_parts_of_a_batch(batch: int, items: int, parts: list[int], vae: AutoencoderKL, kernels: str) -> None:
    assert parts_of(batch, items) == parts
    whole = planned(vae, batch, max_items=items)
    each = [planned(vae, count, max_items=items) for count in parts]
    assert whole.items == items and whole.tiles == 0
    for name in ("passes", "strips", "flops", "untiled_flops", "pass_flops"):
        assert getattr(whole, name) == sum((getattr(part, name) for part in each[1:]), getattr(each[0], name)), name
    assert len(whole.pass_flops) == whole.passes and sum(whole.pass_flops) == whole.flops == whole.untiled_flops
    assert whole.fast_share == each[0].fast_share and (0 < whole.fast_share < 1) == (kernels == "winograd")
    assert whole.places == each[0].places
    # Packed weights are kept from one part to the next.
    packed = whole.terms.get("packed weights", 0)
    assert (packed > 0) == (len(parts) > 1)
    assert whole.peak_bytes == sum(whole.terms.values()) == each[0].peak_bytes + packed


def test_packed_weights_are_kept_where_there_is_room(vae: AutoencoderKL) -> None:
    free = planned(vae, 4, max_items=2)
    enough = planned(vae, 4, max_items=2, memory_budget=free.peak_bytes).peak_bytes
    assert "packed weights" in planned(vae, 4, max_items=2, memory_budget=enough).terms
    without = planned(vae, 4, max_items=2, memory_budget=enough - 1)
    assert "packed weights" not in without.terms and without.passes == free.passes


@pytest.mark.parametrize("side", [20, 200])
def test_memory_that_allocators_keep(side: int, vae: AutoencoderKL) -> None:
    """A quarter of what is planned up to a limit, and a share; less where a small budget makes passes give it back."""
    free = vae_core.prepare_decode(vae, (1, 4, side, side)).plan
    small = vae_core.prepare_decode(vae, (1, 4, side, side), Options(memory_budget=free.peak_bytes)).plan
    for plan, limit, share in ((free, 16, 0.05), (small, 12, 0.03)):
        kept = plan.terms["kept by allocators"]
        asked = plan.peak_bytes - kept
        assert kept == int(min(asked / 4, limit * MIB) + asked * share)


def test_blended_tiles(vae: AutoencoderKL) -> None:
    sizes = cut_tiles((40, 40), TILES, 1)
    one, five = planned(vae, 1, tiling=TILES), planned(vae, 5, tiling=TILES, max_items=2)
    assert one.tiles == one.passes == sum(sizes.values()) > 1
    assert five.tiles == five.passes == 3 * one.tiles and five.strips == one.strips == 0
    assert five.flops == 5 * one.flops and five.untiled_flops == 5 * one.untiled_flops < five.flops
    assert one.untiled_flops == planned(vae, 1).flops
    unit = 2 ** (len(vae.config.block_out_channels) - 1)
    edges = kept_positions((40 * unit, 40 * unit), TILES, unit)
    assert one.terms["edges"] == 3 * 4 * edges and five.terms["edges"] == 2 * one.terms["edges"]
    assert five.terms["maps"] == 2 * one.terms["maps"] == five.places.device
    assert five.peak_bytes == sum(five.terms.values()) and five.fast_share == 0 and not five.pass_flops


def test_the_reference_path() -> None:
    vae = make(SMALL)
    vae.decoder.register_forward_hook(lambda *_: None)
    free, one = planned(vae, 5, max_items=2), planned(vae, 1)
    assert (free.passes, free.strips, free.tiles, free.items, free.fast_share) == (3, 0, 0, 2, 0)
    assert free.pass_flops == tuple(count * one.flops for count in (2, 2, 1))
    assert free.flops == free.untiled_flops == 5 * one.flops == 5 * planned(make(SMALL), 1).flops
    assert free.terms == {"maps": 2 * one.terms["maps"]} and free.places == (free.peak_bytes, 0, 0)
    widest = max(math.prod(shape) for shape in map_shapes(vae))
    assert one.peak_bytes == 6 * 4 * widest, "so many of the largest map"


def map_shapes(vae: AutoencoderKL) -> list[torch.Size]:
    """Of what the decoder's layers make for one item."""
    found: list[torch.Size] = []
    handles = [
        layer.register_forward_hook(lambda _, __, made: found.append(made.shape))
        for layer in vae.decoder.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.GroupNorm)
    ]
    with torch.no_grad():
        vae.decode_reference(torch.zeros(1, 4, 40, 40))
    for handle in handles:
        handle.remove()
    return found


def test_a_message_names_the_least_budget_in_mebibytes(vae: AutoencoderKL) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        planned(vae, 1, memory_budget=1)
    assert "does not fit into 0 MiB. Give at least " in str(caught.value)
    least = int(str(caught.value).rpartition("at least ")[2].split()[0])
    assert planned(vae, 1, memory_budget=least * MIB).peak_bytes <= least * MIB
    with pytest.raises(MemoryBudgetError, match=f"does not fit into {least - 2} MiB. Give at least {least} MiB"):
        planned(vae, 1, memory_budget=(least - 2) * MIB)


def test_strips_of_a_size_are_measured_by_the_height(vae: AutoencoderKL) -> None:
    def strips(*size: int) -> int:
        return vae_core.prepare_decode(vae, (1, 4, *size), Options(tiling=TileSpec(size=5))).plan.strips

    assert strips(40, 10) <= strips(40, 100) <= 1.2 * strips(40, 10)  # a few more where a row is large
    assert strips(100, 40) > 2 * strips(40, 40) > 4 * strips(10, 40)


def test_no_plan_is_over_its_budget(vae: AutoencoderKL) -> None:
    free = planned(vae, 1).peak_bytes
    budgets = range(free // 4, free, free // 64)
    plans: dict[int, Plan] = {}
    for budget in budgets:
        with contextlib.suppress(MemoryBudgetError):
            plans[budget] = planned(vae, 1, memory_budget=budget)
    assert len(plans) > 15
    assert {budget: plan.peak_bytes for budget, plan in plans.items() if plan.peak_bytes > budget} == {}
    assert all(plan.terms["kept by allocators"] > 0 for plan in plans.values())
