"""Memory that a run leaves for the next one."""

from __future__ import annotations

import gc
import mmap
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from given.inputs import image, latent
from given.models import fields, make
from torch import Tensor

import vae_core
from vae_core import TileSpec
from vae_core.streaming import pages as module
from vae_core.streaming.pages import KeptPages, mapped, pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")
SIZE = 2**20


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptPages]:
    """Those of a test alone."""
    made = KeptPages(64 * SIZE)
    monkeypatch.setattr(module, "kept", made)
    yield made
    made.drop()


def taken(*sizes: int) -> list[Tensor]:
    return [pages(size, "a test", keep=True) for size in sizes]


def places(*lent: Tensor) -> list[int]:
    return [each.data_ptr() for each in lent]


def test_what_is_given_back_serves_again(kept: KeptPages) -> None:
    first = taken(SIZE, SIZE)
    before = places(*first)
    assert not kept.bytes
    first.clear()
    assert kept.bytes == 2 * SIZE
    second = taken(SIZE, SIZE)
    assert sorted(places(*second)) == sorted(before)
    assert not kept.bytes


def test_it_is_kept_with_the_last_tensor_on_it_and_not_before(kept: KeptPages) -> None:
    (lent,) = taken(SIZE)
    part = lent[100:200].view(torch.float32).view(5, 5)
    lent = part
    gc.collect()
    assert not kept.bytes
    lent.fill_(7.0)
    (other,) = taken(SIZE)
    other.zero_()
    assert bool((part == 7.0).all())
    del part, lent
    assert kept.bytes == SIZE


def test_the_smallest_that_is_large_enough_is_taken(kept: KeptPages) -> None:
    lent = taken(4 * SIZE, SIZE, 2 * SIZE)
    _, _, middle = places(*lent)
    lent.clear()
    (found,) = taken(SIZE + 1)
    assert len(found) == SIZE + 1
    assert places(found) == [middle]
    assert kept.bytes == 5 * SIZE


def test_what_is_made_anew_takes_the_place_of_as_much_that_was_kept(kept: KeptPages) -> None:
    """So a process never has more than its largest run needs."""
    lent = taken(SIZE, SIZE, 2 * SIZE, 3 * SIZE)
    lent.clear()
    lent = taken(4 * SIZE)
    assert kept.bytes == 2 * SIZE
    lent += taken(9 * SIZE)
    assert not kept.bytes


def test_no_more_is_kept_than_there_is_room_for() -> None:
    kept = KeptPages(3 * SIZE)
    for _ in range(5):
        kept.put(mapped(SIZE, "a test"))
    assert kept.bytes == 3 * SIZE
    assert KeptPages(0).take(1) is None
    other = KeptPages(SIZE)
    other.put(mmap.mmap(-1, SIZE))  # shared memory cannot be marked
    assert not other.bytes
    assert kept.drop()
    assert not kept.drop()


def test_what_is_not_to_be_kept_is_fresh_and_zero(kept: KeptPages) -> None:
    (lent,) = taken(SIZE)
    lent.fill_(255)
    del lent
    assert not pages(SIZE, "a test").any()
    assert kept.bytes == SIZE


def test_what_is_kept_is_given_up_where_the_system_has_no_more(
    kept: KeptPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mmap.mmap
    asked = []

    def short(number: int, size: int, **rest: int) -> mmap.mmap:
        asked.append(size)
        if kept.bytes:
            raise OSError(12, "Cannot allocate memory")
        return real(number, size, **rest)

    taken(SIZE).clear()
    monkeypatch.setattr(mmap, "mmap", short)
    assert len(pages(2 * SIZE, "a test")) == 2 * SIZE
    assert asked == [2 * SIZE] * 2
    assert not kept.bytes


def test_threads_never_have_the_same(kept: KeptPages) -> None:
    def work(number: int) -> None:
        for _ in range(300):
            lent = taken(SIZE, SIZE + 2**16 * number)
            for each in lent:
                each[:: 2**12] = number
            wrong.extend(each for each in lent if bool((each[:: 2**12] != number).any()))
            lent.clear()

    wrong: list[Tensor] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept.bytes <= kept.most


MODELS = {
    "whole vectors": fields(32, 64, layers_per_block=1),
    "odd widths": fields(24, 40, norm_num_groups=8, mid_block_add_attention=False),
}


@pytest.mark.parametrize("kernels", ["auto", "winograd", "direct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_is_in_kept_memory_changes_nothing(
    kept: KeptPages, name: str, dtype: torch.dtype, kernels: vae_core.KernelChoice
) -> None:
    vae = make(MODELS[name]).to(dtype)
    sources = latent(1, 33).to(dtype), image(1, 66).to(dtype)

    def run() -> list[Tensor]:
        with vae_core.kernels(kernels):
            return [
                vae_core.decode(vae, sources[0], tiling=TileSpec(size=8)),
                vae_core.encode(vae, sources[1], tiling=TileSpec(size=8)).mean,
            ]

    first = run()
    assert kept.bytes
    blocks = list(kept._kept)
    for block in blocks:
        block[:] = b"\xff" * len(block)  # NaN, whatever it is read as
    assert all(torch.equal(*pair) for pair in zip(first, run(), strict=True))
    assert {id(block) for block in blocks} & {id(block) for block in kept._kept}, "nothing was used again"


@torch.no_grad()
def test_a_run_with_a_budget_keeps_nothing(kept: KeptPages) -> None:
    vae = make(MODELS["whole vectors"])
    vae_core.decode(vae, latent(1, 32), tiling=TileSpec(size=8), memory_budget=2**30)
    assert not kept.bytes


@torch.no_grad()
def test_a_process_with_a_limit_of_its_own_keeps_nothing(kept: KeptPages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_core.streaming.strips.free_within_own", lambda: 2**40)
    vae_core.decode(make(MODELS["whole vectors"]), latent(1, 32), tiling=TileSpec(size=8))
    assert not kept.bytes
