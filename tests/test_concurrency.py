"""One VAE from many threads, in an event loop, in forked and in spawned processes; one folder for two processes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import assert_same_weights
from given.inputs import image, latent
from given.loops import in_loop
from given.models import SMALL, make
from given.runs import SIZE, StoppedError, workers
from host.stand_in import Pack, installed

import vae_core
from vae_core import TileSpec, load_vae

TESTS = Path(__file__).resolve().parent
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


WAYS: list[dict[str, Any]] = [
    {},
    {"tiling": TileSpec(size=5)},
    {"memory_budget": 2**22},
    {"circular": "both"},
    {"tiling": TileSpec(size=12, overlap=4, mode="blended")},
]


@pytest.mark.thorough
def test_eight_threads_on_one_vae() -> None:
    vae = make(SMALL)
    z, x = latent(1, SIZE, SIZE, model=vae), image(1, 48, 48, model=vae)
    runs = [lambda way=way: vae_core.decode(vae, z, **way) for way in WAYS]
    runs += [lambda way=way: vae_core.encode(vae, x, **way).parameters for way in WAYS[:2]]
    wanted = [run() for run in runs]
    threads = torch.get_num_threads()

    def one(number: int) -> None:
        for turn in range(len(runs)):
            index = (number + turn) % len(runs)
            assert torch.equal(runs[index](), wanted[index])

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(one, number) for number in range(8)]:
            done.result(timeout=300)
    assert not workers() and torch.get_num_threads() == threads


def test_an_event_loop_goes_on_while_images_are_decoded() -> None:
    """Jobs in threads of the loop: some end, one is stopped, and the loop is never kept."""
    vae = make(SMALL)
    z = latent(1, 2 * SIZE, SIZE, model=vae)
    wanted = vae_core.decode(vae, z)

    def stop(_: Any) -> None:
        raise StoppedError

    async def all_of_them() -> tuple[list[Any], int]:
        beats, over = 0, asyncio.Event()

        async def beat() -> None:
            nonlocal beats
            while not over.is_set():
                await asyncio.sleep(0.001)
                beats += 1

        heart = asyncio.ensure_future(beat())
        jobs = [asyncio.to_thread(vae_core.decode, vae, z) for _ in range(4)]
        jobs.insert(2, asyncio.to_thread(vae_core.decode, vae, z, progress=stop))
        found = await asyncio.gather(*jobs, return_exceptions=True)
        over.set()
        await heart
        return found, beats

    found, beats = in_loop(all_of_them())
    assert isinstance(found.pop(2), StoppedError)
    assert all(torch.equal(each, wanted) for each in found)
    assert beats > 3 and not workers()


FORKED = """
    import logging, os, sys, torch, vae_core
    from given.inputs import latent
    from given.models import SMALL, make

    logging.basicConfig(stream=sys.stdout)
    torch.set_num_threads(2)
    vae, z = make(SMALL), latent(1, 40, 40, model=make(SMALL))
    wanted = vae_core.decode(vae, z), vae.decode_reference(z)  # OpenMP has started its threads by now
    job = vae_core.prepare_decode(vae, z.shape)

    def in_child(work):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if torch.allclose(work(), wanted[0], atol=1e-5) else 2
            finally:
                sys.stdout.flush()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, work

    with torch.no_grad():
        in_child(lambda: vae_core.decode(vae, z))
        in_child(lambda: job.run(z))
        in_child(lambda: vae.decode(z).sample)
    assert torch.get_num_threads() == 2 and torch.equal(vae_core.decode(vae, z), wanted[0])
"""


@fork
@pytest.mark.thorough
def test_a_process_forked_after_computing_computes_on_one_thread_and_says_so() -> None:
    """OpenMP's threads are not there any more; who waits for them waits for ever."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-c", textwrap.dedent(FORKED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("was forked after torch had started threads") == 3, done.stdout


def decode_here(folder: str, z: Any) -> Any:
    return vae_core.decode(load_vae(folder), torch.from_numpy(z)).numpy()


@pytest.mark.thorough
def test_spawned_processes(tmp_path: Path) -> None:
    vae = make(SMALL)
    vae.save_pretrained(tmp_path / "vae")
    z = latent(1, SIZE, SIZE, model=vae)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(decode_here, [(str(tmp_path / "vae"), z.numpy())] * 2)
    assert all(abs(each - vae_core.decode(vae, z).numpy()).max() < 1e-5 for each in found)


@fork
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.thorough
def test_one_process_saves_what_another_one_loads(tmp_path: Path, kind: str) -> None:
    """Two hosts with one folder of models: whoever loads gets the one that was saved before, or the new one, whole."""
    place, models = tmp_path / ("vae.safetensors" if kind == "file" else "vae"), [make(SMALL, seed) for seed in (0, 1)]

    def save(number: int) -> None:
        if kind == "file":
            vae_core.save_single_file(models[number % 2], place)
        else:
            models[number % 2].save_pretrained(place, max_shard_size="60KB")

    save(0)
    load_vae(place)  # what a library starts then stays
    threads = threading.active_count()
    child = os.fork()
    if child == 0:
        number = 0
        while True:
            number += 1
            save(number)
    seen = set()
    try:
        until = time.monotonic() + 60
        while (len(seen) < 2 or time.monotonic() < until - 57) and time.monotonic() < until:
            loaded = load_vae(place)
            number = int(torch.equal(loaded.decoder.conv_in.weight, models[1].decoder.conv_in.weight))
            assert_same_weights(loaded, models[number])
            seen.add(number)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen == {0, 1}
    assert threading.active_count() <= threads


ROUNDS = 8


def as_a_host(pack: Pack, number: int, folder: Path, together: Any) -> dict[str, list[str]]:
    """Save, load and remove under names that another host has too; gives the paths of the nodes, and what was said."""
    core = pack.module("vae_core")
    models = [core.load_vae(folder / f"original-{seed}") for seed in (0, 1)]
    weights = [model.decoder.conv_in.weight for model in models]
    vae, places = pack.module("nodes.wire").wrap(models[number]), [folder / "vae.safetensors", folder / "vae"]
    said: list[str] = []
    found: dict[str, list[str]] = {"paths": [], "said": said, "loaded": []}

    def attempt(action: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return action(*arguments, **options)
        except core.VAEError as error:
            said.append(str(error))
            return None

    for turn in range(ROUNDS):
        together.wait(60)
        for kind in ("diffusers", "single_file"):
            found["paths"] += pack.run("SeamlessVAESave", vae=vae, filename_prefix="same/vae", format=kind)
        attempt(core.save_single_file, models[number], places[0])
        attempt(models[number].save_pretrained, places[1], **[{}, {"max_shard_size": "60KB"}][turn % 2])
        for place in places:
            loaded = attempt(core.load_vae, place)
            if loaded is not None:
                same = [torch.equal(loaded.decoder.conv_in.weight, each) for each in weights]
                assert_same_weights(loaded, models[same.index(True)])
                found["loaded"].append(place.name)
        if turn % 3 == number:  # as a user does, in the middle of what the other one does
            places[0].unlink(missing_ok=True)
            shutil.rmtree(places[1], ignore_errors=True)
    return found


@fork
@pytest.mark.thorough
def test_two_hosts_on_one_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both save, load, replace and remove under the same names: what loads is whole, and no save is lost."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    for seed in (0, 1):
        make(SMALL, seed).save_pretrained(tmp_path / f"original-{seed}")
    pack, together = Pack(), multiprocessing.get_context("fork").Barrier(2)
    with installed("new", tmp_path):
        children = []
        for number in (0, 1):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    found = as_a_host(pack, number, tmp_path, together)
                    (tmp_path / f"found-{number}.json").write_text(json.dumps(found), encoding="utf-8")
                    code = 0
                except BaseException:
                    traceback.print_exc()
                    together.abort()
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    found = [json.loads((tmp_path / f"found-{number}.json").read_text(encoding="utf-8")) for number in (0, 1)]
    paths = [path for each in found for path in each["paths"]]
    assert len(set(paths)) == len(paths) == 4 * ROUNDS
    assert len(list((tmp_path / "output" / "same").iterdir())) == len(paths)
    for number, each in enumerate(found):
        original = load_vae(tmp_path / f"original-{number}")
        for path in each["paths"]:
            assert_same_weights(load_vae(path), original)
        assert {"vae", "vae.safetensors"} <= set(each["loaded"])
        for text in each["said"]:
            assert text.endswith("."), text
