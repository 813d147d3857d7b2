"""The simulation of docs/scale.md, against what can be worked out by hand."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import fsspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import scale

from vae_core.datasets import writing

FAST_STORE = {"bytes_in": 1.0, "bytes_out": 1.0, "store": 1e15, "latency": 0.0}


@pytest.mark.parametrize("devices", [1, 8, 64])
def test_devices_alone_decide(devices: int) -> None:
    """Where all else is fast, every device is at work, but while the first shard comes and the last one goes."""
    found = scale.simulate(scale.Costs(512, 1e-6, 1e-6, 1e-6, 0.01, **FAST_STORE), devices, 4)
    assert found.bottleneck == "devices, encoding"
    assert found.images == pytest.approx(devices / 0.01, rel=0.01)
    assert found.at_work["devices"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("devices", [1, 8, 100])
def test_cpus_alone_decide(cpus: int, devices: int) -> None:
    """0.05 s an image of each CPU, a tenth of it to write: all of them are at work, however few there are."""
    found = scale.simulate(scale.Costs(512, 0.005, 0.04, 0.005, 1e-5, **FAST_STORE), devices, cpus)
    assert found.bottleneck == "CPUs, reading and resizing"
    assert found.images == pytest.approx(devices * cpus / 0.05, rel=0.03)
    assert found.at_work["CPUs"] == pytest.approx(1, abs=0.03)


def test_the_store_alone_decides() -> None:
    """1 GB/s are 800 images/s of files of 1 MB and latents of 0.25 MB, for a thousand devices too."""
    costs = scale.Costs(512, 1e-6, 1e-6, 1e-6, 1e-3, bytes_in=1e6, bytes_out=0.25e6, store=1e9, latency=0.0)
    for devices in (10, 100, 1000):
        found = scale.simulate(costs, devices, 4)
        assert found.bottleneck == "object store, reading"
        assert found.images == pytest.approx(800, rel=0.05)


def test_back_pressure() -> None:
    """A stage in the middle that is slow stops those before it: nothing piles up, and all shards arrive."""
    stages = [scale.Stage("a", "x", 1.0), scale.Stage("b", "y", 10.0), scale.Stage("c", "z", 1.0)]
    assert scale.run(stages, {"x": 1, "y": 1, "z": 1}, 20) == pytest.approx([1 + 10 * i + 1 for i in range(1, 21)])
    # With one server for the first and the last, the last goes first.
    stages = [scale.Stage("a", "x", 1.0), scale.Stage("b", "y", 1.0), scale.Stage("c", "x", 1.0)]
    assert scale.run(stages, {"x": 1, "y": 1}, 4)[-1] == pytest.approx(2 * 4, abs=1)


@pytest.mark.parametrize("size", [512, 1024])
@pytest.mark.parametrize("devices", [1, 8, 64])
def test_more_cpus_are_never_slower(size: int, devices: int) -> None:
    """With costs as they are measured: how full the store is at the start does not count."""
    costs = scale.Costs(size, 1e-4, 0.0156 * (size / 512) ** 2.8, 6e-4, (size / 512) ** 2 / 60, 74e3, 66e3)
    found = [scale.simulate(costs, devices, cpus) for cpus in scale.CPUS_A_DEVICE]
    for fewer, more in itertools.pairwise(found):
        assert more.images >= 0.99 * fewer.images
    assert all(each.images <= devices / costs.encode * 1.001 for each in found)
    assert found[-1].bottleneck == "devices, encoding" and found[-1].at_work["devices"] > 0.99


@pytest.mark.parametrize("store", [None, "memory://bucket/folder"])
def test_what_is_measured_is_what_the_engines_run(store: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for owner, name in ((scale, "fetch"), (scale, "prepare"), (scale.Collection, "commit"), (writing, "write_file")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, real=real, name=name, **o: (ran.append(name), real(*a, **o))[1])
    costs = scale.measure(64, encode=10, count=4, store=store)
    assert costs.encode == 0.1 and costs.bytes_in > 500
    assert min(costs.read, costs.resize, costs.write) > 0
    assert costs.bytes_out > 4 * 4 * 8 * 8
    assert [ran.count(name) for name in ("fetch", "prepare", "commit")] == [9 + 12, 12, 3]
    assert (costs.latency == 0.05) is (store is None) and costs.latency > 0
    assert not fsspec.filesystem("memory").find("/bucket")  # nothing is left there


def test_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "scale.md"
    document.write_text(scale.DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(scale, "DOCUMENT", document)
    monkeypatch.setattr(scale, "DEVICES", (1, 8))
    monkeypatch.setattr(scale, "plot", lambda costs, place: None)
    costs = [scale.Costs(512, 0.001, 0.009, 0.001, 0.02, 2e5, 6e4)]
    scale.write_document(costs)
    once = document.read_text()
    scale.write_document(costs)
    assert document.read_text() == once
    assert once.count("| 512 |") == 1 + 2 * len(scale.CPUS_A_DEVICE)
