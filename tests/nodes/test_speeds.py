"""The time that a plan promises, from what the last runs took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from given.nodes import Makers
from host.stand_in import Host, Pack

QUESTION = {"name": "demo", "direction": "decode", "width": 512, "height": 512, "batch": 1}


@pytest.fixture
def speeds(pack: Pack, new_host: Host) -> Iterator[Any]:
    found = pack.module("nodes.speeds")
    forget(found)
    yield found
    forget(found)


def forget(speeds: Any) -> None:
    """As in a new process."""
    speeds._runs.clear()
    speeds._firsts.clear()


def job_of(pack: Pack, make: Makers, side: int = 16) -> Any:
    return pack.module("vae_core").prepare_decode(make.model(), (1, 4, side, side), None)


def test_nothing_is_promised_before_the_first_run(pack: Pack, make: Makers, speeds: Any) -> None:
    assert speeds.estimate(job_of(pack, make)) is None
    questions = pack.module("nodes.questions")
    assert questions.plan(questions.Question.read(QUESTION))["seconds"] is None


def test_a_run_is_remembered_over_a_restart(pack: Pack, make: Makers, new_host: Host, speeds: Any) -> None:
    job = job_of(pack, make)
    speeds.record(job, 2.0)
    for _ in range(2):
        found = speeds.estimate(job)
        assert found.likely == pytest.approx(2) and found.low < 2 < found.high
        forget(speeds)
    (runs,) = json.loads((new_host.folder / "user" / speeds.FILE).read_text()).values()
    assert runs == [[job.plan.flops, 32 * 32, 2.0]]


def test_the_nodes_remember_their_runs(pack: Pack, make: Makers, speeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "LEAST_SECONDS", 0)
    vae = make.vae()
    pack.run("SeamlessVAEDecode", samples=make.latent(), vae=vae)
    pack.run("SeamlessVAEEncode", pixels=make.image(), vae=vae)
    (runs,) = speeds._runs.values()
    assert sorted(kind.split()[0] for kind in runs) == ["image", "latent"] and all(
        len(each) == 1 for each in runs.values()
    )


def test_the_first_run_of_a_process_counts_until_there_is_another(pack: Pack, make: Makers, speeds: Any) -> None:
    """It loads, tries out and warms up what later ones have at hand."""
    job = job_of(pack, make)
    for seconds in (2.0, 2.1):  # of an earlier process
        speeds.record(job, seconds)
    speeds._firsts.clear()
    for seconds, known in ((60.0, [2.1, 60.0]), (2.2, [2.1, 2.2]), (2.3, [2.1, 2.2, 2.3])):
        speeds.record(job, seconds)
        (runs,) = speeds._runs.values()
        assert [run.seconds for run in runs[speeds.kind_of(job)]] == known


def test_compiling_is_no_part_of_a_run(pack: Pack, make: Makers, speeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over with the first run on a machine, and took ten times as long as the run itself."""

    @contextmanager
    def compile_time() -> Iterator[Callable[[], float]]:
        yield lambda: 55.0

    clock = iter((100.0, 160.0))
    monkeypatch.setattr(speeds, "compile_time", compile_time)
    monkeypatch.setattr(speeds, "time", SimpleNamespace(monotonic=lambda: next(clock, 160.0)))
    job = job_of(pack, make)
    with speeds.timed(job):
        pass
    assert speeds.estimate(job).likely == pytest.approx(5)


def test_a_run_that_fails_is_not_remembered(pack: Pack, make: Makers, speeds: Any) -> None:
    job = job_of(pack, make)
    with pytest.raises(MemoryError), speeds.timed(job):
        time.sleep(speeds.LEAST_SECONDS)
        raise MemoryError
    assert speeds.estimate(job) is None


def test_the_estimate(speeds: Any) -> None:
    """Runs of a like size count; the more they are and the more they agree, the narrower it is."""

    def estimated(runs: list[tuple[float, float]], flops: float) -> Any:
        return speeds.estimated([speeds.PastRun(done, done / 1e7, seconds) for done, seconds in runs], work(flops))

    def work(flops: float) -> Any:
        return speeds.Workload(flops, flops / 1e7)

    one, many = (estimated([(1e12, 4.0)] * count, 1e12) for count in (1, 8))
    assert one.likely == many.likely == 4 and one.high - one.low > 1.5 * (many.high - many.low) > 0
    far = estimated([(1e12, 4.0)] * 8, 64e12)
    assert far.likely == pytest.approx(256) and (far.high - far.low) / far.likely > (many.high - many.low) / 4
    found = estimated([(1e12, 4.0), (1e12, 5.0), (1e12, 12.0)], 1e12)
    assert found.likely == 5 and found.low <= 4 and found.high >= 12, "it includes what was seen"
    mixed = [(1e9, 1.0)] * 16 + [(1e12, 4.0)] * 8  # small runs are slow for their FLOPs
    assert estimated(mixed, 2e12).likely == pytest.approx(8)
    assert (
        estimated([], 1e12) is None and speeds.estimated([speeds.PastRun(1.0, 1.0, 1.0)], speeds.Workload(0, 1)) is None
    )


def test_runs_of_another_model_tell_less(speeds: Any) -> None:
    """The demo VAE, of few channels, has a third of the FLOPs a second of Stable Diffusion's, and a 19th of them a
    pixel."""
    demo, sd = speeds.PastRun(1.3e11, 512**2, 0.4), speeds.PastRun(2.5e12, 512**2, 2.7)
    alone = speeds.estimated([demo] * 8, sd.work)
    assert alone.low < sd.seconds < alone.high, "what is not known is not promised"
    both = speeds.estimated([demo] * 16 + [sd] * 8, sd.work)
    assert both.likely == pytest.approx(sd.seconds) and both.high - both.low < sd.seconds / 2


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"{", b'{"a": 3}', b'{"a": [[1, "x", 1]]}', b'{"a": [[0, -1, 1]]}', b'{"a": [[NaN, 1, 1]]}'),
        *(b'{"a": [[1, 1]]}', b'{"a": [[1, 1, 1, 1]]}'),
    ],
)
def test_a_damaged_file_is_as_good_as_none(pack: Pack, make: Makers, new_host: Host, speeds: Any, data: bytes) -> None:
    (new_host.folder / "user").mkdir()
    (new_host.folder / "user" / speeds.FILE).write_bytes(data)
    job = job_of(pack, make)
    assert speeds.estimate(job) is None
    speeds.record(job, 1.0)
    assert speeds.estimate(job) is not None


def test_a_folder_that_cannot_be_written(pack: Pack, make: Makers, new_host: Host, speeds: Any) -> None:
    (new_host.folder / "user").write_bytes(b"not a folder")
    job = job_of(pack, make)
    speeds.record(job, 1.0)
    assert speeds.estimate(job).likely == pytest.approx(1)


def test_runs_are_not_kept_for_ever(pack: Pack, make: Makers, speeds: Any) -> None:
    job = job_of(pack, make)
    for seconds in range(1, speeds.MOST_RUNS + 10):
        speeds.record(job, float(seconds))
    (runs,) = speeds._runs.values()
    assert [run.seconds for run in runs[speeds.kind_of(job)]] == list(range(10, speeds.MOST_RUNS + 10))
