"""Plans cost the same for every size: nothing is listed that grows with the image."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from given.models import fields
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_core
from vae_core import AutoencoderKL, MemoryBudgetError, Options, TileSpec
from vae_core.streaming import maps
from vae_core.streaming.kernel import Layout, Spans, cut, even_size
from vae_core.streaming.ledger import PLACES, Ledger, Lot, PlannedStore, bands_of
from vae_core.streaming.store import MapStore
from vae_core.tiling.grid import Cuts, span_lengths, spans

GIB = 2**30
SECONDS = 0.05
# Pixels and latent pixels.
SIDES = (1024, 16384, 8 * 16384)


@pytest.fixture(scope="module")
def full_size() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(**fields(128, 256, 512, 512, layers_per_block=2)).eval().requires_grad_(False)


OPTIONS = {
    "free": Options(),
    "budget": Options(memory_budget=GIB),
    "large budget": Options(memory_budget=2**40),
    "strips": Options(tiling=TileSpec(size=1)),
    "tiles": Options(tiling=TileSpec(size=64, overlap=16, mode="blended")),
    "small tiles": Options(tiling=TileSpec(size=2, overlap=1, mode="blended")),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.thorough
def test_a_plan_of_any_size_is_made_at_once(name: str, device: str, full_size: AutoencoderKL) -> None:
    for prepare, channels, unit in ((vae_core.prepare_decode, 4, 8), (vae_core.prepare_encode, 3, 1)):
        for side in SIDES:
            shape = (1, channels, side // unit, side // unit)
            plan = functools.partial(prepare, full_size, shape, OPTIONS[name], device=device, available=8 * GIB)
            assert least_seconds(plan) < SECONDS, side


def least_seconds(plan: Callable[[], Any]) -> float:
    """Of this thread's own time, in a few tries: other programs take none of it."""
    found = []
    for _ in range(4):
        start = time.thread_time()
        with contextlib.suppress(MemoryBudgetError):  # that takes planning, too
            plan()
        found.append(time.thread_time() - start)
    return min(found)


# Spans.


def listed(length: int, size: int, within: int) -> list[tuple[int, int]]:
    found = []
    for first in range(0, length, within):
        start = first
        while start < min(first + within, length):
            found.append((start, min(start + size, first + within, length)))
            start += size
    return found


@given(length=st.integers(1, 80), size=st.integers(1, 40), within=st.integers(1, 90))
def test_spans_are_counted_as_they_are_listed(length: int, size: int, within: int) -> None:
    spans = Spans(length, size, within)
    want = listed(length, size, within)
    assert list(spans) == want and len(spans) == len(want)
    assert spans.largest == max(want, key=lambda span: (span[1] - span[0], -span[0]))
    assert list(replace(spans, before=(-1, -1))) == [(-1, -1), *want]
    assert len(replace(spans, before=(-1, -1))) == len(want) + 1


@given(length=st.integers(1, 200), size=st.integers(1, 40), multiple=st.integers(1, 4), workers=st.integers(1, 9))
def test_spans_that_workers_share(length: int, size: int, multiple: int, workers: int) -> None:
    """Each has as many whole ones, and as much of what is left, which is cut into no more than one for each."""
    spans = cut(length, size, multiple, workers=workers)
    found = list(spans)
    sizes = [stop - start for start, stop in found]
    assert [row for span in found for row in range(*span)] == list(range(length))
    assert all(start % multiple == 0 for start, _ in found)
    assert len(spans) == len(found) and spans.sizes == Counter(sizes)
    assert spans.largest == found[0] and max(sizes) == sizes[0]
    assert spans.busiest == Counter(sizes[::workers])
    whole = length // (spans.size * workers) * workers
    assert sizes[:whole] == whole * [spans.size]
    if workers > 1:
        assert len(sizes) - whole <= workers and max(sizes[whole:], default=0) <= spans.size


@given(batch=st.integers(1, 5), rows=st.integers(1, 9), columns=st.integers(1, 9), items=st.integers(1, 5))
def test_a_layout_for_fewer_items(batch: int, rows: int, columns: int, items: int) -> None:
    layout = Layout(cut(batch, 1), cut(rows, 2), cut(columns, 3))
    clipped = layout.clipped(items)
    assert clipped.strips() == [strip for strip in layout.strips() if strip.items[1] <= items]
    assert len(clipped) == len(clipped.strips())


@given(length=st.integers(1, 3000), size=st.integers(1, 3000), multiple=st.integers(1, 4))
def test_an_even_size(length: int, size: int, multiple: int) -> None:
    size = min(size, length)
    fitting = [each for each in range(size, size // 2, -1) if length % each == 0 == each % multiple]
    assert even_size(length, size, multiple) == (fitting[0] if fitting else size)


# Buffers.

REQUESTS = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 12)), max_size=24)


@given(requests=REQUESTS, limit=st.none() | st.integers(0, 60), cpu_limit=st.integers(0, 40))
@settings(deadline=None)
def test_buffers_in_lots_are_those_one_by_one(
    requests: list[tuple[bool, int, int]], limit: int | None, cpu_limit: int
) -> None:
    """Size 2**i and number of what is taken, or which of what was taken comes back."""
    together, single = Ledger(limit, cpu_limit), Ledger(limit, cpu_limit)
    lent: list[tuple[list[Any], list[Any]]] = []
    for taking, number, count in requests:
        if taking:
            lent.append((take(together, 2**number, count, count), take(single, 2**number, count, 1)))
        elif lent:
            for ledger, lots in zip((together, single), lent.pop(number % len(lent)), strict=True):
                for lot in lots:
                    ledger.take_back(lot)
        assert together.used == single.used and together.peak == single.peak
        assert +together._idle == +single._idle


def take(ledger: Ledger, size: int, count: int, at_once: int) -> list[Any]:
    lots = []
    while count:
        lot = ledger.next_lot(size, min(count, at_once))
        if lot.fresh:
            ledger.drop_idle()
        ledger.take(lot)
        lots.append(lot)
        count -= lot.count
    return lots


# What is lent and what is idle, as (place, bytes); how many buffers of what size are wanted; what serves them.
NEXT: dict[str, tuple[list[tuple[Any, int]], list[tuple[Any, int]], tuple[int, int], Lot]] = {
    "nothing there": ([], [], (100, 1), Lot("device", 100, 1, True)),
    "all that have room": ([], [], (100, 5), Lot("device", 100, 4, True)),
    "room for just one": ([("device", 300)], [], (100, 5), Lot("device", 100, 1, True)),
    "a byte too little": ([("device", 301)], [], (100, 1), Lot("cpu", 100, 1, True)),
    "no room in memory": ([("device", 400), ("cpu", 200)], [], (100, 7), Lot("disk", 100, 7, True)),
    "too large for memory": ([], [], (401, 1), Lot("disk", 401, 1, True)),
    "an idle one": ([], [("device", 100)], (100, 1), Lot("device", 100, 1, False)),
    "as many idle ones as there are": ([], [("device", 100)] * 2, (100, 3), Lot("device", 100, 2, False)),
    "a smaller one": ([], [("device", 99)], (100, 1), Lot("device", 100, 1, True)),
    "a larger one": ([], [("device", 101)], (100, 1), Lot("device", 100, 1, True)),
    "the one of its size": ([], [("device", 190), ("device", 100)], (100, 1), Lot("device", 100, 1, False)),
    "the nearer of two": ([("device", 300)], [("cpu", 100), ("device", 100)], (100, 1), Lot("device", 100, 1, False)),
    "room nearer than an idle one": ([], [("cpu", 100)], (100, 1), Lot("device", 100, 1, True)),
    "none nearer": ([("device", 400)], [("cpu", 100)], (100, 1), Lot("cpu", 100, 1, False)),
    "room by dropping": ([("device", 100)], [("device", 250)], (300, 1), Lot("device", 300, 1, True)),
}


@pytest.mark.parametrize("name", NEXT)
def test_which_buffers_serve_next(name: str) -> None:
    """With 400 bytes on the device and 200 of the CPU's."""
    lent, idle, (size, count), served = NEXT[name]
    ledger = Ledger(400, 200)
    for place, each in (*lent, *idle):
        ledger.take(Lot(place, each, 1, True))
    for place, each in idle:
        ledger.take_back(Lot(place, each, 1, True))
    assert ledger.next_lot(size, count) == served
    before = dict(ledger.used)
    if served.fresh:
        ledger.drop_idle()
        assert ledger.used == {place: sum(each for at, each in lent if at == place) for place in PLACES}
        before = dict(ledger.used)
    ledger.take(served)
    grown = served.count * served.bytes if served.fresh else 0
    assert ledger.used == {**before, served.place: before[served.place] + grown}
    assert all(ledger.peak[place] >= ledger.used[place] for place in PLACES)


def test_a_device_without_a_limit_has_room_for_all() -> None:
    assert Ledger(None, 0).next_lot(2**60, 9) == Lot("device", 2**60, 9, True)


# Height, width and channels of a map of float32, its rows in a band, and its buffers as (bytes, number).
BANDS = {
    (3, 8, 4): (3, [(384, 1)]),
    (4, 8, 4): (4, [(512, 1)]),
    (5, 8, 4): (4, [(512, 1), (128, 1)]),
    (13, 8, 4): (4, [(512, 3), (128, 1)]),
    (12, 8, 4): (4, [(512, 2), (512, 1)]),
    (5, 16, 4): (4, [(1024, 1), (256, 1)]),
    (9, 5, 4): (4, [(512, 2), (80, 1)]),
    (9, 4, 4): (8, [(512, 1), (64, 1)]),
}


@pytest.mark.parametrize("size", BANDS, ids=str)
def test_bands_and_their_buffers(size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 bytes, unless four rows take more."""
    monkeypatch.setattr(maps, "BAND_BYTES", 512)
    assert bands_of((1, *size), torch.float32) == BANDS[size]
    if size[1] % 2 == 0:
        halves = bands_of((2, size[0], size[1] // 2, size[2]), torch.float32)
        assert halves == BANDS[size], "of two items of half the width"


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=6),
    limit=st.none() | st.integers(0, 2**13),
    keep=st.integers(0, 3),
)
@settings(deadline=None, max_examples=50)
def test_a_planned_store_counts_what_a_store_lends(
    sizes: list[tuple[int, int, int]], limit: int | None, keep: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "BAND_BYTES", 2**9)
        stores = MapStore(torch.device("cpu"), limit), PlannedStore(limit)
        lent: list[list[Any]] = [[], []]
        for height, width, channels in sizes:
            for store, mine in zip(stores, lent, strict=True):
                mine.append(store.allocate((1, height, width, channels), torch.float32))
            real, planned = lent[0][-1], lent[1][-1]
            assert (real.shape, real.band_rows, real.band_count) == (
                planned.shape,
                planned.band_rows,
                planned.band_count,
            )
            if len(lent[0]) > keep:
                for store, mine in zip(stores, lent, strict=True):
                    store.release(mine.pop(0))
            assert stores[0].used == stores[1].used and stores[0].peak == stores[1].peak


# Where strips and tiles of a chosen size are.


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 20),
    overlap=st.integers(0, 19),
    blended=st.booleans(),
)
def test_cuts_are_counted_as_they_are_listed(height: int, width: int, size: int, overlap: int, blended: bool) -> None:
    tile = TileSpec(size=size, overlap=overlap % size, mode="blended" if blended else "exact")
    cuts = Cuts(height, width, tile)
    listed = cuts.rectangles(10_000)
    assert len(listed) == cuts.count == cuts.rows * cuts.columns
    assert len({top for _, top, _, _ in listed}) == cuts.rows and len({left for left, *_ in listed}) == cuts.columns
    covered = {(y, x) for left, top, w, h in listed for y in range(top, top + h) for x in range(left, left + w)}
    assert covered == {(y, x) for y in range(height) for x in range(width)}
    assert cuts.rectangles(cuts.count - 1) == []
    assert blended or sum(w * h for _, _, w, h in listed) == height * width


def test_cuts_are_those_of_the_plan(full_size: AutoencoderKL) -> None:
    jobs = {name: vae_core.prepare_decode(full_size, (1, 4, 100, 180), each) for name, each in OPTIONS.items()}
    assert jobs["free"].cuts is jobs["budget"].cuts is None
    strips, tiles = jobs["strips"].cuts, jobs["tiles"].cuts
    assert strips is not None and (strips.rows, strips.columns) == (100, 1)
    assert tiles is not None and tiles.count == jobs["tiles"].plan.tiles
    assert jobs["tiles"].plan.flops > jobs["tiles"].plan.untiled_flops == jobs["free"].plan.flops
    covering = Options(tiling=TileSpec(size=180, overlap=16, mode="blended"))
    assert vae_core.prepare_decode(full_size, (1, 4, 100, 180), covering).cuts is None


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_lengths_of_spans_are_counted_as_they_are_listed(length: int, size: int, stride: int, minimum: int) -> None:
    stride, minimum = min(stride, size), min(minimum, size)
    listed = Counter(stop - start for start, stop in spans(length, size, stride, minimum))
    assert span_lengths(length, size, stride, minimum) == listed
