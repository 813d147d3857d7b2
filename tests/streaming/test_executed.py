"""What is executed is what was planned: passes, strips, tiles, and bytes, place by place and term by term.

Equal are feature maps, in every place, and all that the engine allocates for a pass itself: the parts of the memory
that strips are computed in, tables of statistics, packed weights, packed keys and values, a copy of the input. Bounds
are the terms of PASSING, which operations of torch's take while they compute a strip, from an allocator that the engine
does not own: `test_scratch.py` compares the largest of each kernel's with what is allocated. "kept by allocators" is
what these keep, and nothing allocates it. In later parts of a batch, maps are what the part before has left or fewer,
and the whole is a bound: what is idle serves the next part, so that its pages need not be cleared again.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from given.inputs import image, latent
from given.models import SMALL, fields, make
from given.thinned import thinned

import vae_core
from vae_core import Job, Options, TileSpec
from vae_core.streaming import choose
from vae_core.streaming.executor import PlannedPass
from vae_core.streaming.ledger import PLACES

MIB = 2**20
MODELS = {"small": SMALL, "wide": fields(64, 128, layers_per_block=1)}
OPTIONS = {
    "free": Options(),
    "strips of a size": Options(tiling=TileSpec(size=5)),
    "a budget": Options(memory_budget=12 * MIB),
    "maps in bfloat16": Options(dtype=torch.bfloat16),
    "float64": Options(dtype=torch.float64),
    "circular": Options(circular="both"),
}
# By the kernel, which they are terms of: what torch's operations take meanwhile.
_OF_ATTENTION = {"packing", "scores", "queries", "weights"}
PASSING = {
    "DirectConvolution": {"convolution", "values", "shortcut", "normalized", "widened", "joined", "weights"},
    "StoredAttention": _OF_ATTENTION,
    "PackedAttention": _OF_ATTENTION,
    "CompiledWinograd": {"packing"},
    "TorchWinograd": {"packing"},
}


def passes_of(job: Job) -> list[PlannedPass]:
    """Every pass of the batch, part after part."""
    planned: Any = job._planned
    full, rest = divmod(job.shape[0], job.plan.items)
    return [*planned.planned.planned * full, *(planned.planned.rest if rest else ())]


def check(job: Job) -> None:
    plan, executed = job.plan, job.executed
    assert executed is not None
    assert (executed.passes, executed.strips, executed.tiles) == (plan.passes, plan.strips, plan.tiles)
    assert tuple(executed.places[name] for name in PLACES) == tuple(plan.places)
    passes = passes_of(job)
    assert len(passes) == len(executed.records)
    in_a_part = len(job._planned.planned.planned)  # type: ignore[attr-defined]
    for index, (each, record) in enumerate(zip(passes, executed.records, strict=True)):
        assert record.strips == len(each.layout)
        passing = PASSING[each.kernel.__name__]
        if "packing" in each.terms and each.kernel.fast:  # where making the weights takes more than the strips do
            assert sum(record.held.values()) <= sum(each.terms.values())
            continue
        held, want = dict(record.held), {name: size for name, size in each.terms.items() if name not in passing}
        if index >= in_a_part:
            more = held.pop("maps") - want.pop("maps")
            assert sum(each.terms.values()) + more <= plan.peak_bytes
        assert held == want
    most = max(sum(each.terms.values()) for each in passes)
    kept = plan.terms["kept by allocators"] + plan.terms.get("packed weights", 0)
    assert plan.peak_bytes == most + kept == sum(plan.terms.values())


@thinned(model=list(MODELS), options=list(OPTIONS), kernels=["auto", "direct", "winograd"], encode=[False, True])
def test_bytes_are_those_of_the_plan(model: str, options: str, kernels: Any, encode: bool) -> None:
    vae = make(MODELS[model])
    x = image(2, 100) if encode else latent(2, 50, 44)
    prepare = vae_core.prepare_encode if encode else vae_core.prepare_decode
    with vae_core.kernels(kernels):
        job = prepare(vae, x.shape, OPTIONS[options])
        job.run(x)
    assert job.way.name == "strips"
    check(job)


def test_the_peak_is_equal_where_nothing_is_left_to_torch() -> None:
    """And in the compiled kernel nothing is."""
    if not choose.winograd.compiled():
        pytest.skip("numba is not installed")
    vae, z = make(SMALL), latent(1, 60, 52)
    with vae_core.kernels("winograd"):
        job = vae_core.prepare_decode(vae, z.shape)
        job.run(z)
    assert job.executed is not None
    assert job.executed.peak_bytes + job.plan.terms["kept by allocators"] == job.plan.peak_bytes


@pytest.mark.skipif(not choose.winograd.compiled(), reason="numba is not installed: then strips are most of the peak")
@pytest.mark.parametrize("batch", [1, 5])
def test_a_batch_in_parts_that_is_offloaded(batch: int) -> None:
    vae, z = make(SMALL), latent(batch, 48, 48)
    free = vae_core.prepare_decode(vae, (1, *z.shape[1:]))
    job = vae_core.prepare_decode(vae, z.shape, Options(memory_budget=free.plan.peak_bytes * 2 // 3))
    assert job.plan.places.disk and job.plan.passes == batch * len(free.plan.pass_flops)
    job.run(z)
    check(job)


@pytest.mark.parametrize("tiling", [None, TileSpec(size=8, overlap=2, mode="blended")], ids=["whole", "tiles"])
def test_the_reference_path_runs_what_is_planned(tiling: TileSpec | None) -> None:
    """Its bytes are torch's own, in the modules: the plan's are a bound, which test_job.py compares with the truth."""
    vae, z = make(SMALL), latent(3, 40, 24)
    vae.decoder.register_forward_hook(lambda *_: None)
    job = vae_core.prepare_decode(vae, z.shape, Options(tiling))
    assert job.executed is None
    job.run(z)
    assert job.executed is not None
    found = (job.executed.passes, job.executed.strips, job.executed.tiles)
    assert found == (job.plan.passes, job.plan.strips, job.plan.tiles) and job.executed.records == []
    assert job.way.name == ("whole" if tiling is None else "tiles")
