"""The one temporary file of maps that are offloaded to disk, and what is wrong with its folder."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from given.inputs import latent
from given.runs import filing_budget, workers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

import vae_core
from vae_core import AutoencoderKL, MemoryBudgetError
from vae_core.streaming import maps
from vae_core.streaming.offload_file import OffloadFile
from vae_core.streaming.store import MapStore

CPU = torch.device("cpu")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_any_number_of_bands_are_in_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "BAND_BYTES", 2**16)
    before = descriptors()
    store = MapStore(CPU, limit=0, disk_bytes=200 * 2**16)
    lent = store.allocate((1, 1600, 64, 32), torch.float32)
    assert len(lent.bands) == 200
    assert descriptors() <= before + 2
    for number, band in enumerate(lent.bands):
        band.fill_(number)
    assert all((band == number).all() for number, band in enumerate(lent.bands))
    store.release(lent)
    del lent, band
    store.drop_free()
    assert descriptors() == before


@given(
    steps=st.lists(st.one_of(st.integers(1, 30_000), st.integers(-8, -1)), max_size=40), total=st.integers(0, 100_000)
)
@settings(deadline=None)
def test_parts_that_are_lent_do_not_touch(steps: list[int], total: int) -> None:
    """A positive step lends so many bytes, a negative one takes back one of those lent."""
    file, lent, number = OffloadFile(total), [], 0
    for step in steps:
        if step > 0:
            number += 1
            part = file.lend(step)
            assert part.numel() == step and part.data_ptr() % mmap.PAGESIZE == 0
            part.fill_(number)
            lent.append((number, part))
        elif lent:
            _, part = lent.pop(step % len(lent))
            file.take_back(part)
    assert all(bool((part == each % 256).all()) for each, part in lent)
    file.close()
    assert all(bool((part == each % 256).all()) for each, part in lent), "memory stays as long as it is used"


def test_what_is_given_back_is_lent_again_before_the_file_grows() -> None:
    file = OffloadFile(2**20)
    parts = [file.lend(2**18) for _ in range(4)]
    places = {part.data_ptr() for part in parts}
    for part in (parts[1], parts[3], parts[0], parts[2]):
        file.take_back(part)
    assert file.lend(2**20).data_ptr() == min(places)


# The folder.


def gone(folder: Path) -> None:
    folder.rmdir()


def a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"")


FOLDERS: dict[str, Callable[[Path], None]] = {"gone": gone, "a file": a_file}


def decode_to_disk(vae: AutoencoderKL) -> torch.Tensor:
    z = latent(1, 32, 32)
    return vae_core.decode(vae, z, memory_budget=filing_budget(vae, z.shape))


def check_message(vae: AutoencoderKL, folder: Path, reason: str) -> None:
    z = latent(1, 32, 32)
    need = vae_core.plan_decode(vae, z.shape, memory_budget=filing_budget(vae, z.shape)).places.disk / 2**20
    with pytest.raises(MemoryBudgetError, match=re.escape(str(folder)) + ".*TMPDIR") as caught:
        decode_to_disk(vae)
    message = str(caught.value)
    assert re.search(reason, message)
    assert float(message.split()[0]) == pytest.approx(need, abs=1), "what is needed in all"
    assert not workers()


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_cannot_be_used(
    what: str, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    FOLDERS[what](folder)
    check_message(vae, folder, "No such file|Not a directory")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fallocate"])
def test_what_the_system_refuses(
    call: str, number: int, vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if call == "open":
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    elif hasattr(os, "posix_fallocate"):
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    else:
        pytest.skip("only there is room asked for beforehand")
    check_message(vae, tmp_path, re.escape(os.strerror(number)))


def test_no_temporary_folder_at_all(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    check_message(vae, Path("/nowhere"), "No usable temporary directory")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP], ids=os.strerror)
def test_a_file_system_that_reserves_nothing(number: int, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    wanted = vae_core.decode(vae, latent(1, 32, 32))
    assert (decode_to_disk(vae) - wanted).abs().max() < 1e-5


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="Windows reserves what a file is made longer by")
class TestNothingCanBeReserved:
    """As on macOS, and on file systems that do not know the call: room is there before a map of it is written to."""

    @pytest.fixture(autouse=True)
    def no_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)

    def test_the_file_has_its_blocks(self) -> None:
        file = OffloadFile()
        for size in (3 * 2**20, 5 * 2**20 + 1):
            file.lend(size)
        assert file._file is not None
        found = os.fstat(file._file.fileno())
        assert found.st_blocks * 512 >= found.st_size >= 8 * 2**20
        file.close()

    def test_a_full_disk_is_a_sentence(self, vae: AutoencoderKL, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        free = [2**15]
        monkeypatch.setattr(os, "fstatvfs", lambda handle: SimpleNamespace(f_bavail=free[0], f_frsize=1))
        check_message(vae, tmp_path, re.escape(os.strerror(errno.ENOSPC)))
        free[0] = 2**40
        wanted = vae_core.decode(vae, latent(1, 32, 32))
        assert (decode_to_disk(vae) - wanted).abs().max() < 1e-5

    def test_a_disk_that_is_full_meanwhile(self, vae: AutoencoderKL, tmp_path: Path, monkeypatch: Any) -> None:
        """After some of the zeros, of which none stay."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        real, written, lengths = os.pwrite, [], []

        def write(handle: int, data: bytes, at: int) -> int:
            if written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(real(handle, data[:1000], at))
            lengths.append(lambda: os.fstat(handle).st_size)
            return written[0]

        monkeypatch.setattr(os, "pwrite", write)
        file = OffloadFile()
        with pytest.raises(MemoryBudgetError, match=re.escape(os.strerror(errno.ENOSPC))):
            file.lend(2**21)
        assert lengths[0]() == 0
        monkeypatch.setattr(os, "pwrite", real)
        file.lend(2**21).fill_(1)
        file.close()


def test_a_file_that_cannot_be_mapped_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match="cannot be mapped") as caught:
        OffloadFile().lend(2**20)
    assert not isinstance(caught.value, MemoryBudgetError)
    gc.collect()


@pytest.mark.parametrize("kernels", ["direct", "winograd"])
@pytest.mark.parametrize("share", [None, 0.7])
def test_idle_memory_is_gone_before_fresh_memory_is_made(
    vae: AutoencoderKL, kernels: Any, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans count on it: nothing of the last pass may keep a map that the next one has no room beside."""
    dropped, drop = [], MapStore._drop_idle

    def watched(store: MapStore) -> None:
        idle = [each for buffers in store._idle.values() for each in buffers if each.lot.place != "disk"]
        storages = [StorageWeakRef(each.data.untyped_storage()) for each in idle]
        del idle
        drop(store)
        dropped.extend(storage.expired() for storage in storages)

    monkeypatch.setattr(MapStore, "_drop_idle", watched)
    z = latent(1, 48, 40)
    with vae_core.kernels(kernels):
        budget = None if share is None else int(share * vae_core.plan_decode(vae, z.shape).peak_bytes)
        vae_core.decode(vae, z, memory_budget=budget)
    assert dropped and all(dropped)


# Where maps are.

KIB = 2**10


@pytest.mark.parametrize(
    "limit, cpu_limit, places",
    [
        (None, 0, {"device": 64 * KIB, "cpu": 0, "disk": 0}),
        (64 * KIB, 0, {"device": 64 * KIB, "cpu": 0, "disk": 0}),
        (64 * KIB - 1, 64 * KIB, {"device": 0, "cpu": 64 * KIB, "disk": 0}),
        (64 * KIB - 1, 64 * KIB - 1, {"device": 0, "cpu": 0, "disk": 64 * KIB}),
    ],
)
def test_maps_of_an_accelerator(limit: int | None, cpu_limit: int, places: dict[str, int]) -> None:
    store = MapStore(torch.device("meta"), limit, cpu_limit)
    lent = store.allocate((1, 16, 32, 32), torch.float32)
    assert store.used == store.peak == places
    assert lent.devices == {"meta" if places["device"] else "cpu"}
    assert [data.numel() for data in store.lent] == [64 * KIB]
    store.release(lent)
    assert store.used == places and not store.lent, "idle memory is in use"
    store.drop_free()
    assert store.used == dict.fromkeys(places, 0) and store.peak == places


def test_idle_parts_of_the_file_serve_maps_of_any_size() -> None:
    """What has been on disk makes room there for what is smaller and larger, so that the file stays as planned."""
    store = MapStore(CPU, limit=0, disk_bytes=272 * KIB)
    kept = store.allocate((1, 4, 32, 32), torch.float32)
    file = store._file._file
    for rows in (64, 8, 48, 16, 64):
        store.release(store.allocate((1, rows, 32, 32), torch.float32))
        store.drop_free()
        assert store.used["disk"] == 16 * KIB
        assert store._file._file is file and len(store._file._extents) == 1
    assert store.peak["disk"] == 272 * KIB
    store.release(kept)
    store.drop_free()
    assert store._file._file is None
