"""Compiled functions of numba (0.60 to 0.68), and what is kept of them on disk.

What is used of it that it does not promise to keep, to look at when upgrading it:

`numba.core.caching.FunctionCache` with its `_impl` (`locator`, `filename_base`, `reduce`, `rebuild`,
`check_cachable`), `_index_key` and `_cache_file`, `Dispatcher._cache`, and `numba.core.serialize.dumps`: see
`keep_on_disk`. Where one is missing, functions are compiled in every process, with a warning.

`numba.extending.intrinsic` and `overload`, `numba.core.cgutils` and `types`, `llvmlite.ir`: the whole of
`winograd_jit/lanes.py`, and the loop of `winograd_jit/multiply.py`. What to look at: pointers to typed vectors
(`as_pointer`), instructions' `flags` and `align`, and the names of LLVM's intrinsics (`llvm.rint.v16f32`). Where
something is missing the import fails, and the transforms in torch operations run, with a warning.

`numba.core.registry.cpu_target` with `magic_tuple`: the features of the processor that is compiled for, which is not
always this one. `builder.asm` and `llvmlite.binding.initialize_native_asmparser`: instructions for bfloat16, which
LLVM ends the process for where the processor that is compiled for has none.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.util
import logging
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import write_file
from ..errors import in_one_line
from ..units import MIB
from .limits import free_within_own
from .once import WarnOnce

logger = logging.getLogger("seamless_vae")

_loading = threading.Lock()
# Address space for numba, the libraries that it loads with its first function, and the compiler. With less of it some
# of them end the process, or wait for ever: OpenBLAS, LLVM.
_ROOM = 512 * MIB
_ROOM_FOR_MORE = 192 * MIB  # once they are there
_NOT_COMPILING = "NUMBA_DISABLE_JIT is set, so nothing is compiled"
_THREADS_OF_OPENBLAS = "OPENBLAS_NUM_THREADS"
_begun = False  # whether a function was loaded or compiled, and with it those libraries


KINDS = {torch.float32: np.dtype(np.float32), torch.bfloat16: np.dtype(np.uint16)}
"""As what compiled functions take numbers of a type: those of bfloat16 are the upper halves of float32."""


def as_array(numbers: Tensor) -> np.ndarray:
    """A tensor of one of these types on the CPU, as compiled functions take it."""
    return numbers.numpy() if numbers.dtype == torch.float32 else numbers.view(torch.int16).numpy().view(np.uint16)


@functools.cache
def jit() -> Any:
    """The compiled functions, `winograd_jit`; None without numba, or without room for it."""
    free = free_within_own()
    if free is not None and free < _ROOM:
        logger.warning(
            "this process may take only %d MiB more, too little for numba, so convolutions take about twice as long. "
            "Raise its limit of memory (ulimit -v, ulimit -d) to %d MiB more than it has now.",
            free // MIB,
            _ROOM // MIB,
        )
        return None
    return load_compiled(Path(__file__).with_name("winograd_jit"))


def load_compiled(folder: Path) -> ModuleType | None:
    """The package of compiled functions in a folder; None where numba cannot be used.

    Its name follows from its sources alone. numba's files on disk contain it, and what was compiled under a name that
    a host chose could not be loaded under another; and two versions of this package in one process must not share it.
    """
    with _loading:
        before = set(sys.modules)
        name = None
        try:
            sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
            name = f"seamless_vae_{folder.name}_{hashlib.sha256(sources).hexdigest()[:12]}"
            if name in sys.modules:
                return sys.modules[name]
            location = folder / "__init__.py"
            spec = importlib.util.spec_from_file_location(name, location, submodule_search_locations=[str(folder)])
            assert spec is not None and spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            if sys.modules["numba"].config.DISABLE_JIT:
                raise RuntimeError(_NOT_COMPILING)
        except Exception as error:  # a numba that is too new, too old or broken has many
            for each in set(sys.modules) - before:
                if name is not None and (each == name or each.startswith(f"{name}.")):
                    del sys.modules[each]
            if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
                logger.warning(
                    "numba cannot be used (%s: %s), so convolutions take about twice as long. %s",
                    type(error).__name__,
                    in_one_line(error),
                    _remedy(error),
                )
            return None
        for each in map(module.__dict__.get, module.__all__):
            if hasattr(each, "py_func"):
                keep_on_disk(each, sources)
        return module


def _remedy(error: Exception) -> str:
    """What helps where numba cannot be used."""
    if any(os.strerror(number) in str(error) for number in (errno.EMFILE, errno.ENFILE)):
        return "Raise the limit of open files (ulimit -n), and start again."
    if str(error) == _NOT_COMPILING:
        return "Start again without it."
    if isinstance(error, OSError) and error.errno is not None:
        return "Start again when its files can be read."
    return "Install another version of it: pip install --upgrade numba"


def keep_on_disk(function: Any, sources: bytes) -> None:
    """Let numba keep on disk what it compiles of a function, as its option `cache=True` does, but safely.

    numba's own files are unpickled as they are: one that was cut short or damaged, or a disk without room for another,
    ends every call with an error. These have a digest, and whatever goes wrong with them is a warning; the function is
    then compiled in memory. The folder is numba's: NUMBA_CACHE_DIR, `__pycache__` beside the function, or the user's.

    Args:
        function: from `numba.njit`.
        sources: the code that it is compiled from. (numba looks at one file only.)
    """
    try:
        from numba.core.caching import FunctionCache

        files = FunctionCache(function.py_func)
        files._cache_file = _Files(Path(files.cache_path), files._impl.filename_base, sources)  # type: ignore[assignment]
        function._cache = _SafeCache(files)
    except Exception as error:  # RuntimeError where no folder can be written; others with another numba
        _warn_once("numba cannot cache compiled functions", error)
        if hasattr(function, "_cache"):
            function._cache = _SafeCache(function._cache)  # numba's own for no cache


@contextlib.contextmanager
def _as_many_threads_as_can_start() -> Iterator[None]:
    """While libraries of linear algebra are loaded, which numba does before its first function.

    OpenBLAS starts a thread for each processor then. Where it cannot, it interrupts the process as Ctrl-C does.
    """
    before = os.environ.get(_THREADS_OF_OPENBLAS)
    enough = _can_start(min(os.cpu_count() or 1, 64))
    if not enough:
        os.environ[_THREADS_OF_OPENBLAS] = "1"
    try:
        yield
    finally:
        if not enough:
            del os.environ[_THREADS_OF_OPENBLAS]
            os.environ.update({} if before is None else {_THREADS_OF_OPENBLAS: before})


def _can_start(count: int) -> bool:
    """Whether so many threads can be started now."""
    gate = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=gate.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        return False
    finally:
        gate.set()
        for thread in threads:
            thread.join()
    return True


class _SafeCache:
    """numba's interface of a cache: one that may fail to load or to save."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    @property
    def cache_path(self) -> str:
        return self._cache.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """A compiled function; None if it must be compiled. Raises MemoryError without room for either."""
        global _begun
        free = free_within_own()
        if free is not None and free < (_ROOM_FOR_MORE if _begun else _ROOM):
            raise MemoryError(f"this process may take only {free // MIB} MiB more, too little for a compiled function.")
        if not _begun:
            with _as_many_threads_as_can_start():
                target_context.refresh()
        _begun = True
        try:
            return self._cache.load_overload(sig, target_context)
        except Exception as error:
            _warn_once(f"numba cannot use a file of compiled functions in {self.cache_path}", error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._cache.save_overload(sig, data)
        except Exception as error:
            _warn_once(f"numba cannot cache compiled functions in {self.cache_path}", error)

    def enable(self) -> None:
        self._cache.enable()

    def disable(self) -> None:
        self._cache.disable()

    def flush(self) -> None:
        self._cache.flush()


class _Files:
    """numba's interface of a cache's files: one file for a function, its arguments' types and the processor.

    A file is the digest of what it was made from, that of its content, and the content, a pickle. A file that was made
    from other sources, or by another numba, is as good as none.
    """

    def __init__(self, folder: Path, stem: str, sources: bytes) -> None:
        import numba

        self._folder = folder
        self._stem = stem
        self._origin = hashlib.sha256(f"{numba.__version__} {sys.version}".encode() + sources).digest()

    def _path(self, key: tuple[Any, ...]) -> Path:
        """The key is the types of the arguments, the processor, and the function's code, which the digest is of too."""
        types_and_processor = hashlib.sha256(repr(key[:2]).encode()).hexdigest()[:16]
        return self._folder / f"{self._stem}.{types_and_processor}.compiled"

    def load(self, key: tuple[Any, ...]) -> Any:
        """What was saved; None for nothing.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._path(key)
        try:
            whole = path.read_bytes()
        except FileNotFoundError:
            return None
        origin = whole[:32]
        digest = whole[32:64]
        content = whole[64:]
        if len(whole) >= 64 and origin != self._origin:
            return None
        if digest != hashlib.sha256(content).digest():
            raise ValueError(f"{path.name} is damaged")
        return pickle.loads(content)

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        from numba.core.serialize import dumps

        content = dumps(data)
        path = self._path(key)
        if path.is_symlink():  # not of this package's making, and what it leads to is not to be written over
            path.unlink()
        write_file(path, lambda file: file.write(self._origin + hashlib.sha256(content).digest() + content))

    def flush(self) -> None:
        for path in self._folder.glob(f"{self._stem}.*.compiled"):
            path.unlink(missing_ok=True)


cache_failure = WarnOnce(logger)


def _warn_once(what: str, error: Exception) -> None:
    cache_failure(
        "%s (%s: %s). Its functions are compiled again, which takes about half a minute. If this comes back, free some "
        "disk space, or set NUMBA_CACHE_DIR to a writable folder.",
        what[0].upper() + what[1:],
        type(error).__name__,
        in_one_line(error),
    )
