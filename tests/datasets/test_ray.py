"""The engine of many machines, on a Ray of this machine's own: the same bytes, whatever is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from given.collection import committed, contents, encode, make_images, settings

from vae_core import AutoencoderKL, DatasetError, MissingDependencyError
from vae_core.datasets import Engine, encode_dataset
from vae_core.datasets.local import Work
from vae_core.datasets.prepare import Prepared
from vae_core.datasets.progress import RunProgress
from vae_core.datasets.ray_engine import LEAST_RAY, _make_source, check_release, shards_of, share_out
from vae_core.datasets.sources import find_splits

ray = pytest.importorskip("ray")
TESTS = Path(__file__).resolve().parents[1]
OPTIONS = {"keep": "sample", "flip": True, "shard_images": 3}
ENGINE = Engine("ray", workers=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, started once: the engine uses one that is there."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS"] = "0"
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def expected(images: Path, vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the local engine writes."""
    out = tmp_path_factory.mktemp("local") / "out"
    encode(images, out, vae, **OPTIONS)
    return contents(out)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.thorough
def test_the_same_bytes_as_locally(
    workers: int, cluster: None, images: Path, vae: AutoencoderKL, expected: dict[str, str], tmp_path: Path
) -> None:
    progress = RunProgress(show=False)
    totals = encode(images, tmp_path / "out", vae, engine=Engine("ray", workers), progress=progress, **OPTIONS)
    assert contents(tmp_path / "out") == expected
    assert (progress.images, progress.failures, progress.shards) == (22, 2, totals["shards"])
    assert progress.bytes == totals["bytes"] and progress.busy > 0


# Machines of a cluster, threads of an encoder -> what an encoder asks for, and how many there are.
CLUSTERS = {
    "a laptop": ([{"CPU": 8.0}], 2, {"num_cpus": 2}, 3),
    "a laptop whose encoder fills it": ([{"CPU": 8.0}], 8, {"num_cpus": 7}, 1),
    "one CPU": ([{"CPU": 1.0}], 1, {"num_cpus": 0.5}, 1),
    "small machines": ([{"CPU": 4.0}] * 10, 16, {"num_cpus": 3}, 10),
    "a head without CPUs": ([{"CPU": 0.0}, {"CPU": 16.0}, {}], 8, {"num_cpus": 8}, 1),
    "different machines": ([{"CPU": 2.0}, {"CPU": 16.0}], 5, {"num_cpus": 5}, 3),
    "devices": ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], 8, {"num_gpus": 1}, 5),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_an_encoder_asks_of_its_machine(name: str) -> None:
    """Never more than one machine has, whatever all of them have together; and a CPU is left to read."""
    nodes, threads, device, most = CLUSTERS[name]
    assert share_out(nodes, threads) == (device, most)


@pytest.mark.parametrize("version", ["1.13.0", "2.9.3", "2.39.0", "2.40.0", "2.60.0", "3.0.0.dev0"])
def test_releases_of_ray(
    version: str, monkeypatch: pytest.MonkeyPatch, images: Path, vae: AutoencoderKL, tmp_path: Path
) -> None:
    """The oldest is the one that pyproject.toml asks for, and an older one is said to be too old."""
    assert f'"ray[data]>={LEAST_RAY}"' in (TESTS.parent / "pyproject.toml").read_text(encoding="utf-8")
    if [int(part) for part in version.split(".")[:2]] >= [2, 40]:
        check_release(version)
        return
    monkeypatch.setattr(ray, "__version__", version)
    with pytest.raises(
        MissingDependencyError, match=rf"needs Ray 2\.40 or newer, and {version} is installed.*\[scale\]"
    ):
        encode(images, tmp_path / "out", vae, engine=ENGINE)


def test_blocks_of_every_release(monkeypatch: pytest.MonkeyPatch, images: Path, vae: AutoencoderKL) -> None:
    """Releases of Ray differ in the fields of a block's metadata; `schema` was one until 2025."""
    from ray.data import block

    @dataclasses.dataclass
    class Older:
        num_rows: int | None
        size_bytes: int | None
        schema: object
        input_files: list[str] | None
        exec_stats: object

    work = [[Work(split)] for split in find_splits(images, 6)]
    for kind in (Older, block.BlockMetadata):
        monkeypatch.setattr(block, "BlockMetadata", kind)
        tasks = _make_source(ray.data, work, settings(vae), 3).get_read_tasks(1)
        assert len(tasks) == 4 and all(isinstance(task.metadata, kind) for task in tasks)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 13])
def test_shards_of_a_split(count: int, vae: AutoencoderKL, tmp_path: Path) -> None:
    """Prepared as they are read, one file of an image in memory at a time; the last is known to be the last."""
    source = make_images(tmp_path / "source", count)
    (split,) = find_splits(source, 100)
    chosen = settings(vae, shard_images=6)
    found = list(shards_of(Work(split), chosen, 3))
    assert [chunk for chunk, _, _ in found] == list(range(len(found)))
    assert [last for *_, last in found] == [False] * (len(found) - 1) + [True]
    results = [result for _, results, _ in found for result in results]
    assert [result.position for result in results] == list(range(count))
    assert all(isinstance(result, Prepared) for result in results)
    rest = [result for _, results, _ in shards_of(Work(split, len(found) - 1), chosen, 3) for result in results]
    assert [result.key for result in rest] == [result.key for result in results[6 * (len(found) - 1) :]]


@pytest.mark.slow  # minutes, most of them Ray's; that retries give the same bytes, local kills show by default
def test_an_actor_that_is_killed_costs_a_retry(
    cluster: None, images: Path, vae: AutoencoderKL, expected: dict[str, str], tmp_path: Path
) -> None:
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        """Kill the process that encodes as soon as it is there, and the one after it when a shard is written."""
        while len(killed) < 2 and not ended.wait(0.02):
            if killed and not list(tmp_path.glob("out/shards/*/*.json")):
                continue
            for each in [each for each in encoders() if each not in killed][:1]:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(each, signal.SIGKILL)
                    killed.append(each)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        encode(images, tmp_path / "out", vae, engine=ENGINE, **OPTIONS)
    finally:
        ended.set()
        killer.join()
    assert killed, "there was an actor to kill"
    assert contents(tmp_path / "out") == expected


def encoders() -> list[int]:
    """Processes of Ray's actors that encode."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::") and "_Encode" in line:
            found.append(process.pid)
    return found


@pytest.mark.thorough
def test_errors_are_sentences(cluster: None, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    """What fails on a worker is said as locally."""
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / "000").write_text("a file where a folder should be")
    with pytest.raises(DatasetError, match=r"cannot write .*\d{6}-\d{4}\.safetensors.* with --resume\.$"):
        encode(images, out, vae, engine=ENGINE, **OPTIONS)


@pytest.mark.thorough
def test_no_cluster(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    script = (
        "from vae_core.cli import main; import sys; "
        f"sys.exit(main(['encode-dataset', {str(images)!r}, '--out', {str(tmp_path / 'out')!r}, '--size', '64', "
        "'--engine', 'ray', '--ray-address', '127.0.0.1:1']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "RAY_gcs_rpc_server_reconnect_timeout_s": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moments", [1, 30])
def test_a_driver_that_is_killed(
    moments: int, cluster: None, images: Path, vae_folder: Path, expected: dict[str, str], vae: AutoencoderKL,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Killed at random moments by the command line's user, resumed until it is done: the same bytes."""
    address = ray.get_runtime_context().gcs_address
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys, ray\n"
        "from pathlib import Path\n"
        "from given.collection import encode\n"
        "from vae_core import load_vae\n"
        "from vae_core.datasets import Engine\n"
        f"ray.init({address!r}, log_to_driver=False)\n"
        "print('ready', flush=True)\n"
        f"encode({str(images)!r}, Path(sys.argv[1]), load_vae({str(vae_folder)!r}), resume=True,\n"
        f"    engine=Engine('ray', workers=1), **{OPTIONS!r})\n"
    )
    chance, kills, finished, longest = random.Random(0), 0, 0, 20.0
    while kills < moments:
        out = tmp_path / str(finished)
        before = committed(out)
        driver = subprocess.Popen([sys.executable, str(script), str(out)], stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
        began = time.monotonic()
        timer = threading.Timer(chance.uniform(0, longest), driver.kill)
        timer.start()
        code = driver.wait()
        timer.cancel()
        assert before.items() <= committed(out).items(), "what was committed is not done again"
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0
        assert contents(out) == expected
        finished, longest = finished + 1, time.monotonic() - began
    out = tmp_path / str(finished)
    encode_dataset(str(images), out, vae, settings(vae, **OPTIONS), engine=ENGINE, resume=True)
    assert contents(out) == expected
