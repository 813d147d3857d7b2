"""Any file of tensors, whatever its name says it is: recognised by its first bytes, and opened by its reader."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from torch import Tensor

from ..errors import CheckpointError, in_one_line
from ..regular_files import open_regular
from .generation import check_one_save
from .json_file import json_object
from .nested import MAX_NAME
from .pickled import open_pickle
from .safetensors_file import open_safetensors
from .tensor_file import Kept, TensorFile, TensorInfo

MAX_INDEX_BYTES = 25_000_000
MAX_SHARDS = 1_000  # of a checkpoint; the largest ones have some hundred
MAX_NAMES = 4_000_000  # characters of all names together; real ones have a tenth
ZIP_START = b"PK\x03\x04"

# First bytes of other formats -> what they are and what to do.
GET_SAFETENSORS = "Get the VAE as safetensors."
FORMATS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the weights. Run `git lfs pull` in its repository.",
    b"GGUF": f"is a GGUF file, whose weights are quantised. {GET_SAFETENSORS}",
    b"\x89HDF": f"is an HDF5 (Keras) file. {GET_SAFETENSORS}",
    b"ftrt": f"is a TensorRT engine, which runs on one kind of GPU alone. {GET_SAFETENSORS}",
    b"\x7fELF": f"is a compiled library, not weights. {GET_SAFETENSORS}",
    b"7767517": f"is a model of ncnn. {GET_SAFETENSORS}",
    b"lmgg": f"is a GGML file, whose weights are quantised. {GET_SAFETENSORS}",
    b"tjgg": f"is a GGML file, whose weights are quantised. {GET_SAFETENSORS}",
    b"\x89PNG": "is a PNG image, not weights. Give the file of a VAE.",
    b"\xff\xd8\xff": "is a JPEG image, not weights. Give the file of a VAE.",
    b"\x93NUMPY": f"is a NumPy array, not a file of named weights. {GET_SAFETENSORS}",
    b"\x1f\x8b": "is compressed (gzip). Unpack it first.",
    b"7z\xbc\xaf": "is compressed (7-Zip). Unpack it first.",
    b"Rar!": "is compressed (RAR). Unpack it first.",
    b"\xfd7zXZ": "is compressed (xz). Unpack it first.",
    b"(\xb5/\xfd": "is compressed (Zstandard). Unpack it first.",
}


# Messages of protobuf. ONNX: its version, then the name of who made it, or the graph. Core ML: its version, then a
# description that begins with an input.
_ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12.[\x20-\x7e]{2}|\x3a[\x80-\xff])", re.DOTALL)
_CORE_ML = re.compile(rb"\x08[\x01-\x20]\x12[\x80-\xff]*[\x00-\x7f]\x0a", re.DOTALL)


def open_tensor_file(path: Path, unnamed: str | None = None) -> TensorFile:
    """List the tensors of a file, or of an index of shards, without reading them.

    Args:
        unnamed: see `open_pickle`.

    Raises:
        CheckpointError: not a checkpoint, or a damaged one.
        UnsafeCheckpointError: a pickle that asks for code to be run.
    """
    check_link(path)
    try:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist. Check the path.")
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file. Give the file of a VAE, or use load_vae for a folder.")
        source = open_shards(path) if path.suffix == ".json" else _open_one(path, unnamed)
        _check_names(source)
        return source
    except (OSError, ValueError) as error:  # a name that the system cannot have is a ValueError
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {in_one_line(error)}. Check the path and its permissions."
        ) from None


def _check_names(source: TensorFile) -> None:
    """Raise CheckpointError for names longer than those of any model: to look for patterns in them takes minutes."""
    longest = max(source.tensors, key=len, default="")
    if len(longest) > MAX_NAME or sum(map(len, source.tensors)) > MAX_NAMES:
        raise CheckpointError(
            f"{source.path.name} has names of up to {len(longest)} characters, {sum(map(len, source.tensors))} in all; "
            f"a file of weights has up to {MAX_NAME} and {MAX_NAMES}. Get another copy."
        )


def check_link(path: Path) -> None:
    """Raise CheckpointError if a path is a link to something that is not there, as in a damaged cache of the Hub."""
    try:
        broken = path.is_symlink() and not path.exists()
    except (OSError, ValueError):  # said when it is opened
        return
    if broken:
        raise CheckpointError(f"{path} is a link to {path.readlink()}, which is not there. Download it again.")


def _open_one(path: Path, unnamed: str | None = None) -> TensorFile:
    with open_regular(path) as file:
        start = file.read(512)
    complaint = _not_a_checkpoint(start)
    if complaint:
        raise CheckpointError(f"{path.name} {complaint}")
    if start[:4] == ZIP_START:
        return open_pickle(path, unnamed)
    if start[8:9] == b"{":
        return open_safetensors(path)
    if start[:1] == b"\x80":
        return open_pickle(path, unnamed)
    if start.lstrip()[:1] == b"{":
        raise CheckpointError(f"{path.name} is JSON text, not weights. Give the weights, or their folder.")
    raise CheckpointError(
        f"{path.name} is neither safetensors nor a torch file (it starts with {start[:8].hex(' ')}). "
        f"Download it again, or convert it to safetensors."
    )


def _not_a_checkpoint(start: bytes) -> str | None:
    """What a file is whose first bytes are those of a well-known other format."""
    text = start.lstrip()[:64].lower()
    if text.startswith(b"<?xml") and b"<net " in start:
        return f"is a model of OpenVINO. {GET_SAFETENSORS}"
    if start[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model. {GET_SAFETENSORS}"
    if start[4:8] in (b"ET12", b"ET13"):
        return f"is an ExecuTorch program. {GET_SAFETENSORS}"
    if _ONNX.match(start):
        return f"is an ONNX model (a program with its weights). {GET_SAFETENSORS}"
    if _CORE_ML.match(start):
        return f"is a Core ML model. {GET_SAFETENSORS}"
    if not start:
        return "is empty (0 bytes). Download or copy it again."
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the download was answered with an error or login page. Download it again."
    for magic, what in FORMATS.items():
        if start.startswith(magic):
            return what
    if start[257:262] == b"ustar":
        return f"is a tar archive, as torch wrote before version 0.2. {GET_SAFETENSORS}"
    if 0x81 <= start[0] <= 0x8F and b"kernel" in start:
        return "has Flax weights (msgpack). Save it once with PyTorch weights."
    if start.rstrip(b"\0") == b"":
        return "has nothing but zeros at its beginning: a download or copy that was cut off. Download it again."
    if len(start) < 10:
        return f"has {len(start)} bytes, too few for a checkpoint. Download or copy it again."
    return None


def open_shards(index: Path) -> TensorFile:
    """List the tensors of a sharded checkpoint from its index (`*.index.json`).

    Raises:
        CheckpointError: the index is broken, or a shard is missing, lacks a tensor, or is not a file of tensors.
    """
    names = weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    values: dict[str, Tensor | Kept] = {}
    container = "safetensors"
    metadata = {}
    for file_name in sorted(set(names.values())):
        path = index.parent / file_name
        check_link(path)
        if not path.is_file():
            raise CheckpointError(f"{index.name} names {file_name[:80]}, which is not there. Download all shards.")
        if path.suffix == ".json":
            raise CheckpointError(
                f"{index.name} names {file_name[:80]}, which is not a file of weights. Do not trust it."
            )
        shard = _open_one(path)
        container = shard.container
        check_one_save(index, metadata, path, shard.metadata)
        metadata = {**metadata, **shard.metadata}
        for name, info in shard.tensors.items():
            if name in tensors and names.get(name) != file_name:
                continue  # the map says which of the two it is
            tensors[name] = info
            files[name] = path
        values.update(shard.values)
    absent = sorted(set(names) - set(tensors))
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise CheckpointError(f"{index.name} promises {absent[0][:80]}{more}, which no shard has. Download all shards.")
    return TensorFile(index, container, tensors, files, metadata, values)


def weight_map(index: Path) -> dict[str, str]:
    """Name of a weight -> path of its file below the index's folder, of an index of shards.

    Raises:
        CheckpointError: it is not one, or names a file that is elsewhere.
    """
    try:
        names = json_object(index, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError("it has no `weight_map` from weights to files")
        if not all(isinstance(file, str) for file in names.values()):
            raise ValueError("the name of a file is not text")
    except ValueError as error:
        raise CheckpointError(
            f"{index.name} is not an index of shards: {in_one_line(error)}. Give the folder of a model, or get "
            f"the index again."
        ) from None
    files = set(names.values())
    if len(files) > MAX_SHARDS:
        raise CheckpointError(
            f"{index.name} names {len(files)} files; a checkpoint has at most {MAX_SHARDS}. Get another copy."
        )
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.name or re.search(r"[\\:\0]", file):
            raise CheckpointError(f"{index.name} names {file[:80]!r}, which is outside of its folder. Do not trust it.")
    return {name: str(PurePosixPath(file)) for name, file in names.items()}
