"""Less memory: smaller jobs, jobs within what is free, and batches under a budget."""

from __future__ import annotations

from typing import Any

import pytest
from given.counts import Calls
from given.inputs import latent
from given.models import SMALL, make
from given.runs import SIZE

import vae_core
from vae_core import AutoencoderKL, MemoryBudgetError, Options
from vae_core.streaming import strips
from vae_core.streaming.job import Job

# Smaller jobs.


def rungs(first: Job) -> list[Job]:
    found = [first]
    while True:
        try:
            found.append(found[-1].smaller())
        except MemoryBudgetError as error:
            strips = "smaller strips, disk offload and the CPU were all tried; the smallest attempt needed about"
            assert (strips if first._request.can_be_cut else "cannot be cut smaller; it needed about") in str(error)
            return found


def test_each_smaller_job_needs_less_and_gives_the_same(vae: AutoencoderKL) -> None:
    z = latent(2, 64, 64)
    found = rungs(vae_core.prepare_decode(vae, z.shape))
    assert [each.how.split(" ")[0] for each in found[-2:]] == ["with", "with"]
    assert found[-1].bytes.disk >= found[-2].bytes.disk > 0
    sizes = [(each.bytes.device, -each.plan.strips) for each in found]
    assert sizes == sorted(set(sizes), reverse=True)
    want = found[0].run(z)
    for each in found[1:]:
        assert (each.run(z) - want).abs().max() < 1e-5


@pytest.mark.thorough
def test_the_ladder_of_an_accelerator_ends_on_the_cpu(vae: AutoencoderKL) -> None:
    found = rungs(vae_core.prepare_decode(vae, (1, 4, 192, 192), device="cuda", available=2**30))
    assert found[0].way[:2] == ("whole", "it fits into the device's memory")
    assert found[-1].how == "on the CPU" and found[-1].device.type == "cpu"
    assert any(each.bytes.cpu for each in found[:-1])
    z = latent(1, 192, 192)
    assert (found[-1].run(z) - vae_core.decode(vae, z)).abs().max() < 1e-5


def test_a_patched_model_stays_patched_on_the_cpu() -> None:
    vae, calls = make(SMALL), []
    vae.decoder.register_forward_hook(lambda *_: calls.append("called"))
    found = rungs(vae_core.prepare_decode(vae, (1, 4, 24, 24), device="cuda", available=2**30))
    assert [each.how for each in found] == ["in the first attempt", "on the CPU"]
    found[-1].run(latent(1, SIZE))
    assert calls == ["called"]


def test_a_job_within_what_is_free(vae: AutoencoderKL) -> None:
    first = vae_core.prepare_decode(vae, (1, 4, 128, 128), device="cuda", available=2**40)
    assert first.within(first.bytes.device) is first
    less = first.within(first.bytes.device * 2 // 3)
    assert less.bytes.device <= first.bytes.device * 2 // 3 and less.way.name == "strips"
    on_cpu = vae_core.prepare_decode(vae, (1, 4, 128, 128))
    assert on_cpu.within(1) is on_cpu  # hosts make no room there


# Batches under a budget.


@pytest.mark.parametrize("batch", [2, 5, 8])
@pytest.mark.parametrize("encode", [False, True], ids=["decode", "encode"])
def test_a_batch_needs_no_more_budget_than_one_item(batch: int, encode: bool, vae: AutoencoderKL) -> None:
    prepare = vae_core.prepare_encode if encode else vae_core.prepare_decode
    shape = (3, 80, 80) if encode else (4, 40, 40)
    one = prepare(vae, (1, *shape))
    budgets = [one.plan.peak_bytes * percent // 100 for percent in (100, 80, 60)]
    for budget in [*budgets, least_budget(lambda budget: prepare(vae, (1, *shape), Options(memory_budget=budget)))]:
        alone = prepare(vae, (1, *shape), Options(memory_budget=budget))
        together = prepare(vae, (batch, *shape), Options(memory_budget=budget))
        assert together.plan.peak_bytes <= budget and together.plan.places.disk <= alone.plan.places.disk
    free = prepare(vae, (batch, *shape))
    fewer = prepare(vae, (batch, *shape), Options(memory_budget=one.plan.peak_bytes))
    assert fewer.plan.items < free.plan.items and not fewer.plan.places.disk


def least_budget(prepare_with: Any) -> int:
    with pytest.raises(MemoryBudgetError, match="Give at least") as caught:
        prepare_with(1)
    return int(str(caught.value).rpartition("at least ")[2].split()[0]) * 2**20


@pytest.mark.thorough
def test_the_ladder_of_a_batch_is_planned_once(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    calls.of(strips, "plan_program", "plans")
    counts = calls.counts
    first = vae_core.prepare_decode(vae, (8, 4, 40, 40))
    second = first.smaller()
    assert (second.how, second.plan.items) == ("one item of the batch at a time", 1)
    planned = counts["plans"]
    found = rungs(second)
    # A plan for each rung that is tried, and none of those with which the ladder was made.
    assert counts["plans"] - planned <= 3 and len(found) > 1
    z = latent(8, 40, 40)
    want = first.run(z)
    for each in found:
        assert (each.run(z) - want).abs().max() < 1e-5


def test_items_at_once_are_an_option(vae: AutoencoderKL) -> None:
    z = latent(5, 20, 20)
    several, alone = (vae_core.prepare_decode(vae, z.shape, Options(max_items=items)) for items in (2, 1))
    assert (several.plan.items, alone.plan.items) == (2, 1)
    assert (several.run(z) - alone.run(z)).abs().max() < 1e-5
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(vae_core.ConfigError, match="max_items"):
            Options(max_items=wrong)  # type: ignore[arg-type]
