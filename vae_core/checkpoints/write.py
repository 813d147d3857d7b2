"""Writing weights: safetensors and pickles, alone or as a folder of files that belong together."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..atomic import Writer, given_name, write_file, write_together
from ..errors import CheckpointError, in_one_line
from .allowed import STATE_DICT_METADATA
from .safetensors_file import DTYPES

DTYPE_NAMES = {dtype: name for name, (dtype, _) in DTYPES.items() if dtype is not None}
ALIGNMENT = 8  # of the data in a safetensors file


def write_whole(
    path: Path, writer: Writer, *, overwrite: bool = True, release: Callable[[], None] | None = None
) -> None:
    """Write one file whole, or leave what was there. Arguments as for `atomic.write_file`.

    Raises:
        CheckpointError: it cannot be written.
    """
    with as_sentences(path):
        write_file(path, writer, overwrite=overwrite, release=release)


def write_in_folder(folder: Path, writers: Mapping[str, Writer], **options: Any) -> None:
    """Write files into a folder, all of them or none. Options as for `atomic.write_together`.

    Raises:
        CheckpointError: they cannot be written.
    """
    with as_sentences(folder):
        write_together(folder, writers, **options)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path as a caller gave it. Raises CheckpointError if it is empty or has characters that no name has."""
    with as_sentences(path):
        return given_name(path)


@contextmanager
def as_sentences(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of writing to a path, as sentences.

    Raises:
        CheckpointError: instead of what open, write, rename and torch.save raise.
    """
    try:
        yield
    except CheckpointError:
        raise
    except FileExistsError as error:
        raise CheckpointError(
            f"{error.filename or path} exists already. Give another name, or ask for it to be overwritten."
        ) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        named = getattr(error, "filename", None)
        place = f" ({named})" if named and str(named) not in (str(path), repr(str(path))) else ""
        raise CheckpointError(
            f"cannot write {str(path)[:300]!r}: {in_one_line(error)}{place}. Check the name, the folder, its "
            f"permissions and the free space."
        ) from error


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Writer:
    """A writer of tensors in the safetensors format, one after the other, so that no second copy is made.

    Raises (when it writes):
        CheckpointError: a tensor of a type that the format lacks.
    """

    def write(file: BinaryIO) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
        start = 0
        for name in names:
            tensor = tensors[name]
            if tensor.dtype not in DTYPE_NAMES:
                raise CheckpointError(f"{name} is of {tensor.dtype}, which safetensors lacks. Convert it to float32.")
            end = start + tensor.nbytes
            shape = list(tensor.shape)
            header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
            start = end
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % ALIGNMENT)
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            tensor = tensors[name].detach().cpu().contiguous().reshape(-1)
            if tensor.numel():
                file.write(tensor.view(torch.uint8).numpy().data)

    return write


def pickled(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Writer:
    """A writer of tensors with torch.save, each row after row and without the rest of a larger storage.

    Args:
        metadata: kept where a module's state dict has its versions; None for a plain dictionary of tensors.
    """

    def write(file: BinaryIO) -> None:
        target = _Remembering(file)
        content = {name: _alone(tensor) for name, tensor in tensors.items()}
        if metadata:
            content = OrderedDict(content)
            content.__dict__[STATE_DICT_METADATA] = {"": dict(metadata)}
        try:
            torch.save(content, target)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise target.error or error from None

    return write


class _Remembering:
    """A file that remembers why writing failed, which torch.save's own error does not say."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self.flush = file.flush
        self._file = file

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def text(content: str) -> Writer:
    """A writer of this text."""
    return lambda file: file.write(content.encode())


def raw(content: bytes) -> Writer:
    """A writer of these bytes."""
    return lambda file: file.write(content)


def _alone(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
