"""The header of a safetensors file, read as strictly as the safetensors library reads it.

Whatever that library refuses is refused here, so that no file means one thing there and another here. Two limits are
this project's own, and no file of weights comes near them: the size of the header, and the number of tensors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..errors import CheckpointError, brief, in_one_line
from ..regular_files import open_regular
from .tensor_file import TensorFile, TensorInfo

# Name of a number type -> what torch calls it, and its bits. None: torch has no such type that weights could have.
DTYPES: dict[str, tuple[torch.dtype | None, int]] = {
    "F64": (torch.float64, 64),
    "F32": (torch.float32, 32),
    "F16": (torch.float16, 16),
    "BF16": (torch.bfloat16, 16),
    "F8_E4M3": (torch.float8_e4m3fn, 8),
    "F8_E5M2": (torch.float8_e5m2, 8),
    "I64": (torch.int64, 64),
    "I32": (torch.int32, 32),
    "I16": (torch.int16, 16),
    "I8": (torch.int8, 8),
    "U8": (torch.uint8, 8),
    "BOOL": (torch.bool, 8),
    "U64": (torch.uint64, 64),
    "U32": (torch.uint32, 32),
    "U16": (torch.uint16, 16),
    "C64": (torch.complex64, 64),
    "F8_E8M0": (getattr(torch, "float8_e8m0fnu", None), 8),  # of torch 2.7
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, 8),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, 8),
    "F6_E2M3": (None, 6),
    "F6_E3M2": (None, 6),
    "F4": (None, 4),
}
MAX_HEADER_BYTES = 25_000_000  # the format allows four times as much; a full checkpoint has some 300 kB
MAX_TENSORS = 50_000
MAX_COMMAS = 500_000  # between all tensors, their fields and the numbers in these
MAX_QUOTES = 2_000_000  # around all names; texts in the metadata may quote, too
MAX_INTEGER = 2**64 - 1
METADATA = "__metadata__"

_STRING = re.compile(r'"[^"]*"?')  # once escaped characters are gone


def open_safetensors(path: Path) -> TensorFile:
    """List a safetensors file from its header.

    Raises:
        CheckpointError: the header is not one, or it does not describe the bytes that follow, all and each once.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > size - 8:
            raise CheckpointError(
                f"{path.name} has {size} bytes, but its safetensors header alone should have {header_size}. "
                f"The file is truncated or not a safetensors file. Download or copy it again."
            )
        if header_size > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path.name} has a safetensors header of {header_size} bytes; a file of weights has less than "
                f"{MAX_HEADER_BYTES}. Get another copy."
            )
        raw = file.read(header_size)
    try:
        header, metadata = _parse(raw)
        tensors = _laid_out(header, base=8 + header_size)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} has a broken safetensors header ({in_one_line(error)}). Download or copy it again."
        ) from None
    end = max((start + bytes_ for start, bytes_, _ in header.values()), default=0) + 8 + header_size
    if end != size:
        what = "it is truncated" if end > size else f"{size - end} bytes more follow"
        raise CheckpointError(
            f"{path.name} has {size} bytes, but its header describes {end}: {what}. Download or copy it again."
        )
    return TensorFile(path, "safetensors", tensors, dict.fromkeys(tensors, path), metadata)


_Entry = tuple[int, int, TensorInfo]  # first byte of the data, number of bytes, the tensor (its start not yet known)


def _parse(raw: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Name -> entry, and the metadata."""
    if raw[:1] != b"{":
        raise ValueError(f"it starts with {raw[:1]!r} and not with a brace")
    if raw.count(b'"') > MAX_QUOTES:
        raise ValueError(f"it lists more than {MAX_TENSORS} tensors")
    text = raw.decode("utf-8")
    outside = _STRING.sub("", text.replace("\\\\", "").replace('\\"', ""))
    if outside.count("{") > MAX_TENSORS + 2 or outside.count(",") > MAX_COMMAS:
        raise ValueError(f"it lists more than {MAX_TENSORS} tensors")
    if outside.count("[") > 2 * MAX_TENSORS:
        raise ValueError("it has nested lists")
    if "-" in outside:
        raise ValueError("it has a negative number")
    top: Any = json.loads(text, object_pairs_hook=_Pairs, parse_float=_no_float, parse_constant=_no_float)
    if not isinstance(top, _Pairs):
        raise ValueError(f"it is a {type(top).__name__}")
    header: dict[str, _Entry] = {}
    metadata: dict[str, str] | None = None
    for name, value in top:
        _check_text(name)
        if name == METADATA:
            if metadata is not None:
                raise ValueError(f"{METADATA} is there twice")
            metadata = _metadata(value)
        elif name in header:
            raise ValueError(f"{brief(name)} is there twice")
        else:
            header[name] = _entry(name, value)
    return header, metadata or {}


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object, in their order, twins kept."""


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, _Pairs):
        raise ValueError(f"{METADATA} is a {type(value).__name__}")
    for key, text in value:
        if not isinstance(text, str):
            raise ValueError(f"{METADATA} has a {type(text).__name__}; it may have strings alone")
        _check_text(key)
        _check_text(text)
    return dict(value)


def _entry(name: str, value: Any) -> _Entry:
    if not isinstance(value, _Pairs):
        raise ValueError(f"{brief(name)} is a {type(value).__name__}")
    fields = dict(value)
    if len(fields) != len(value):
        raise ValueError(f"{brief(name)} has a field twice")
    missing = [field for field in ("dtype", "shape", "data_offsets") if field not in fields]
    if missing:
        raise ValueError(f"{brief(name)} has no {missing[0]}")
    dtype = fields["dtype"]
    shape = fields["shape"]
    offsets = fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{brief(name)} has the unknown number type {brief(dtype)}")
    for numbers in (shape, offsets):
        if type(numbers) is not list or not all(type(number) is int for number in numbers):
            raise ValueError(f"{brief(name)} has a shape or data_offsets that are not a list of whole numbers")
        if max(numbers, default=0) > MAX_INTEGER:
            raise ValueError(f"{brief(name)} has a number above 2^64 - 1")
    if len(offsets) != 2 or offsets[1] < offsets[0]:
        raise ValueError(f"{brief(name)} has data_offsets {brief(offsets)}")
    kind, bits = DTYPES[dtype]
    elements = 1
    for side in shape:  # in its order, with the overflow that the library refuses
        elements *= side
        if elements > MAX_INTEGER:
            raise ValueError(f"{brief(name)} has a shape of more than 2^64 elements")
    if elements * bits > MAX_INTEGER or elements * bits != (offsets[1] - offsets[0]) * 8:
        raise ValueError(
            f"{brief(name)}, of shape {brief(tuple(shape))} and type {dtype}, is in {offsets[1] - offsets[0]} bytes"
        )
    return offsets[0], offsets[1] - offsets[0], TensorInfo(kind, tuple(shape), 0)


def _laid_out(header: dict[str, _Entry], base: int) -> dict[str, TensorInfo]:
    """The tensors at their places, which follow on one another without gaps or overlaps."""
    end = 0
    for name, (start, size, _) in sorted(header.items(), key=lambda item: item[1][:2]):
        if start != end:
            raise ValueError(f"{brief(name)} starts at byte {start} where the tensor before it ends at {end}")
        end += size
    return {name: info._replace(start=base + start) for name, (start, _, info) in header.items()}


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"a number is {brief(text)}, which is not a whole number")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a name or text has half of a surrogate pair") from None
