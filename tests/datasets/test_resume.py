"""Killed at any moment and started again: the same collection, byte for byte, and nothing done twice."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from given.collection import committed, contents, encode, encode_and_die, make_images

from vae_core import AutoencoderKL, DatasetError
from vae_core.datasets import Buckets, Engine, sole_writer, verify_dataset
from vae_core.datasets.encode import BatchEncoder

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
pytestmark = pytest.mark.skipif(FORK is None, reason="processes are forked, which this system cannot")


def in_a_process(work: Callable[[], Any], seconds: float | None = None) -> int:
    """Do something in a process of its own, and kill it after so many seconds; returns its exit code."""
    assert FORK is not None
    process = FORK.Process(target=work)
    process.start()
    process.join(seconds)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("source") / "few", 10)


OPTIONS = {"keep": "sample", "shard_images": 3, "batch": 2}


@pytest.mark.parametrize("layout", ["shards", "webdataset"])
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_every_step_of_writing(step: int, layout: Any, few: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    """Killed before the n-th time that a file is flushed or renamed, for every n; by default for every ninth."""
    encode(few, tmp_path / "whole", vae, layout=layout, **OPTIONS)
    for n in range(1, 200, step):
        out = tmp_path / "out" / str(n)
        if in_a_process(lambda out=out, n=n: encode_and_die(n, few, out, vae, layout=layout, **OPTIONS)) == 0:
            break
        encode(few, out, vae, resume=True, layout=layout, **OPTIONS)
        assert contents(out) == contents(tmp_path / "whole"), f"killed before step {n}"
    else:
        raise AssertionError("it never came to its end")
    assert n > 2 * 3 * 5, "files are flushed and renamed: five shards of two files, and three lists"


@pytest.mark.parametrize("moments", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_random_moments(moments: int, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    """Killed again and again, with readers in processes of their own, until there were so many kills."""
    began = time.monotonic()
    encode(images, tmp_path / "whole", vae, **OPTIONS)
    whole, expected = time.monotonic() - began, contents(tmp_path / "whole")
    chance, out, kills, finished = random.Random(0), tmp_path / "out", 0, 0
    while kills < moments:
        folder = out / str(finished)

        before = committed(folder)

        def work(folder: Path = folder) -> None:
            encode(images, folder, vae, engine=Engine(workers=1), resume=True, **OPTIONS)

        code = in_a_process(work, chance.uniform(0, whole))
        assert before.items() <= committed(folder).items(), "what was committed is not done again"
        if code == 0:
            assert contents(folder) == expected
            finished += 1
        else:
            kills += 1
    encode(images, out / str(finished), vae, resume=True, **OPTIONS)
    assert contents(out / str(finished)) == expected


@pytest.mark.thorough
def test_readers_end_with_a_run_that_is_killed(vae: AutoencoderKL, tmp_path: Path) -> None:
    """Even those that wait to hand over what they have read: of many images, before the first is asked for."""
    psutil = pytest.importorskip("psutil")
    assert FORK is not None
    source = make_images(tmp_path / "source", 120)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(BatchEncoder, "__call__", lambda self, batch: time.sleep(60))
            encode(source, tmp_path / "out", vae, engine=Engine(workers=2), buckets=Buckets.parse("512"))

    run = FORK.Process(target=work)
    run.start()
    deadline, readers = time.monotonic() + 60, []
    while len(readers) < 2 and time.monotonic() < deadline:
        readers = psutil.Process(run.pid).children()
        time.sleep(0.1)
    assert len(readers) == 2
    time.sleep(3)  # they have filled what they hand over by
    run.kill()
    run.join()
    _, alive = psutil.wait_procs(readers, timeout=10)
    for reader in alive:
        reader.kill()
    assert not alive


def test_nothing_is_encoded_twice(
    images: Path, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that ended after some shards, those are not touched again."""
    seen: list[str] = []
    real = BatchEncoder.__call__

    def counted(self: BatchEncoder, batch: list[Any]) -> Any:
        seen.extend(image.key for image in batch)
        if len(seen) > 12 and not stopped:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(BatchEncoder, "__call__", counted)
    stopped: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path / "out", vae)
    committed = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in contents(tmp_path / "out")}
    done = [name for name in committed if name.endswith(".safetensors")]
    assert 1 <= len(done) < 4
    stopped.append(True)
    first = list(seen)
    seen.clear()
    encode(images, tmp_path / "out", vae, resume=True)
    assert len(seen) == len(set(seen)), "no image twice in one run"
    assert len(set(first) & set(seen)) <= 6 + 3, "only those of the shard in flight"
    assert len(set(first) | set(seen)) == 20
    for name in done:
        assert (tmp_path / "out" / name).stat().st_mtime_ns == committed[name]


def test_a_finished_collection_needs_nothing(
    images: Path, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = encode(images, tmp_path / "out", vae)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(BatchEncoder, "__call__", None)
    assert encode(images, tmp_path / "out", vae, resume=True) == totals
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.thorough
def test_a_full_disk(
    number: int, few: Path, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and what was written stays valid."""
    encode(few, tmp_path / "whole", vae, **OPTIONS)
    left, real = number, os.fsync

    def full(handle: int) -> None:
        nonlocal left
        if os.fstat(handle).st_size:  # a file, not a folder
            left -= 1
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DatasetError, match=r"no space is left for .* with --resume\.$"):
            encode(few, tmp_path / "out", vae, **OPTIONS)
    out = tmp_path / "out"
    assert not [name for name in contents(out) if name.endswith(".tmp")]
    whole = contents(tmp_path / "whole")
    for name, digest in contents(out).items():
        assert digest == whole[name] or name == "manifest.json"
    encode(few, out, vae, resume=True, **OPTIONS)
    assert contents(out) == whole


LOST = {
    "a record": ("shards/000/000001-0000.json", None),
    "a shard": ("shards/000/000001-0000.safetensors", None),
    "the end of a shard": ("shards/000/000001-0000.safetensors", lambda data: data[:-1]),
    "the list of shards": ("shards.jsonl", None),
    "the list of failures": ("failures.jsonl", None),
    "all shards": ("shards", None),
}


@pytest.mark.parametrize("layout", ["shards", "webdataset"])
@pytest.mark.parametrize("name", LOST)
def test_what_was_lost_is_made_again(name: str, layout: Any, few: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    out, (file, change) = tmp_path / "out", LOST[name]
    encode(few, out, vae, layout=layout, **OPTIONS)
    whole = contents(out)
    place = out / (file if layout == "shards" else file.replace(".safetensors", ".tar"))
    if change is not None:
        place.write_bytes(change(place.read_bytes()))
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    assert contents(out) != whole
    encode(few, out, vae, layout=layout, resume=True, **OPTIONS)
    assert contents(out) == whole


def test_kohyas_file_that_was_lost(few: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    options = {"layout": "kohya", "kohya": "sd", "keep": "sample"}
    encode(few, tmp_path, vae, **options)
    whole = contents(tmp_path)
    next(tmp_path.rglob("*_sd.npz")).unlink()
    encode(few, tmp_path, vae, resume=True, **options)
    assert contents(tmp_path) == whole


DAMAGED = {
    "no manifest": ("manifest.json", None, "has shards, but no manifest.json"),
    "an empty manifest": ("manifest.json", b"", "manifest.json cannot be read.* or encode again"),
    "a manifest of nothing": ("manifest.json", b"null", "values of types that.* or encode again"),
    "no splits": ("splits.jsonl", None, "splits.jsonl cannot be read: No such file.* or encode again"),
    "empty splits": ("splits.jsonl", b"", "splits.jsonl cannot be read: it is empty"),
    "splits of nothing": ("splits.jsonl", b"null", "splits.jsonl cannot be read: it has values of types that"),
    "an empty record": ("shards/000/000001-0000.json", b"", "cannot be read .*Move it elsewhere"),
    "a record of nothing": ("shards/000/000001-0000.json", b"null", "values of types that.*Move it elsewhere"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_a_run_cannot_go_on_with(name: str, few: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    """What says how a collection is made is not guessed, and nothing is changed."""
    file, data, said = DAMAGED[name]
    encode(few, tmp_path / "out", vae, **OPTIONS)
    (tmp_path / "out" / file).unlink() if data is None else (tmp_path / "out" / file).write_bytes(data)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match=said):
        encode(few, tmp_path / "out", vae, resume=True, **OPTIONS)
    assert contents(tmp_path / "out") == before


def test_a_reader_that_is_killed(vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the run is just then: torch raises it while the model is at work, too."""
    psutil = pytest.importorskip("psutil")
    source, killed = make_images(tmp_path / "source", 60), []
    encode(source, tmp_path / "whole", vae, **OPTIONS)
    real, this = BatchEncoder.__call__, psutil.Process()
    others = this.children()  # a browser of other tests, say

    def killing(self: BatchEncoder, batch: list[Any]) -> Any:
        if not killed:
            killed.extend(each for each in this.children() if each not in others)
            (reader,) = killed
            reader.kill()
            time.sleep(1)
        return real(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(BatchEncoder, "__call__", killing)
        with pytest.raises(DatasetError, match="a process that reads images was killed.*--resume"):
            encode(source, tmp_path / "out", vae, engine=Engine(workers=1), **OPTIONS)
    encode(source, tmp_path / "out", vae, resume=True, **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_cannot_be_resumed(images: Path, few: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    encode(few, tmp_path / "out", vae)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match="Give --resume"):
        encode(few, tmp_path / "out", vae)
    with pytest.raises(DatasetError, match="keep 'moments' instead of 'mean'"):
        encode(few, tmp_path / "out", vae, resume=True, keep="moments")
    with pytest.raises(DatasetError, match="source .* instead of"):
        encode(images, tmp_path / "out", vae, resume=True)
    with pytest.raises(DatasetError, match="another VAE"):
        encode(few, tmp_path / "out", copy.deepcopy(vae).half(), resume=True)
    assert contents(tmp_path / "out") == before


def test_two_runs_at_once(tmp_path: Path) -> None:
    """In this process and in another; and a process that was forked meanwhile does not keep the lock."""
    pytest.importorskip("fcntl")
    assert FORK is not None

    def try_it() -> None:
        with sole_writer.sole_writer(tmp_path, patience=0.3):
            pass

    def try_it_elsewhere() -> None:
        sole_writer._writing.clear()  # which a fork has of its parent
        try_it()

    with sole_writer.sole_writer(tmp_path):
        with pytest.raises(DatasetError, match="another run"):
            try_it()
        assert in_a_process(try_it_elsewhere) == 1
        reader = FORK.Process(target=time.sleep, args=(60,))
        reader.start()
    try:
        assert in_a_process(try_it_elsewhere) == 0
    finally:
        reader.kill()
        reader.join()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"), "SHA-256 differs"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.with_suffix(".json").unlink(), "was not written"),
        (lambda file: file.with_suffix(".json").write_text("{"), "record cannot be read"),
        (lambda file: file.with_suffix(".json").write_text("{}"), "record cannot be read"),
        (lambda file: (file.parents[2] / "failures.jsonl").write_text("{}\n"), "1 lines instead of 0"),
        (lambda file: (file.parents[2] / "splits.jsonl").write_text("[]\n"), "cannot be read"),
    ],
)
def test_verification(
    damage: Callable[[Path], Any], problem: str, few: Path, vae: AutoencoderKL, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode(few, out, vae, **OPTIONS)
    found = verify_dataset(out)
    assert (found.images, found.failures, found.shards, found.faults) == (10, 0, 4, ())
    damage(out / "shards" / "000" / "000001-0000.safetensors")
    assert problem in " ".join(map(str, verify_dataset(out).faults))
