"""Memory that a run leaves for the next one."""

from __future__ import annotations

import gc
import mmap
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from given.growth import anonymous_bytes
from given.inputs import image, latent
from given.models import fields, make
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vae_core
from vae_core import TileSpec
from vae_core.streaming import pages as module
from vae_core.streaming.executor import Execution
from vae_core.streaming.pages import KeptPages, kept_pages, pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")
SIZE = 2**21


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptPages]:
    """Those of a test alone, of which small ones are kept, too."""
    made = KeptPages(64 * SIZE)
    monkeypatch.setattr(module, "kept", made)
    monkeypatch.setattr(module, "_HUGE_PAGE", mmap.PAGESIZE)
    yield made
    made.shrink(0)


def taken(*sizes: int) -> list[Tensor]:
    return [kept_pages(size, "a test") for size in sizes]


def places(lent: list[Tensor]) -> list[int]:
    return [each.data_ptr() for each in lent]


def test_what_is_given_back_serves_again(kept: KeptPages) -> None:
    first = taken(SIZE, SIZE)
    before = places(first)
    assert not kept.bytes
    first.clear()
    assert kept.bytes == 2 * SIZE
    second = taken(SIZE, SIZE)
    assert sorted(places(second)) == sorted(before)
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


def test_smaller_ones_share_what_a_larger_one_had_and_it_serves_whole_again(kept: KeptPages) -> None:
    lent = taken(4 * SIZE)
    (begin,) = places(lent)
    lent.clear()
    lent = taken(SIZE, SIZE, 2 * SIZE)
    assert sorted(places(lent)) == [begin, begin + SIZE, begin + 2 * SIZE]
    assert not kept.bytes
    del lent[1]
    lent += taken(SIZE)
    assert sorted(places(lent)) == [begin, begin + SIZE, begin + 2 * SIZE]
    lent.clear()
    assert kept.bytes == 4 * SIZE
    assert places(taken(4 * SIZE)) == [begin]


def test_what_the_system_has_is_taken_before_what_it_must_clear(kept: KeptPages) -> None:
    lent = taken(2 * SIZE, 4 * SIZE)
    warm = places(lent)[0]
    lent.clear()
    (part,) = taken(3 * SIZE)  # of the larger one
    part.fill_(1)
    kept.shrink(2 * SIZE)
    assert kept.bytes == 2 * SIZE
    assert places(taken(SIZE)) == [warm]


@pytest.mark.parametrize("most", range(9))
def test_no_more_stays_than_is_asked_for(kept: KeptPages, most: int) -> None:
    lent = taken(SIZE, 4 * SIZE, SIZE, 2 * SIZE)
    for each in lent:
        each.fill_(1)
    del each
    before = anonymous_bytes()
    lent.clear()
    assert kept.shrink(most * SIZE) == (most < 8)
    assert kept.bytes == most * SIZE
    assert anonymous_bytes() <= before - (8 - most) * SIZE + SIZE // 2
    assert not kept.shrink(most * SIZE)


def test_no_more_is_kept_than_there_is_room_for() -> None:
    kept = KeptPages(3 * SIZE)
    lent = [kept.take(SIZE) for _ in range(5)]
    for block, start in lent:
        kept.put(block, start, SIZE)
    assert kept.bytes == 3 * SIZE
    other = KeptPages(SIZE)
    other.put(mmap.mmap(-1, SIZE), 0, SIZE)  # shared memory cannot be marked
    assert not other.bytes


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


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), max_size=40))
def test_nothing_is_lent_twice_or_lost(steps: list[tuple[int, int]]) -> None:
    """Any order of taking, giving back and shrinking: what is lent does not overlap, and as much is kept as was put."""
    kept = KeptPages(2**40)
    lent: list[tuple[mmap.mmap, int, int]] = []
    for units, what in steps:
        if what == 0:
            kept.shrink(units * SIZE)
            assert kept.bytes <= units * SIZE
        elif what < 3 and lent:
            kept.put(*lent.pop(units % len(lent)))
        else:
            size = units * SIZE
            before = kept.bytes
            block, start = kept.take(size)
            assert before - size <= kept.bytes <= before
            others = [(begin, begin + length) for owner, begin, length in lent if owner is block]
            assert all(start + size <= begin or end <= start for begin, end in others)
            assert start + size <= len(block)
            lent.append((block, start, size))
    for each in lent:
        kept.put(*each)
    free = sorted(kept._claimed(), key=lambda each: id(each.block))
    assert all(each.is_whole for each in free)


def test_threads_never_have_the_same(kept: KeptPages) -> None:
    def work(number: int) -> None:
        for _ in range(300):
            lent = taken(SIZE, number * SIZE)
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
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_is_in_kept_memory_changes_nothing(
    kept: KeptPages,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    direction: str,
    dtype: torch.dtype,
    kernels: vae_core.KernelChoice,
) -> None:
    vae = make(MODELS[name]).to(dtype)
    x = latent(1, 33).to(dtype) if direction == "decode" else image(1, 66).to(dtype)

    def run() -> Tensor:
        with vae_core.kernels(kernels):
            if direction == "decode":
                return vae_core.decode(vae, x, tiling=TileSpec(size=8))
            return vae_core.encode(vae, x, tiling=TileSpec(size=8)).mean

    first = run()
    blocks = {id(each.block): each.block for each in kept._free}
    for block in blocks.values():
        block[:] = b"\xff" * len(block)  # NaN, whatever it is read as
    take, taken = kept.take, []
    monkeypatch.setattr(kept, "take", lambda size: taken.append(take(size)) or taken[-1])
    assert torch.equal(first, run())
    assert blocks.keys() & {id(block) for block, _ in taken}, "nothing was used again"


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


@pytest.mark.parametrize("direction", ["encode", "decode"])
@torch.no_grad()
def test_what_is_kept_and_what_a_pass_needs_are_within_the_plan(
    kept: KeptPages, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = make(fields(32, 64, 64, layers_per_block=1))
    x = latent(1, 40) if direction == "decode" else image(1, 160)
    needed: list[int] = []
    most: list[int] = []
    real = Execution.kernels

    def watched(self: Execution, *arguments: Any) -> Iterator[Any]:
        for index, step, kernel in real(self, *arguments):
            yield index, step, kernel
            if self.planned is not None:  # it is when it is planned
                needed.append(sum(self.planned[index].terms.values()))
                most.append(kept.bytes + needed[-1])

    monkeypatch.setattr(Execution, "kernels", watched)
    with vae_core.kernels("winograd"):
        made = vae_core.prepare_decode if direction == "decode" else vae_core.prepare_encode
        job = made(vae, x.shape, vae_core.Options(TileSpec(size=16)))
        for _ in range(3):
            job.run(x)
    assert kept.bytes
    assert max(most) <= max(needed)
