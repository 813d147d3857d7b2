"""The nth allocation, I/O call or thread start fails, once or from then on, in whatever a user runs.

The result is right, or the error is one of this package's; nothing is left behind, and the next run is right. SQLite's
tests do the same. Where threads alone cannot be started there is a result.
"""

from __future__ import annotations

import builtins
import errno
import gc
import mmap
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from given.inputs import image, latent
from given.models import SMALL, make
from given.runs import filing_budget, workers

import vae_core
from vae_core import AutoencoderKL, VAEError
from vae_core.streaming import pool

SIDE = 32  # latent pixels: enough for a budget that offloads maps

# What fails.


class InjectedError(OSError):
    """The system's error of a fault that a test makes."""


def no_memory() -> Exception:
    return MemoryError("injected")


def no_primitive() -> Exception:
    return RuntimeError("could not create a primitive")  # oneDNN's, out of memory


def no_thread() -> Exception:
    return RuntimeError("can't start new thread")


def no_space() -> Exception:
    return InjectedError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_mapping() -> Exception:
    return InjectedError(errno.ENOMEM, os.strerror(errno.ENOMEM))


Patch = tuple[Any, str, Callable[[], Exception]]
KINDS: dict[str, list[Patch]] = {
    "allocation": [
        (mmap, "mmap", no_mapping),
        *[(torch, name, no_memory) for name in ("empty", "cat")],
        (functional, "conv2d", no_primitive),
    ],
    "file": [
        (builtins, "open", no_space),
        *[
            (os, name, no_space)
            for name in ("open", "replace", "rename", "link", "fsync", "posix_fallocate", "pwrite", "makedirs", "mkdir")
            if hasattr(os, name)
        ],
        (tempfile, "TemporaryFile", no_space),
        (mmap, "mmap", no_mapping),
    ],
    "thread": [(threading.Thread, "start", no_thread)],
}


class Faults:
    """Counts calls, and makes the nth of them fail; `n` 0 for none.

    Attributes:
        count: how many calls there were.
        failed: how many of them failed.
    """

    def __init__(self, n: int, once: bool) -> None:
        self.n, self.once = n, once
        self.count = self.failed = 0
        self._lock = threading.Lock()

    def fails(self) -> bool:
        with self._lock:
            self.count += 1
            fails = self.n > 0 and (self.count == self.n or (self.count > self.n and not self.once))
            self.failed += fails
            return fails


@contextmanager
def faults(kind: str, n: int = 0, once: bool = True) -> Iterator[Faults]:
    found = Faults(n, once)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, error in KINDS[kind]:
            real = getattr(owner, name)

            def call(*args: Any, _real: Any = real, _error: Any = error, **kwargs: Any) -> Any:
                if found.fails():
                    raise _error()
                return _real(*args, **kwargs)

            patch.setattr(owner, name, call)
        if kind == "file":
            patch.setattr(builtins, "open", _opener(builtins.open, found))
        yield found


def _opener(opened: Callable[..., Any], found: Faults) -> Callable[..., Any]:
    """`open`, with faults of writing to files that were opened by their handle, as those that are saved are."""

    def open_one(*args: Any, **kwargs: Any) -> Any:
        file = opened(*args, **kwargs)
        return _Failing(file, found) if file.writable() and isinstance(args[0], int) else file

    return open_one


class _Failing:
    """An open file whose writes and flushes are counted, and some of which fail after a part was written."""

    def __init__(self, file: Any, found: Faults) -> None:
        self._file, self._found = file, found

    def write(self, data: Any) -> int:
        if self._found.fails():
            self._file.write(memoryview(data)[: len(data) // 2])
            raise no_space()
        return self._file.write(data)

    def flush(self) -> None:
        if self._found.fails():
            raise no_space()
        self._file.flush()

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# In what.


class Case:
    """What a user runs: `run` gives a tensor, the same each time. `folder` is empty before and after it."""

    def __init__(self, vae: AutoencoderKL, folder: Path) -> None:
        self.vae, self.folder = vae, folder
        self.z, self.x = latent(1, SIDE, SIDE), image(1, 2 * SIDE, 2 * SIDE)
        self.budget = filing_budget(vae, self.z.shape)
        self.saved = folder.parent / "saved"
        vae.save_pretrained(self.saved)

    def encode(self) -> torch.Tensor:
        return vae_core.encode(self.vae, self.x).parameters

    def decode(self) -> torch.Tensor:
        return vae_core.decode(self.vae, self.z)

    def decode_to_disk(self) -> torch.Tensor:
        return vae_core.decode(self.vae, self.z, memory_budget=self.budget)

    def save(self) -> torch.Tensor:
        return self._saved(safe_serialization=True)

    def save_pickle(self) -> torch.Tensor:
        return self._saved(safe_serialization=False)

    def save_config(self) -> torch.Tensor:
        place = self.folder / "model"
        self.vae.save_config(place)
        return torch.tensor(AutoencoderKL.load_config(place)["scaling_factor"])

    def _saved(self, safe_serialization: bool) -> torch.Tensor:
        place = self.folder / "model"
        self.vae.save_pretrained(place, safe_serialization=safe_serialization)
        found = AutoencoderKL.from_pretrained(place)
        return torch.cat([each.detach().flatten() for each in found.parameters()])

    def load(self) -> torch.Tensor:
        found = AutoencoderKL.from_pretrained(self.saved)
        return torch.cat([each.detach().flatten() for each in found.parameters()])


def empty(folder: Path) -> list[str]:
    """Empty a folder; names of what was in it but a saved model."""
    found = [path.name for path in folder.iterdir() if path.name != "model"]
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return Case(make(SMALL), folder)


def check(case: Case, name: str, kind: str, n: int, once: bool, wanted: torch.Tensor) -> None:
    pool.missing_threads.reset()
    run = getattr(case, name)
    before = descriptors()
    with faults(kind, n, once) as found:
        try:
            result = run()
        except Exception as error:
            assert isinstance(error, VAEError), f"{type(error).__name__}: {error}"
            assert kind != "thread", error
            result = None
    assert found.failed or found.count < n
    if result is not None:
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)
    del result
    gc.collect()
    assert not workers()
    assert torch.get_num_threads() == 2
    assert descriptors() <= before
    left = empty(case.folder)
    if name.startswith("save") and not once:  # where files cannot be opened, nothing can be removed
        left = [each for each in left if not each.startswith(".seamless-vae-")]
    assert not left
    torch.testing.assert_close(run(), wanted, rtol=0, atol=1e-5)
    empty(case.folder)


COMBINATIONS = [
    *[(name, kind) for name in ("encode", "decode", "decode_to_disk") for kind in ("allocation", "thread")],
    ("decode_to_disk", "file"),
    ("save", "file"),
    ("save_pickle", "file"),
    ("save_config", "file"),
    ("load", "file"),
]


def calls(case: Case, name: str, kind: str) -> tuple[int, torch.Tensor]:
    getattr(case, name)()  # what is imported or compiled is not asked for again
    empty(case.folder)
    with faults(kind) as found:
        wanted = getattr(case, name)()
    empty(case.folder)
    assert found.count
    return found.count, wanted


@pytest.mark.parametrize(("name", "kind"), COMBINATIONS, ids=["-".join(each) for each in COMBINATIONS])
@pytest.mark.thorough
def test_some_of_them(name: str, kind: str, case: Case) -> None:
    count, wanted = calls(case, name, kind)
    for n in sorted({1, count // 2, count} - {0}):
        check(case, name, kind, n, once=True, wanted=wanted)
    check(case, name, kind, max(1, count // 3), once=False, wanted=wanted)


@pytest.mark.slow
@pytest.mark.parametrize("once", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize(("name", "kind"), COMBINATIONS, ids=["-".join(each) for each in COMBINATIONS])
def test_every_one(name: str, kind: str, once: bool, case: Case) -> None:
    count, wanted = calls(case, name, kind)
    for n in range(1, count + 1):
        check(case, name, kind, n, once, wanted)
