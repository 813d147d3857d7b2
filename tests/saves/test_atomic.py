"""Saves that are killed, run out of disk or race: what is there afterwards is the old or the new, whole."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from given.saves import SHARDS, assert_is_one_of, traces
from PIL import Image

from vae_core import AutoencoderKL, atomic, load_vae, save_single_file
from vae_core.checkpoints.pretrained import write_folder
from vae_core.checkpoints.write import safetensors, write_whole
from vae_core.cli.latent_file import Latent, write_latents
from vae_core.datasets import LatentDataset
from vae_core.datasets.latents import NamedLatent, save_latents
from vae_core.errors import VAEError
from vae_core.image import open_image, write_image

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
CALLS = ("open", "close", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "chmod")  # that change
REFUSED = 5  # the exit code of a child whose save raised


def in_child(action: Callable[[], object]) -> int:
    """Run something in a forked process; gives its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            action()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(n: int, after: bool, action: Callable[[], object]) -> Callable[[], object]:
    """The same action in a process that dies at the n-th system call, before or after it is made."""

    def run() -> None:
        count = 0

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                is_last = count == n
                if is_last and not after:
                    os._exit(9)
                try:
                    return real(*arguments, **options)
                finally:
                    if is_last:
                        os._exit(9)

            return call

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        action()

    return run


def limited(limit: int, action: Callable[[], object], handler: Any = signal.SIG_IGN) -> Callable[[], object]:
    """The same action where no file may grow over a limit of bytes.

    A process that writes past it is killed by the kernel if `handler` is the default one, and else gets an error.
    """

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            action()
        except VAEError as error:
            os._exit(REFUSED if "File too large" in str(error) else 1)

    return run


def kills(action: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """Kill an action at each of its system calls in turn, each time after preparing again."""
    for after in (False, True):
        for n in range(1, 1000):
            prepare()
            code = in_child(killed_at(n, after, action))
            if code == 0:
                assert n > 8, "the calls are not counted"
                break
            assert code == 9
            yield n


def _tensors(*_: AutoencoderKL) -> Any:
    return (
        "tensors",
        *(partial(write_whole, writer=safetensors({"latent": torch.arange(4.0) + i}, {})) for i in (0, 1)),
    )


def _single_files(*models: AutoencoderKL) -> Any:
    return ("vae.safetensors", *(partial(save_single_file, model) for model in models))


def _latents(*_: AutoencoderKL) -> Any:
    given = [[Latent(torch.full((1, 4, 3 + i, 5), float(i)), name=str(i))] for i in (0, 1)]
    return ("latents.safetensors", *(partial(write_latents, latents=latents) for latents in given))


def _configs(*models: AutoencoderKL) -> Any:
    return ("config.json", *(lambda path, model=model: model.save_config(path.parent) for model in models))


def _named_configs(*models: AutoencoderKL) -> Any:
    return ("a.json", *(model.to_json_file for model in models))


def _images(*_: AutoencoderKL) -> Any:
    images = [Image.effect_noise((17 + i, 13), 90) for i in (0, 1)]
    return ("image.png", *(partial(write_image, image) for image in images))


# What writes one file: its name, and two that write it, each with another content.
WRITERS: dict[str, Callable[..., Any]] = {
    "tensors": _tensors,
    "a model in one file": _single_files,
    "latents": _latents,
    "a config": _configs,
    "a config of a name": _named_configs,
    "an image": _images,
}


def written_alone(name: str, writers: list[Callable[[Path], object]], folder: Path) -> list[bytes]:
    """What each of them writes, if none disturbs it."""
    contents = []
    for number, write in enumerate(writers):
        place = folder / f"alone-{number}" / name
        place.parent.mkdir()
        write(place)
        contents.append(place.read_bytes())
    assert contents[0] != contents[1]
    return contents


WEIGHTS = "diffusion_x_model"


@fork
class TestKilled:
    # Under a model's names: an interrupted save may leave no others.
    @pytest.mark.parametrize(
        "before",
        [None, ["config.json", "b_config.json"], ["config.json", "c_config.json", f"{WEIGHTS}-1.bin"]],
        ids=str,
    )
    @pytest.mark.parametrize(
        "now", [["config.json", "b_config.json"], ["config.json", "d_config.json", f"{WEIGHTS}-2.bin"]], ids=str
    )
    @pytest.mark.thorough
    def test_files_are_the_old_or_the_new(self, before: list[str] | None, now: list[str], tmp_path: Path) -> None:
        folder, number = tmp_path, 0

        def save(names: list[str], content: bytes) -> None:
            def leftovers() -> list[str]:
                return [path.name for path in folder.glob("diffusion_*")]

            atomic.write_together(folder, dict.fromkeys(names, lambda file: file.write(content)), leftovers=leftovers)

        def prepare() -> None:
            nonlocal folder, number
            number += 1
            folder = tmp_path / str(number) / "folder"
            if before is not None:
                save(before, b"old")

        old_files = dict.fromkeys(before or (), b"old")
        kept = {name: b"old" for name in old_files if not name.startswith("diffusion_")}
        new_files = kept | dict.fromkeys(now, b"new")
        for _ in kills(lambda: save(now, b"new"), prepare):
            with atomic.steady(folder):
                found = {}
                if folder.exists():
                    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
                assert found in (old_files, new_files)
            save(now, b"new")
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == new_files
            assert traces(folder.parent) == []

    @pytest.mark.parametrize("before, now", [({}, SHARDS), (SHARDS, {}), (SHARDS, {"max_shard_size": "20KB"})], ids=str)
    @pytest.mark.thorough
    def test_a_model_is_the_old_or_the_new(
        self, before: dict[str, Any], now: dict[str, Any], old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
    ) -> None:
        seen = set()
        for n in range(1, 200):
            folder = tmp_path / str(n)
            old.save_pretrained(folder, **before)
            code = in_child(killed_at(n, False, lambda folder=folder: new.save_pretrained(folder, **now)))
            if code == 0:
                break
            assert_is_one_of(folder, [old, new])
            seen.add(load_vae(folder).config.scaling_factor)
        assert seen == {0.5, 0.25}

    @pytest.mark.parametrize("kind", WRITERS)
    @pytest.mark.thorough
    def test_a_file_is_the_old_or_the_new(
        self, kind: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
    ) -> None:
        name, *writers = WRITERS[kind](old, new)
        contents = written_alone(name, writers, tmp_path)
        folder = tmp_path / "folder"
        folder.mkdir()
        actions = [partial(write, folder / name) for write in writers]
        seen = set()
        for _ in kills(actions[1], actions[0]):
            with atomic.steady(folder):
                seen.add((folder / name).read_bytes())
            actions[0]()
            assert [each.name for each in folder.iterdir()] == [name]
        assert seen == set(contents)

    def test_a_kill_in_the_middle_of_writing(self, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
        old.save_pretrained(tmp_path / "vae")
        size = (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size

        for limit in range(0, size, size // 9):
            killed = limited(limit, lambda: new.save_pretrained(tmp_path / "vae"), signal.SIG_DFL)
            assert in_child(killed) == -signal.SIGXFSZ
            assert traces(tmp_path / "vae")
            assert_is_one_of(tmp_path / "vae", [old])
        old.save_pretrained(tmp_path / "vae")
        assert traces(tmp_path) == []

    def test_a_temporary_at_work_is_left_alone(self, new: AutoencoderKL, tmp_path: Path) -> None:
        seen = []

        def slow(file) -> None:
            save_single_file(new, tmp_path / "other.safetensors")
            seen.extend(traces(tmp_path))
            file.write(b"whole")

        atomic.write_file(tmp_path / "file", slow)
        assert len(seen) == 1 and (tmp_path / "file").read_bytes() == b"whole" and traces(tmp_path) == []


@fork
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.thorough
def test_a_full_disk(kind: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    """A limit of the file's size is a disk with so much room: a write takes what fits, and the next one fails.

    Of files that are not small, at some forty of their bytes.
    """
    name, *writers = WRITERS[kind](old, new)
    whole, content = written_alone(name, writers, tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    writers[0](folder / name)
    for limit in {*range(0, len(content), max(1, len(content) // 40 - 2)), len(content) - 1}:
        assert in_child(limited(limit, partial(writers[1], folder / name))) == REFUSED
        assert (folder / name).read_bytes() == whole and [each.name for each in folder.iterdir()] == [name]


@fork
@pytest.mark.parametrize("safe", [True, False])
def test_a_full_disk_while_a_folder_is_saved(safe: Any, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    old.save_pretrained(tmp_path / "vae", **SHARDS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    for limit in range(0, 30_000, 2_337):
        action = limited(limit, lambda: new.save_pretrained(tmp_path / "vae", safe_serialization=safe))
        assert in_child(action) == REFUSED
        assert {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()} == before


class TestRaces:
    def race(self, actions: list[Callable[[], object]]) -> list[BaseException]:
        failures, barrier = [], threading.Barrier(len(actions))

        def run(action: Callable[[], object]) -> None:
            barrier.wait()
            try:
                action()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures

    @pytest.mark.parametrize("options", [{}, SHARDS, {"safe_serialization": False}], ids=str)
    def test_threads_that_save_one_folder(
        self, options: dict[str, Any], old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
    ) -> None:
        for i in range(6):
            folder = tmp_path / str(i // 2)  # new at first, then replaced
            saves = [
                lambda model=model, folder=folder: model.save_pretrained(folder, **options) for model in (old, new)
            ]
            loads = [partial(assert_is_one_of, folder, [old, new])] * 2 if i % 2 else []
            assert self.race([*saves, *saves, *loads]) == []
            assert_is_one_of(folder, [old, new])
            assert traces(tmp_path) == []

    def test_threads_that_save_one_image(self, tmp_path: Path) -> None:
        images = [Image.effect_noise((97 + i, 61), 90 + i) for i in range(4)]
        path = tmp_path / "image.png"
        for _ in range(5):
            assert self.race([lambda image=image: write_image(image, path) for image in images]) == []
            found = open_image(path)
            assert [image.tobytes() for image in images if image.size == found.size] == [found.tobytes()]
            assert [each.name for each in tmp_path.iterdir()] == ["image.png"]

    @pytest.mark.parametrize("kind", WRITERS)
    def test_threads_that_write_one_file(
        self, kind: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path
    ) -> None:
        name, *writers = WRITERS[kind](old, new)
        contents = written_alone(name, writers, tmp_path)
        for turn in range(5):
            folder = tmp_path / str(turn)
            folder.mkdir()
            assert self.race([partial(write, folder / name) for write in writers * 2]) == []
            assert (folder / name).read_bytes() in contents
            assert [each.name for each in folder.iterdir()] == [name]

    def test_one_of_those_that_make_a_collection_has_the_name(self, old: AutoencoderKL, tmp_path: Path) -> None:
        latents = [[NamedLatent("image", torch.full((4, 8, 8), float(i)))] for i in range(4)]
        for layout in ("shards", "webdataset"):
            folder = tmp_path / layout
            failures = self.race([partial(save_latents, folder, each, old, layout=layout) for each in latents])
            assert len(failures) == 3 and all("exists" in str(failure).lower() for failure in failures)
            found = LatentDataset(folder)
            assert len(found) == 1 and any(torch.equal(found[0]["latents"], each.z) for (each,) in latents)

    def test_one_wins_where_nothing_is_to_be_overwritten(self, old: AutoencoderKL, tmp_path: Path) -> None:
        for i in range(4):
            file, folder = tmp_path / f"{i}.safetensors", tmp_path / str(i)
            saves = [
                partial(save_single_file, old, file, overwrite=False),
                partial(write_folder, folder, old.weights_to_save(), old.config, overwrite=False),
            ]
            for save in saves:
                failures = self.race([save] * 4)
                assert len(failures) == 3 and all("exists already" in str(failure) for failure in failures)
            assert_is_one_of(folder, [old])
            assert traces(tmp_path) == []
