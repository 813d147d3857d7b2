"""A save that the kernel kills at its n-th system call: the old model or the new one, and nothing of it stays."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from given.saves import SHARDS, assert_is_one_of, traces

from vae_core import AutoencoderKL, load_vae, save_single_file

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None or sys.platform != "linux", reason="needs strace (apt install strace)"
)
FSYNC = os.fsync  # tests of this folder do without, but here it is one of the calls
SET_TRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)  # of prctl: who may trace this process
CALLS = (
    *("openat", "write", "pwrite64", "rename", "renameat2", "fsync", "fdatasync", "ftruncate"),
    *("unlink", "unlinkat", "link", "mkdir", "rmdir", "chmod", "flock", "close"),
)
Save = Callable[[AutoencoderKL, Path], object]
SAVES: dict[str, tuple[Save, Save]] = {  # of the old model, of the new one
    "folder over folder": (lambda vae, path: vae.save_pretrained(path), lambda vae, path: vae.save_pretrained(path)),
    "shards over folder": (
        lambda vae, path: vae.save_pretrained(path),
        lambda vae, path: vae.save_pretrained(path, **SHARDS),
    ),
    "pickle over shards": (
        lambda vae, path: vae.save_pretrained(path, **SHARDS),
        lambda vae, path: vae.save_pretrained(path, safe_serialization=False),
    ),
    "file over file": (
        lambda vae, path: save_single_file(vae, path.with_suffix(".safetensors")),
        lambda vae, path: save_single_file(vae, path.with_suffix(".safetensors")),
    ),
}


def forked(action: Callable[[], object], ready: int) -> int:
    """A process that runs something once a byte comes; gives its id."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).prctl(SET_TRACER, ANY, 0, 0, 0)
            os.fsync = FSYNC
            os.read(ready, 1)
            action()
            code = 0
        os._exit(code)
    return child


def killed(call: str, n: int, action: Callable[[], object]) -> bool:
    """Run something in a process that is killed on entering its n-th system call of a kind; False if it has fewer."""
    ready, go = os.pipe()
    child = forked(action, ready)
    command = ["strace", "-f", "-o", os.devnull, "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:signal=KILL:when={n}", "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if "attached" not in said:
            os.kill(child, signal.SIGKILL)
        os.write(go, b"x")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(ready)
    os.close(go)
    if "attached" not in said:
        pytest.skip(f"strace may not trace here: {said.strip()}")
    assert code in (0, -signal.SIGKILL)
    return code != 0


def check_kills(kind: str, step: int, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    before, after = SAVES[kind]
    path = tmp_path / "models" / "vae"
    target = path.with_suffix(".safetensors") if kind == "file over file" else path
    count, seen = 0, set()
    before(old, path)
    for call in CALLS:
        n = 1
        while killed(call, n, partial(after, new, path)):
            assert_is_one_of(target, [old, new])
            seen.add(load_vae(target).config.scaling_factor)
            before(old, path)
            assert traces(tmp_path) == []
            assert_is_one_of(target, [old])
            n += step
            count += 1
        before(old, path)
    assert count > 30 // step
    if step == 1:
        assert seen == {0.5, 0.25}


def test_some_kills(old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    check_kills("shards over folder", 5, old, new, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAVES)
def test_every_kill(kind: str, old: AutoencoderKL, new: AutoencoderKL, tmp_path: Path) -> None:
    check_kills(kind, 1, old, new, tmp_path)
