"""Torch's pickled checkpoints (.pt, .ckpt, .bin, .pth), listed without running anything that they name.

There are two forms: a zip archive with one pickle and an entry for each block of numbers, and the one before torch 1.6,
several pickles in a row and the blocks behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsafeCheckpointError, in_one_line
from ..regular_files import open_regular
from .allowed import STATE_DICT_METADATA
from .generation import SAVE_KEY
from .machine import Machine, time_limit
from .nested import AnyTensor, Found, find_tensors
from .rebuild import InlineTensor, StoredTensor, UnreadTensor
from .tensor_file import TensorFile, TensorInfo
from .unpickler import load
from .zip_file import Entry, ZipError, check_entry, list_entries, read_entry

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first number of files that torch wrote before 1.6
LEGACY_PROTOCOL = 1001
BYTE_ORDERS = (b"little", b"big")
MAX_PROGRAM = 1 << 30  # bytes of an archive's pickle; only arrays in it make it longer than a few megabytes

Places = dict[str, tuple[int, int]]  # storage key -> first byte in the file, number of bytes


def open_pickle(path: Path, unnamed: str | None = None) -> TensorFile:
    """List the tensors of a pickled checkpoint, old or new format, from its structure; no numbers are read.

    Args:
        unnamed: what to call a tensor that is the whole content of a file; of a list of tensors, `unnamed.0` and so on.
            None for a file that must have names.

    Raises:
        UnsafeCheckpointError: it names, calls or changes something that files of weights do not.
        CheckpointError: it is damaged, or not a checkpoint.
    """
    try:
        with open_regular(path) as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        content, places = _open_zip(path) if is_zip else _open_legacy(path)
        found = _tensors_of(content if unnamed is None else _named(content, unnamed), path.name)
        values = {name: each for name, each in found.tensors.items() if isinstance(each, InlineTensor | UnreadTensor)}
        infos = {name: _info(tensor, places) for name, tensor in found.tensors.items()}
    except CheckpointError:
        raise
    except ZipError as error:
        raise CheckpointError(
            f"{path.name} is not a zip archive as torch writes them: {in_one_line(error)}. It is damaged, or "
            f"made to be read in two ways. Download it again, or get the weights as safetensors."
        ) from None
    except Exception as error:  # whatever malformed bytes may raise in the unpickler
        raise CheckpointError(
            f"{path.name} cannot be read as a torch file ({type(error).__name__}: {in_one_line(error)}): it is "
            f"truncated or damaged. Download or copy it again."
        ) from None
    size = path.stat().st_size
    if any(start + count > size for start, count in places.values()):
        raise CheckpointError(f"{path.name} ends before its last tensor: it is truncated. Download or copy it again.")
    files = dict.fromkeys((name for name in infos if name not in values), path)
    return TensorFile(path, "pickle", infos, files, _metadata(content), values, remarks=found.remarks)


def _metadata(content: Any) -> dict[str, str]:
    """Which save a shard is of, if `write.pickled` has said it."""
    found = getattr(content, STATE_DICT_METADATA, None)
    of_all = found.get("") if isinstance(found, dict) else None
    save = of_all.get(SAVE_KEY) if isinstance(of_all, dict) else None
    return {SAVE_KEY: save} if isinstance(save, str) else {}


def _open_zip(path: Path) -> tuple[Any, Places]:
    entries = list_entries(path)
    programs = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(programs) != 1:
        what = "a NumPy archive" if any(name.endswith(".npy") for name in entries) else "a zip archive"
        raise CheckpointError(
            f"{path.name} is {what}, but not a torch file ({len(programs)} data.pkl in it). "
            f"If weights are packed in it, unpack it first."
        )
    root = programs[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise CheckpointError(f"{path.name} is a TorchScript program, not weights. Get the weights alone.")
    program = entries[programs[0]]
    order = entries.get(f"{root}byteorder")
    for entry in (program, *([order] if order else [])):
        _check_stored(entry, path)
    with open_regular(path) as file:
        if order is not None:
            if order.size > max(map(len, BYTE_ORDERS)) or (said := read_entry(file, order)) not in BYTE_ORDERS:
                raise ZipError("its byteorder is neither little nor big")
            if said == b"big":
                raise CheckpointError(f"{path.name} was written on a big-endian machine. Save it as safetensors there.")
        if program.size > MAX_PROGRAM:
            raise ZipError(f"its data.pkl has {program.size} bytes; at most {MAX_PROGRAM} are allowed")
        check_entry(file, program)
        file.seek(program.start)
        content, machine = load(file, program.size, path.name, time_limit())
    _check_end(machine, path)
    places = {}
    for key, storage in machine.storages.items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise CheckpointError(
                f"{path.name} lacks the data of a tensor ({f'{root}data/{key}'[:80]}). Download it again."
            )
        _check_stored(entry, path)
        places[key] = (entry.start, storage.numel * storage.dtype.itemsize)
        if places[key][1] > entry.size:
            raise ValueError(f"storage {key[:40]} has {entry.size} bytes for {storage.numel} numbers")
    return content, places


def _check_stored(entry: Entry, path: Path) -> None:
    if not entry.is_stored:
        raise CheckpointError(
            f"{path.name} is compressed ({entry.name[:80]}), as torch never does. Save it as safetensors, or unpack it "
            f"and pack it without compression."
        )


def _check_end(machine: Machine, path: Path) -> None:
    if machine.left:
        raise UnsafeCheckpointError(
            f"{path.name} has {machine.left} bytes after the end of its structure, where a second one may hide. "
            f"Nothing was run. Do not trust it; get the weights as safetensors."
        )


def _open_legacy(path: Path) -> tuple[Any, Places]:
    """The form before torch 1.6: four pickles and a list of storage keys, then each storage after its length."""
    size = path.stat().st_size
    until = time_limit()
    with open_regular(path) as file:

        def following() -> tuple[Any, Machine]:
            return load(file, size - file.tell(), path.name, until)

        if following()[0] != LEGACY_MAGIC:
            raise CheckpointError(f"{path.name} is a pickle, but not a torch file. Get the weights as safetensors.")
        if following()[0] != LEGACY_PROTOCOL:
            raise CheckpointError(f"{path.name} is a torch file of an unknown version. Save it as safetensors.")
        system, _ = following()
        if isinstance(system, Mapping) and system.get("little_endian") is False:
            raise CheckpointError(f"{path.name} was written on a big-endian machine. Save it as safetensors there.")
        content, machine = following()
        keys, _ = following()
        if type(keys) is not list or sorted(map(str, keys)) != sorted(machine.storages):
            raise ValueError("its list of storages does not match its tensors")
        places = {}
        for key in map(str, keys):
            storage = machine.storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != storage.numel:
                raise ValueError(f"storage {key[:40]} has {count} numbers instead of {storage.numel}")
            places[key] = (file.tell(), count * storage.dtype.itemsize)
            file.seek(places[key][1], 1)
        if file.tell() < size:
            raise ValueError(f"{size - file.tell()} bytes follow the last storage")
    return content, places


def _named(content: Any, name: str) -> Any:
    if isinstance(content, StoredTensor | InlineTensor | UnreadTensor):
        return {name: content}
    if isinstance(content, list | tuple) and content:
        return {f"{name}.{i}": each for i, each in enumerate(content)}
    return content


def _tensors_of(content: Any, file_name: str) -> Found:
    if isinstance(content, StoredTensor | InlineTensor | UnreadTensor):
        raise CheckpointError(f"{file_name} is a single tensor, not a state dict. Save the state dict of a model.")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file_name} is a {type(content).__name__}, not a state dict. Save the state dict.")
    return find_tensors(content)


def _info(tensor: AnyTensor, places: Places) -> TensorInfo:
    if isinstance(tensor, InlineTensor | UnreadTensor):
        return TensorInfo(tensor.dtype, tensor.shape, 0)
    assert isinstance(tensor, StoredTensor)
    start, size = places[tensor.storage.key]
    info = TensorInfo(tensor.dtype, tensor.shape, start + tensor.offset * tensor.dtype.itemsize, tensor.stride)
    if info.start + info.size > start + size:
        raise ValueError(f"a tensor of shape {tensor.shape} reaches beyond the end of its storage")
    return info
