"""Writing files whole or not at all: beside their place first, then renamed into it."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError

Writer = Callable[[Path], object]


def write_files(writers: Mapping[Path, Writer], release: Callable[[], None] | None = None) -> None:
    """Write several files, each by its function, and put them in their places in the order given.

    All are written under other names first, so that an exception leaves everything as it was.

    Args:
        release: called if a file cannot be replaced, to let go of a memory map of it. Windows keeps a file in its
            place as long as a model is mapped from it.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    try:
        for path, writer in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].touch()
            mode = (path if path.exists() else temporary[path]).stat().st_mode
            writer(temporary[path])
            temporary[path].chmod(stat.S_IMODE(mode))  # some releases of safetensors write for the owner alone
        for path in writers:
            _letting_go(partial(os.replace, temporary[path], path), release)
    except (OSError, SafetensorError, RuntimeError) as error:  # what open, save_file and torch.save raise
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"cannot write {', '.join(path.name for path in writers)} in {next(iter(writers)).parent}: {reason}. "
            f"Check the folder, its permissions and the free space."
        ) from error
    finally:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def remove_files(paths: Iterable[Path], release: Callable[[], None] | None = None) -> None:
    """Remove files. `release` as for `write_files`."""
    for path in paths:
        _letting_go(path.unlink, release)


def _letting_go(action: Callable[[], object], release: Callable[[], None] | None) -> None:
    try:
        action()
    except PermissionError:
        if release is None:
            raise
        release()
        gc.collect()
        action()


def write_safetensors(
    files: Mapping[Path, Mapping[str, Tensor]],
    metadata: Mapping[str, str],
    others: Mapping[Path, Writer] | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Write each file's tensors as safetensors, then the `others`. See `write_files`."""

    def writer(tensors: Mapping[str, Tensor]) -> Writer:
        return lambda path: save_file(_plain(tensors), path, metadata=dict(metadata))

    write_files({**{path: writer(tensors) for path, tensors in files.items()}, **(others or {})}, release)


def write_pickles(
    files: Mapping[Path, Mapping[str, Tensor]],
    others: Mapping[Path, Writer] | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Write each file's tensors with torch.save, then the `others`. See `write_files`."""

    def writer(tensors: Mapping[str, Tensor]) -> Writer:
        return lambda path: torch.save(_plain(tensors), path)

    write_files({**{path: writer(tensors) for path, tensors in files.items()}, **(others or {})}, release)


def write_text(text: str) -> Writer:
    """A writer of this text."""
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as files need them: on the CPU, row after row, no two in the same memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain
