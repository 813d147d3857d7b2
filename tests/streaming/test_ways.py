"""The way of a run is chosen once, by `choose.choose_way`: what it says is what is executed, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from given.counts import Calls
from given.inputs import image, latent
from given.models import fields, make
from given.thinned import thinned

import vae_core
from vae_core import AutoencoderKL, Options, TileSpec
from vae_core.streaming import job, reference
from vae_core.streaming.choose import Way
from vae_core.streaming.executor import Execution
from vae_core.streaming.half import Half

WIDE = fields(64, 64, layers_per_block=1)  # of which strips are the faster from some size on
SIDES = {"small": 6, "large": 20}  # of a latent
LARGEST = 96 * 96 * 64 * 4  # bytes of the largest map of 48x48 latent pixels
TILINGS: dict[str, TileSpec | None] = {
    "none": None,
    "strips": TileSpec(size=4),
    "blended": TileSpec(size=5, overlap=1, mode="blended"),
    "covering": TileSpec(size=64, overlap=16, mode="blended"),
}
MODES = ("plain", "patched", "gradients", "autocast")


class Seen(NamedTuple):
    """What a run was chosen to be, and what it then was."""

    ways: list[Way]
    executed: str


@contextmanager
def watched() -> Iterator[Callable[[Callable[[], Any]], Seen]]:
    """What says how an action was run."""
    ways: list[Way] = []
    choose = job.choose_way

    def recorded(run: Any) -> Way:
        ways.append(choose(run))
        return ways[-1]

    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = Calls(monkeypatch)
        monkeypatch.setattr(job, "choose_way", recorded)
        calls.of(Execution, "run", "strips")
        calls.of(reference, "run_blended", "tiles")
        calls.of(Half, "reference", "whole")

        def run(action: Callable[[], Any]) -> Seen:
            ways.clear()
            calls.counts.clear()
            action()
            executed = next(each for each in ("strips", "tiles", "whole") if calls.counts[each])
            assert executed != "strips" or not calls.counts["whole"]
            return Seen(list(ways), executed)

        yield run


def mode_of(name: str, vae: AutoencoderKL) -> Any:
    """A context in which the model's own methods are called."""
    if name == "patched":
        for each in (vae.decoder, vae.encoder):
            each.conv_out.register_forward_hook(lambda *_: None)
    vae.requires_grad_(name == "gradients")
    if name == "autocast":
        return torch.autocast("cpu", torch.bfloat16)
    return torch.enable_grad() if name == "gradients" else torch.no_grad()


def given(encode: bool, side: int, batch: int) -> torch.Tensor:
    return image(batch, 2 * side) if encode else latent(batch, side, side)


CASES: dict[str, Any] = {
    "tiling": list(TILINGS),
    "budget": [None, 2**30],
    "kernels": ["auto", "direct", "reference", "winograd"],
    "side": list(SIDES),
    "encode": [False, True],
}


@thinned(**CASES, patch=[False, True])
def test_a_job_and_the_functions_run_what_the_way_says(
    tiling: str, budget: int | None, kernels: Any, side: str, encode: bool, patch: bool
) -> None:
    vae = make(WIDE)
    x = given(encode, SIDES[side], 2)
    run, prepare = (vae_core.encode, vae_core.prepare_encode) if encode else (vae_core.decode, vae_core.prepare_decode)
    mode_of("patched" if patch else "plain", vae)
    with vae_core.kernels(kernels), watched() as seen:
        found = seen(lambda: run(vae, x, tiling=TILINGS[tiling], memory_budget=budget))
        prepared = prepare(vae, x.shape, Options(TILINGS[tiling], budget))
        by_job = seen(lambda: prepared.run(x))
    assert [way.name for way in found.ways] == [found.executed]
    assert by_job.ways == [] and by_job.executed == prepared.way.name, "chosen when it was prepared, and not again"
    assert prepared.way == found.ways[0]
    expected = {"blended": "tiles", "covering": "whole"}.get(tiling, "whole" if patch else "strips")
    assert found.executed == expected
    assert prepared.plan.tiles > 0 if expected == "tiles" else prepared.plan.tiles == 0
    assert prepared.plan.strips > 0 if expected == "strips" else prepared.plan.strips == 0
    assert prepared.way.ignores_budget == (expected != "strips")


@thinned(**CASES, mode=list(MODES))
def test_a_models_own_method_runs_what_the_way_says(
    tiling: str, budget: int | None, kernels: Any, side: str, encode: bool, mode: str, caplog: Any
) -> None:
    vae = make(WIDE)
    x = given(encode, SIDES[side], 1)
    spec = TILINGS[tiling]
    vae.memory_budget = budget
    if spec is not None and spec.size is not None:
        vae.enable_tiling(mode=spec.mode)
        vae.tile_latent_min_size, vae.tile_sample_min_size = spec.size, 2 * spec.size
        vae.tile_overlap_factor = 0.25
    context = mode_of(mode, vae)
    method = vae.encode if encode else vae.decode
    with vae_core.kernels(kernels), context, watched() as seen:
        found = seen(lambda: method(x))
    assert [way.name for way in found.ways] == [found.executed]
    asked = tiling == "strips" or budget is not None
    if tiling == "blended":
        assert found.executed == "tiles"
    elif mode != "plain" or kernels == "reference" or (side == "small" and not asked):
        assert found.executed == "whole"
    elif asked:
        assert found.executed == "strips"
    silent = tiling != "blended" and (found.executed == "strips" or (mode == "gradients" and kernels != "reference"))
    assert ("The memory budget is ignored" in caplog.text) == (budget is not None and not silent)


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        ({}, "strips", "on a CPU they take the least memory, and mostly the least time"),
        ({"tiling": TILINGS["strips"]}, "strips", "you chose the size of strips"),
        ({"circular": "x"}, "strips", "you chose circular axes"),
        ({"tiling": TILINGS["blended"]}, "tiles", "you chose blended tiles"),
        ({"tiling": TILINGS["covering"]}, "whole", "the image is not larger than one blended tile"),
        ({"device": "cuda"}, "whole", "it fits into the device's memory"),
        (
            {"device": "cuda", "memory_budget": 6 * LARGEST - 1},
            "strips",
            "it does not fit into the device's memory whole",
        ),
        ({"device": "cuda", "dtype": torch.float64}, "strips", "you chose another precision than that of the weights"),
    ],
)
def test_the_reasons_of_a_jobs_way(change: dict[str, Any], name: str, reason: str) -> None:
    options = {key: value for key, value in change.items() if key != "device"}
    available = 2**40 if "device" in change else None
    prepared = vae_core.prepare_decode(
        make(WIDE), (1, 4, 48, 48), Options(**options), device=change.get("device"), available=available
    )
    assert prepared.way[:2] == (name, reason)


def test_a_budget_that_the_whole_image_fits_is_kept() -> None:
    """It was once said to be ignored, where the reference path had been chosen because it keeps to it."""
    prepared = vae_core.prepare_decode(make(WIDE), (1, 4, 48, 48), Options(memory_budget=2**33), device="cuda")
    assert prepared.way.name == "whole" and not prepared.way.ignores_budget
