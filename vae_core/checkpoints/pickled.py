"""Torch's pickled checkpoints (.pt, .ckpt, .bin, .pth), listed without running anything that they name.

A pickle is a program that may call whatever it names. Here it can name only: plain containers, the functions that
torch rebuilds tensors with (replaced by ones that note shape and position), and classes of training frameworks
(replaced by dummies that do nothing). Everything that `find_class` gives out is either immutable or made anew for
each file, so that no file can change what the next one meets. Any other name is refused, and told.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..errors import CheckpointError, UnsafeCheckpointError
from .tensor_file import TensorFile, TensorInfo

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first number of files that torch wrote before 1.6
LEGACY_PROTOCOL = 1001
MAX_PROGRAM_BYTES = 1 << 28  # of the pickle without its tensors; real ones have a few hundred kilobytes
WRAPPERS = ("state_dict", "model", "module")

# Names whose objects training scripts leave in a checkpoint. They become dummies: nothing of them is imported.
TRAINING_MODULES = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "torchmetrics",
    "omegaconf",
    "numpy",
    "argparse",
    "pathlib",
    "datetime",
    "uuid",
    "torch.optim",
)
CONTAINERS = {
    "collections.OrderedDict": OrderedDict,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.bool": bool,
}
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# By name, for `getattr(torch, name)` may import what it is asked for.
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*STORAGE_DTYPES.values(), torch.float8_e4m3fn, torch.float8_e5m2)
}
Places = dict[str, tuple[int, int]]  # storage key -> first byte in the file, number of bytes


class StorageType(NamedTuple):
    """Stands for a storage class."""

    dtype: torch.dtype


class Storage(NamedTuple):
    """A block of numbers in the file, by its key."""

    key: str
    dtype: torch.dtype
    numel: int
    offset: int = 0  # elements into the block, for views in the legacy format


class StoredTensor(NamedTuple):
    """A tensor that a pickle describes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Rebuild(NamedTuple):
    """Stands for one of torch's functions that rebuild a tensor. Immutable, so that a pickle cannot bend it."""

    name: str

    def __call__(self, *args: Any) -> Any:
        if self.name == "_codecs.encode":
            return _encode_latin1(*args)
        if self.name == "collections.defaultdict":
            return OrderedDict(*args[1:])  # its factory is never called
        if self.name in ("torch.Size", "torch.device"):
            return args
        if self.name.startswith("torch._utils._rebuild_parameter"):
            return args[0]
        if self.name == "torch._tensor._rebuild_from_type_v2":
            function, _, inner, _ = args
            if not isinstance(function, Rebuild):
                raise ValueError(f"a tensor rebuilt by {function!r}")
            return function(*inner)
        if self.name == "torch._utils._rebuild_tensor_v3":
            storage, offset, shape, stride, _, _, dtype, *_ = args
            return _tensor(storage, offset, shape, stride, dtype)
        storage, offset, shape, stride, *_ = args
        return _tensor(storage, offset, shape, stride, None)


REBUILDERS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Size",
    "torch.device",
    "collections.defaultdict",
    "_codecs.encode",
)
MARKERS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter")  # named by subclasses, never called


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(offset, int):
        raise ValueError(f"a tensor in {storage!r} at {offset!r}")
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of shape {shape} and stride {stride} at {offset}")
    return StoredTensor(storage, storage.offset + offset, shape, stride, dtype or storage.dtype)


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return str.encode(text, "latin1")


def _dummy_class(name: str) -> type:
    """A class that takes anything and does nothing."""

    def ignore(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    methods = dict.fromkeys(("__init__", "__setstate__", "__setitem__", "append", "extend", "add", "update"), ignore)
    return type(name, (), {**methods, "__new__": lambda cls, *args, **kwargs: object.__new__(cls)})


class RestrictedUnpickler(pickle._Unpickler):
    """Reads a checkpoint's structure; refuses every name that is not known to be harmless.

    Built on the unpickler in Python: the one in C reserves memory for whatever memo number a file names, so that
    fifty bytes could fill the machine. For a full checkpoint this one takes some fifty milliseconds.
    """

    def __init__(self, file: Any, name: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.file_name = name
        self.dummies: dict[str, type] = {}
        self.storages: dict[str, Storage] = {}
        self.views: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        full = f"{module}.{name}"
        if full in CONTAINERS:
            return CONTAINERS[full]
        if full in REBUILDERS:
            return Rebuild(full)
        if full in MARKERS:
            return full
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return StorageType(STORAGE_DTYPES[name])
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if any(module == known or module.startswith(f"{known}.") for known in TRAINING_MODULES):
            return self.dummies.setdefault(full, _dummy_class(name.rpartition(".")[2]))
        raise UnsafeCheckpointError(
            f"{self.file_name} asks for {full}, which a file of weights has no need of and which could run code. "
            f"Nothing was run. Do not trust it; get the weights as safetensors, or save a plain state dict."
        )

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StorageType):
            raise ValueError(f"an unknown reference {pid!r}")
        _, kind, key, _, numel, *view = pid
        if not isinstance(numel, int) or numel < 0:
            raise ValueError(f"a storage of {numel!r} elements")
        storage = self.storages.setdefault(str(key), Storage(str(key), kind.dtype, numel))
        if view and view[0] is not None:  # legacy: a part of another storage
            view_key, offset, _ = view[0]
            if not isinstance(offset, int) or offset < 0:
                raise ValueError(f"a view at {offset!r}")
            return self.views.setdefault(str(view_key), storage._replace(offset=offset))
        return storage


def open_pickle(path: Path) -> TensorFile:
    """List the tensors of a pickled checkpoint, old or new format, from its structure; no numbers are read.

    Raises:
        UnsafeCheckpointError: it names something that could run code.
        CheckpointError: it is damaged, or no checkpoint.
    """
    try:
        content, places = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
        tensors = {name: _place(tensor, places) for name, tensor in _named_tensors(content, path.name)}
    except CheckpointError:
        raise
    except Exception as error:  # whatever malformed bytes may raise in the unpickler
        raise CheckpointError(
            f"{path.name} cannot be read as a torch file ({type(error).__name__}: {error}): it is truncated or "
            f"damaged. Download or copy it again."
        ) from None
    size = path.stat().st_size
    if any(start + count > size for start, count in places.values()):
        raise CheckpointError(f"{path.name} ends before its last tensor: it is truncated. Download or copy it again.")
    return TensorFile(path, "pickle", tensors, dict.fromkeys(tensors, path))


def _open_zip(path: Path) -> tuple[Any, Places]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        entries = {entry.filename: entry for entry in archive.infolist()}
        programs = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise CheckpointError(
                f"{path.name} is a zip archive, but no torch file ({len(programs)} data.pkl in it). "
                f"If weights are packed in it, unpack it first."
            )
        root = programs[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries:
            raise CheckpointError(f"{path.name} is a TorchScript program, not weights. Get the weights alone.")
        order = entries.get(f"{root}byteorder")
        if order is not None and archive.read(order) == b"big":
            raise CheckpointError(f"{path.name} was written on a big-endian machine. Save it as safetensors there.")
        if entries[programs[0]].file_size > MAX_PROGRAM_BYTES:
            raise UnsafeCheckpointError(
                f"{path.name} has {entries[programs[0]].file_size} bytes of structure, which no file of weights has. "
                f"Nothing was read. Get the weights as safetensors."
            )
        with archive.open(programs[0]) as program:
            unpickler = RestrictedUnpickler(program, path.name)
            content = unpickler.load()
        places = {}
        for key, storage in unpickler.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise CheckpointError(f"{path.name} lacks the data of a tensor ({root}data/{key}). Download it again.")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path.name} is compressed, as torch never does. Save it as safetensors.")
            places[key] = (_first_byte(raw, entry), storage.numel * storage.dtype.itemsize)
            if places[key][1] > entry.file_size:
                raise ValueError(f"storage {key} has {entry.file_size} bytes for {storage.numel} numbers")
    return content, places


def _first_byte(raw: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data begins: after its local header, which has its own lengths of name and extra field."""
    raw.seek(entry.header_offset)
    header = raw.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("a broken zip entry")
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _open_legacy(path: Path) -> tuple[Any, Places]:
    """The format before torch 1.6: four pickles and a list of storage keys, then each storage after its length."""
    with open(path, "rb") as file:
        if RestrictedUnpickler(file, path.name).load() != LEGACY_MAGIC:
            raise CheckpointError(f"{path.name} is a pickle, but no torch file. Get the weights as safetensors.")
        if RestrictedUnpickler(file, path.name).load() != LEGACY_PROTOCOL:
            raise CheckpointError(f"{path.name} is a torch file of an unknown version. Save it as safetensors.")
        system = RestrictedUnpickler(file, path.name).load()
        if isinstance(system, Mapping) and system.get("little_endian") is False:
            raise CheckpointError(f"{path.name} was written on a big-endian machine. Save it as safetensors there.")
        unpickler = RestrictedUnpickler(file, path.name)
        content = unpickler.load()
        keys = RestrictedUnpickler(file, path.name).load()
        places = {}
        for key in keys:
            storage = unpickler.storages[str(key)]
            count = int.from_bytes(file.read(8), "little")
            if count != storage.numel:
                raise ValueError(f"storage {key} has {count} numbers where {storage.numel} are promised")
            places[str(key)] = (file.tell(), count * storage.dtype.itemsize)
            file.seek(places[str(key)][1], 1)
    return content, places


def _named_tensors(content: Any, file_name: str) -> list[tuple[str, StoredTensor]]:
    """The tensors of a state dict, which may lie under `state_dict` or the like beside a training script's own."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file_name} holds a {type(content).__name__}, no state dict. Save the state dict.")
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            content = inner
            break
    return [(name, t) for name, t in content.items() if isinstance(name, str) and isinstance(t, StoredTensor)]


def _place(tensor: StoredTensor, places: Places) -> TensorInfo:
    start, size = places[tensor.storage.key]
    info = TensorInfo(tensor.dtype, tensor.shape, start + tensor.offset * tensor.dtype.itemsize, tensor.stride)
    if info.start + info.elements * tensor.dtype.itemsize > start + size:
        raise ValueError(f"a tensor of shape {tensor.shape} reaches over the end of its storage")
    return info
