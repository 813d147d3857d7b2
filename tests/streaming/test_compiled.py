"""What numba keeps on disk serves everybody who loads this package, and whatever happens to it, a decode works."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vae_core.streaming import numba_functions
from vae_core.temporaries import PREFIX, SUFFIX

numba = pytest.importorskip("numba")
ROOT = Path(__file__).resolve().parents[2]

DECODE = """
import importlib.util, sys
name, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
package = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
import torch
from importlib import import_module
vae = package.AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1).eval()
z = torch.randn(1, 4, 12, 12)
with torch.no_grad(), package.kernels("winograd"):
    assert (package.decode(vae, z) - vae.decode_reference(z)).abs().max() < 1e-4
jit = import_module(name + ".streaming.winograd").jit()
functions = [jit.convolve, jit.upsample]
print(sum(sum(each.stats.cache_hits.values()) for each in functions), sum(len(each.signatures) for each in functions))
"""


@pytest.mark.slow  # all functions are compiled; the next tests have each kind of damage for one that compiles at once
def test_compiled_code_is_found_under_another_name_and_mended_where_it_is_damaged(tmp_path: Path) -> None:
    package, cache = tmp_path / "vae_core", tmp_path / "cache"
    shutil.copytree(ROOT / "vae_core", package, ignore=shutil.ignore_patterns("__pycache__", "demo"))

    def decode(name: str) -> tuple[str, int]:
        """Functions found on disk and functions used, and how many warnings were given."""
        done = subprocess.run(
            [sys.executable, "-c", DECODE, name, str(package)],
            capture_output=True,
            text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip(), done.stderr.count("Its functions are compiled again")

    assert decode("custom_nodes/pack 1") == ("0 2", 0)
    (file,) = cache.glob("*/*upsample-*")
    file.write_bytes(file.read_bytes()[:-1000])
    assert decode("vae_core") == ("1 2", 1)
    assert decode("vae_core") == ("2 2", 0)


# The same for a function that compiles at once, and every kind of damage.

SOURCE = """
import numba
NUMBER = {number}
@numba.njit(error_model="numpy")
def add(x):
    return x + NUMBER
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A maker of the compiled function, as a new process would find it: `add(number)`."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    numba_functions.cache_failure.reset()
    file = tmp_path / "seamless_vae_test_add.py"
    loaded: list[str] = []

    def load(number: int = 1) -> Any:
        file.write_text(SOURCE.format(number=number))
        name = file.stem
        sys.modules.pop(name, None)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
        sys.modules[name] = module
        loaded.append(name)
        numba_functions.keep_on_disk(module.add, file.read_bytes())
        return module.add

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("cache/*/*add*")
    return file


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def cut(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "cut in its head": lambda whole: whole[:40],
    "one byte missing": lambda whole: whole[:-1],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "a bit of code flipped": lambda whole: whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:],
    "a bit of the pickle flipped": lambda whole: whole[:64] + bytes([whole[64] ^ 1]) + whole[65:],
    "longer": lambda whole: whole + b"more",
    "something else": lambda whole: b"<!DOCTYPE html>" * 30,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_anew_and_replaced(damage: str, add: Any, tmp_path: Path, caplog) -> None:
    assert add()(1) == 2
    file = only_file(tmp_path)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        function = add()
        assert function(1) == 2 and hits(function) == 0
    assert len(caplog.records) <= 1  # of a file that seems to be of another version there is nothing to say
    function = add()
    assert function(1) == 2 and hits(function) == 1


def test_another_number_in_the_source_is_another_function(add: Any) -> None:
    """numba looks at the date of the file, at its size before 0.66, and at the code without its globals."""
    assert add(1)(1) == 2
    assert add(2)(1) == 3
    function = add(2)
    assert function(1) == 3 and hits(function) == 1


def refuse(number: int) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO], ids=os.strerror)
def test_a_disk_that_takes_nothing_gives_one_warning(
    number: int, add: Any, tmp_path: Path, monkeypatch, caplog
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "seamless_vae"):
        patch.setattr(os, "fsync", refuse(number))
        for argument in (1, 1.0, 1j):  # three functions to be kept
            assert add()(argument) == 1 + argument
    (record,) = caplog.records
    assert "NUMBA_CACHE_DIR" in record.getMessage() and os.strerror(number) in record.getMessage()
    assert not list(tmp_path.glob("cache/*/*"))


def test_what_a_kill_has_left_is_removed_and_no_link_is_followed(add: Any, tmp_path: Path) -> None:
    assert add()(1) == 2
    file = only_file(tmp_path)
    whole, left, other = file.read_bytes(), file.with_name(f"{PREFIX}0123456789abcdef{SUFFIX}"), tmp_path / "other"
    left.write_bytes(whole[:100])
    other.write_bytes(b"the user's own")
    file.unlink()
    file.symlink_to(other)
    assert add()(1) == 2
    assert other.read_bytes() == b"the user's own"
    assert only_file(tmp_path) == file and not file.is_symlink() and file.read_bytes()[:32] == whole[:32]
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_cannot_be_read_gives_one_warning(add: Any, monkeypatch, caplog) -> None:
    assert add()(1) == 2
    function = add()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "seamless_vae"):
        patch.setattr(Path, "read_bytes", refuse(errno.EIO))
        assert function(1) == 2
    assert len(caplog.records) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_became_read_only(add: Any, tmp_path: Path, caplog) -> None:
    function = add()
    (folder,) = (tmp_path / "cache").iterdir()
    folder.chmod(0o500)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        assert function(1) == 2
    folder.chmod(0o700)
    assert len(caplog.records) == 1


def test_no_folder_at_all(add: Any, monkeypatch, caplog) -> None:
    """numba raises where neither NUMBA_CACHE_DIR, nor the function's folder, nor the user's can be written."""
    monkeypatch.setattr("numba.core.caching._CacheLocator.ensure_cache_path", refuse(errno.EROFS))
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        assert add()(1) == 2
    (record,) = caplog.records
    assert "cannot cache compiled functions" in record.getMessage()


def test_two_versions_in_one_process_do_not_share_their_functions(tmp_path: Path) -> None:
    """A host may have this package twice: cloned as a pack and installed by pip."""
    modules = []
    for number in (1, 2, 1):
        folder = tmp_path / f"copy{len(modules)}" / "jit"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("from .parts import NUMBER\n__all__ = ['NUMBER']\n")
        (folder / "parts.py").write_text(f"NUMBER = {number}\n")
        modules.append(numba_functions.load_compiled(folder))
    assert [module.NUMBER for module in modules if module] == [1, 2, 1]
    assert modules[0] is modules[2]


# numba itself.

BROKEN = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numba":
            raise {error}
sys.meta_path.insert(0, Finder())
from vae_core.streaming import winograd
print(winograd.compiled())
"""


@pytest.mark.parametrize(
    ("error", "warnings"),
    [
        ('ModuleNotFoundError("No module named numba", name="numba")', 0),
        ('ImportError("Numba needs NumPy 2.4 or less. Got NumPy 3.0.")', 1),
        ('OSError("Could not find/load shared object file libllvmlite.so")', 1),
        ("AttributeError(\"module 'numpy' has no attribute 'long'\")", 1),
    ],
    ids=["missing", "another numpy", "no library", "too old"],
)
@pytest.mark.thorough
def test_without_a_numba_that_works_torch_is_used(error: str, warnings: int) -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN.format(error=error)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "False"
    assert done.stderr.count("numba cannot be used") == warnings


NO_DESCRIPTOR = """
import os, resource, torch, vae_core
from given.inputs import latent
from given.models import SMALL, make

vae, z = make(SMALL), latent(1, 16, 16, model=make(SMALL))
wanted = vae.decode_reference(z)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.dup(0)
except OSError:
    found = vae_core.decode(vae, z)
print((found - wanted).abs().max().item() < 1e-4)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.thorough
def test_without_a_file_that_can_be_opened_torch_is_used() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, "-c", NO_DESCRIPTOR], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr[-2000:]
    assert "Too many open files" in done.stderr and "ulimit -n" in done.stderr


@pytest.mark.parametrize(
    ("begun", "free", "refused"),
    [(False, 2**29 - 1, True), (False, 2**29, False), (True, 2**27, True), (True, 2**28, False), (False, None, False)],
)
def test_without_room_nothing_is_compiled(
    begun: bool, free: int | None, refused: bool, add: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that come with the first function wait for ever without memory, and the compiler ends the process."""
    monkeypatch.setattr(numba_functions, "free_within_own", lambda: free)
    monkeypatch.setattr(numba_functions, "_begun", begun)
    function = add()
    if refused:
        with pytest.raises(MemoryError, match="too little for a compiled function"):
            function(1)
        monkeypatch.setattr(numba_functions, "free_within_own", lambda: None)
    assert function(1) == 2 and numba_functions._begun


@pytest.mark.parametrize(("free", "there"), [(2**29 - 1, False), (2**29, True), (None, True)])
def test_without_room_numba_is_not_used(
    free: int | None, there: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba_functions, "free_within_own", lambda: free)
    assert (numba_functions.jit.__wrapped__() is not None) is there
    assert ("too little for numba" in caplog.text) is not there


WITHOUT_THREADS = """
import ctypes, os, resource, sys
import numba
from vae_core.streaming import numba_functions

os.environ.update({before})
before = dict(os.environ)

@numba.njit
def add(x):
    return x + 1

numba_functions.keep_on_disk(add, b"")
if os.geteuid() == 0:  # the limit is not for root, whose files are read all the same
    os.setresuid(65534, 65534, 0)
    ctypes.CDLL(None).setfsuid(0)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
assert add(1) == 2 and dict(os.environ) == before
print("the same")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("before", [{}, {"OPENBLAS_NUM_THREADS": "4"}], ids=["plain", "a number given"])
@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.thorough
def test_libraries_of_numba_without_threads(on_disk: bool, before: dict[str, str], tmp_path: Path) -> None:
    """OpenBLAS would interrupt the process, as Ctrl-C does."""
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_THREADS.format(before=before), encoding="utf-8")
    how = [str(script)] if on_disk else ["-c", script.read_text(encoding="utf-8")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    environment.pop("OPENBLAS_NUM_THREADS", None)
    done = subprocess.run([sys.executable, *how], capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]


PLAIN = """
import torch
from given.inputs import latent
from given.models import SMALL, make
import vae_core
vae, z = make(SMALL), latent(1, 24)
with vae_core.kernels("reference"):
    wanted = vae_core.decode(vae, z)
assert (vae_core.decode(vae, z) - wanted).abs().max() < 1e-5
print("the same")
"""


def test_numba_that_compiles_nothing() -> None:
    """As debuggers and measurements of coverage have it."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", PLAIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout == "the same\n", done.stderr[-2000:]
    assert done.stderr.count("NUMBA_DISABLE_JIT is set, so nothing is compiled") == 1
