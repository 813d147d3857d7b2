"""Runs on a device that does not exist: nothing is mixed, memory is as planned, and queues are in order.

They happen in one process of their own (see `given.sim`), which needs some seconds to start.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from given.models import MODELS, SMALL, fields
from given.sim import BREAKS, simulate
from given.sim_case import Case, Seen

from vae_core.checkpoints.families import FAMILIES

registration = pytest.importorskip("torch.utils.backend_registration")
if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices in Python", allow_module_level=True)

MIB = 2**20
_LAUNCHES_A_STRIP = 40  # what a pass does once included; some passes have one strip
_LAUNCHES_A_BLOCK = 24  # of keys
OFFLOADED = Case(SMALL, "decode", (64, 64), rows=8, offloaded=True)

Run = Callable[..., Seen]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        yield lambda *case: worker.submit(simulate, *case).result()


def check(seen: Seen, case: Case) -> None:
    assert not seen.faults, seen.faults[:5]
    assert seen.peak <= seen.planned
    assert seen.launches <= _LAUNCHES_A_STRIP * seen.strips + _LAUNCHES_A_BLOCK * seen.blocks
    assert seen.device == (case.out or "sim")


WIDE = fields(128, 256, 512, 512, layers_per_block=2)
QUICK = {
    "real widths": Case(WIDE, "encode", (512, 512)),
    "real widths within a budget": Case(WIDE, "decode", (128, 128), budget=70 * MIB),
    "decode": Case(MODELS["SD 1.x"], "decode", (256, 256)),
    "encode": Case(MODELS["FLUX.2"], "encode", (256, 256)),
    "offloaded": OFFLOADED,
    "offloaded, encode": OFFLOADED._replace(direction="encode"),
    "offloaded, one queue": OFFLOADED._replace(streams=False),
    "on the device": Case(SMALL, "decode", (64, 64), given="sim", out=None),
    **{
        f"scores that are written out, {dtype}": Case(SMALL, "decode", (128, 128), given="sim", out=None, dtype=dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    },
    "weights elsewhere, in a batch, circular": Case(
        SMALL, "decode", (64, 48), batch=3, weights="cpu", circular="both", rows=16
    ),
    "float32": Case(SMALL, "encode", (64, 64), dtype=torch.float32),
    "float16, checked": Case(SMALL, "decode", (64, 64), dtype=torch.float16),
}


KERNELS = {
    "real widths within a budget": Case(WIDE, "decode", (256, 256), budget=130 * MIB),
    "real widths within a budget, encode": Case(WIDE, "encode", (256, 256), budget=130 * MIB, dtype=torch.float32),
    "offloaded": OFFLOADED,
    "offloaded, one queue": OFFLOADED._replace(streams=False, direction="encode"),
    "on the device": Case(SMALL, "decode", (64, 64), given="sim", out=None),
    "weights elsewhere, in a batch, circular": QUICK["weights elsewhere, in a batch, circular"]._replace(rows=4),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.thorough
def test_a_run_with_tritons_kernels(run: Run, name: str) -> None:
    pytest.importorskip("triton")
    case = KERNELS[name]._replace(kernels=True)
    seen = run(case)
    check(seen, case)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("budget", [400, 600, 1000])
def test_real_widths_within_budgets(run: Run, direction: str, dtype: torch.dtype, kernels: bool, budget: int) -> None:
    case = Case(WIDE, direction, (1024, 1024), budget=budget * MIB, dtype=dtype, kernels=kernels)
    check(run(case), case)


def test_kernels_of_triton_are_fewer_launches(run: Run) -> None:
    pytest.importorskip("triton")
    case = KERNELS["on the device"]
    assert run(case._replace(kernels=True)).launches < 0.6 * run(case).launches


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.thorough
def test_a_run(run: Run, name: str) -> None:
    check(run(QUICK[name]), QUICK[name])


def test_maps_on_the_device_stay_there(run: Run) -> None:
    seen = run(Case(SMALL, "decode", (128, 128), given="sim", out=None))
    assert seen.uploaded == seen.downloaded == 0


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.thorough
def test_what_is_offloaded_goes_and_comes_beside_the_computation(run: Run, streams: bool) -> None:
    seen = run(OFFLOADED._replace(size=(128, 128), rows=32, streams=streams))
    moved = seen.uploaded + seen.downloaded
    assert seen.uploaded > seen.downloaded > 0  # rows around a strip come twice
    assert seen.uploaded < 3 * seen.downloaded  # a source and a residual for a target
    assert seen.beside > 0.8 * moved if streams else seen.beside == 0, seen  # but for keys and values


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(("streams", "seed"), [(True, 0), (False, 1)])
@pytest.mark.thorough
def test_maps_wherever_their_bands_are(run: Run, direction: str, streams: bool, seed: int) -> None:
    """A budget may keep out any of them: of keys and values the one, of a map its second half."""
    case = Case(SMALL, direction, (128, 128), scattered=seed, streams=streams, dtype=torch.float32)
    seen = run(case)
    assert not seen.faults, seen.faults[:5]
    assert seen.uploaded and seen.downloaded


@pytest.mark.parametrize(
    ("free", "budget", "sizes", "budgets"),
    [(None, None, 1, 0), (None, 70, 6, 1), (200, None, 4, 2), (70, None, 6, 2)],
    ids=["enough", "a budget", "less is free", "far less is free"],
)
def test_planning_takes_the_steps_that_a_budget_needs_and_each_once(
    run: Run, free: int | None, budget: int | None, sizes: int, budgets: int
) -> None:
    """One dry run for each size of strips that is tried, a quarter of the last one, and one for each budget.

    Also where less is free than was counted on, so that the job is planned for that: what is known stays known.
    """
    case = Case(WIDE, "decode", (256, 256), budget=budget and budget * MIB, free=free and free * MIB, kernels=True)
    seen = run(case)
    check(seen, case)
    assert len(seen.dry_runs) == len(set(seen.dry_runs))
    unlimited = [each for each in seen.dry_runs if "('device', None)" in each]
    assert len(unlimited) <= sizes and len(seen.dry_runs) - len(unlimited) <= budgets
    assert seen.wholes <= 1


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.thorough
def test_what_is_broken_is_found(run: Run, broken: str) -> None:
    assert run(OFFLOADED, broken).faults


# Side, budget in MiB, and the most positions that the attention may have: beyond that its blocks take hours, and
# a model goes without it, or is left out if it has one in every level.
SIZES = (
    (512, 50, 2**16),
    (1024, None, 2**20),
    (2048, 600, 2**16),
    (4096, None, 2**20),
    (8192, 4000, 2**20),
)
_OF_VALUES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")  # not of what is run


def _architectures() -> dict[str, dict[str, Any]]:
    """The models, of which those that differ in the values of latents alone are one."""
    names: dict[str, list[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, config in MODELS.items():
        run = {key: value for key, value in config.items() if key not in _OF_VALUES}
        names.setdefault(repr(sorted(run.items())), []).append(name)
        found.setdefault(repr(sorted(run.items())), config)
    return {", ".join(names[key]): config for key, config in found.items()}


ARCHITECTURES = _architectures()


def _sizes() -> list[Any]:
    """Every architecture at every size; some of them whenever all but slow tests run."""
    sizes = []
    for name, config in ARCHITECTURES.items():
        levels = len(config["block_out_channels"])
        in_levels = any("Attn" in each for each in config["up_block_types"])
        for size, budget, most in SIZES:
            attends = (size >> levels - 1) ** 2 <= most
            if in_levels and not attends:
                continue
            fields = config if attends else config | {"mid_block_add_attention": False}
            quick = size < 2048 and name.startswith(("SD 1.x", "f4"))
            mark = pytest.mark.thorough if quick else pytest.mark.slow
            title = f"{name}, {size}" + ("" if attends else ", no attention")
            sizes.append(pytest.param(fields, size, budget, marks=mark, id=title))
    return sizes


def test_every_family_is_run_at_every_size() -> None:
    names = [name for title in ARCHITECTURES for name in title.split(", ")]
    assert {family.name for family in FAMILIES} <= set(names)
    titles = [each.id for each in _sizes()]
    assert len(titles) > 50
    for title in ARCHITECTURES:
        sides = {size for size, _, _ in SIZES if f"{title}, {size}" in titles}
        assert sides >= ({512, 1024, 2048, 4096, 8192} if title.startswith(("SD 1.x", "FLUX")) else {1024}), title


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(("config", "size", "budget"), _sizes())
def test_every_family_at_every_size(
    run: Run, config: dict[str, Any], direction: str, size: int, budget: int | None
) -> None:
    case = Case(config, direction, (size, size), budget=budget and budget * MIB)
    seen = run(case)
    check(seen, case)
    offloaded = sum(seen.places[1:])
    assert (offloaded > 0) == (budget is not None)
    assert seen.uploaded > seen.downloaded > 0 or not offloaded
