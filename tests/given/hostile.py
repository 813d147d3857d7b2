"""Pieces to build hostile files of: pickle programs by hand, zip archives byte by byte, safetensors headers."""

from __future__ import annotations

import json
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vae_core import CheckpointError, inspect_vae, load_vae
from vae_core.checkpoints import pickled
from vae_core.checkpoints.open_file import open_tensor_file

Result = TypeVar("Result")

STOP, MARK, NONE = b".", b"(", b"N"


def text(value: str | bytes) -> bytes:
    """A string on the stack; bytes are taken as they are, whatever they decode to."""
    raw = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """Something named, by the instruction of protocol 2."""
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """The same by the instruction of protocol 4."""
    return text(module) + text(name) + b"\x93"


def remembered(module: str, name: str) -> bytes:
    """The same from the memo."""
    return text(module) + b"q\x00" + text(name) + b"q\x01" + b"00" + b"h\x00h\x01\x93"


def calls(name: bytes, argument: str) -> dict[str, bytes]:
    """Every way to call something named with one argument."""
    one = text(argument)
    return {
        "REDUCE": name + one + b"\x85R",
        "OBJ": MARK + name + one + b"o",
        "NEWOBJ": name + one + b"\x85\x81",
        "NEWOBJ_EX": name + one + b"\x85}\x92",
        "BUILD": name + b"}" + text("x") + one + b"sb",
    }


def zipped(
    program: bytes, path: Path, others: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    """A torch file with this structure."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in ({"archive/version": b"3\n"} | (others or {})).items():
            archive.writestr(name, content)
    return path


def legacy(program: bytes, path: Path, keys: bytes | None = None, rest: bytes = b"") -> Path:
    """A torch file of the form before 1.6 with this structure."""
    head = b"".join(pickle.dumps(each, 2) for each in (pickled.LEGACY_MAGIC, pickled.LEGACY_PROTOCOL, {}))
    path.write_bytes(head + program + (pickle.dumps([], 2) if keys is None else keys) + rest)
    return path


def storage(numel: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A reference to a storage."""
    return MARK + text("storage") + named("torch", kind) + text(key) + text("cpu") + integer(numel) + b"tQ"


def integer(number: int) -> bytes:
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: tuple[int, ...]) -> bytes:
    return MARK + b"".join(map(integer, values)) + b"t"


def tensor(block: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A tensor as torch describes it."""
    arguments = (
        block
        + integer(offset)
        + numbers(shape)
        + numbers(stride)
        + b"\x89"
        + named("collections", "OrderedDict")
        + b")R"
    )
    return named("torch._utils", "_rebuild_tensor_v2") + MARK + arguments + b"tR"


def dictionary(**values: bytes) -> bytes:
    return b"}" + MARK + b"".join(text(name) + value for name, value in values.items()) + b"u"


def header(entries: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header, given as JSON's objects or as bytes."""
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class Zip:
    """A zip archive written byte by byte, so that each field can lie."""

    def __init__(self) -> None:
        self.body, self.directory, self.count = b"", b"", 0

    def add(
        self,
        name: str,
        content: bytes,
        *,
        local_name: str | None = None,
        extra: bytes = b"",
        comment: bytes = b"",
        **fields: int,
    ) -> Zip:
        """Add an entry; `extra` and `comment` are for the directory.

        Fields: flags, local_flags, method, crc, size, packed, header.
        """
        crc, size = fields.get("crc", zlib.crc32(content)), fields.get("size", len(content))
        packed, flags, method = fields.get("packed", len(content)), fields.get("flags", 0), fields.get("method", 0)
        at = fields.get("header", len(self.body))
        local = (local_name or name).encode()
        self.body += struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            20,
            fields.get("local_flags", flags),
            method,
            0,
            0,
            crc,
            packed,
            size,
            len(local),
            0,
        )
        self.body += local + content
        raw = name.encode()
        self.directory += struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            20,
            20,
            flags,
            method,
            0,
            0,
            crc,
            packed,
            size,
            *(len(raw), len(extra), len(comment)),
            0,
            0,
            0,
            at,
        )
        self.directory += raw + extra + comment
        self.count += 1
        return self

    def bytes(self, prefix: bytes = b"", comment: bytes = b"", count: int | None = None, between: bytes = b"") -> bytes:
        count = self.count if count is None else count
        end = struct.pack(
            "<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(self.directory), len(prefix + self.body), len(comment)
        )
        return prefix + self.body + self.directory + between + end + comment

    def bytes64(self, between: bytes = b"", **lies: int) -> bytes:
        """With zip64's ends. Lies: count, here, length, start, at, magic, count16, length32, start32."""
        count, length, start = self.count, len(self.directory), len(self.body)
        here, at = lies.get("here", lies.get("count", count)), lies.get("at", start + length)
        numbers = lies.get("count", count), lies.get("length", length), lies.get("start", start)
        magic = lies.get("magic", 0x06064B50)
        end64 = struct.pack("<LQ2H2L4Q", magic, 44, 45, 45, 0, 0, here, *numbers)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        short, none = lies.get("count16", 0xFFFF), 0xFFFFFFFF
        sides = lies.get("length32", none), lies.get("start32", none)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, short, short, *sides, 0)
        return self.body + self.directory + end64 + between + locator + end


# What a refusal may take: twice the seconds of the processor that SECURITY.md promises, because another of pytest's
# workers may be at work on the same core, and the bytes beside the file itself.
SECONDS, BYTES = 2 * 2, 64 << 20


def refused(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """What is said of a file that is refused: the same by all functions, as one sentence with its name."""
    with pytest.raises(kind) as error:
        open_tensor_file(path)
    with pytest.raises(kind) as same:
        load_vae(path)
    assert str(same.value) == str(error.value) == inspect_vae(path).problem
    message = str(error.value)
    assert path.name in message and message.endswith(".") and len(message) < 700
    return message


def within_limits(path: Path, action: Callable[[], Result]) -> Result:
    """What an action gives, done twice: once within the seconds, then within 64 MiB beyond the file.

    Python's memory is traced the second time, which takes four times as long.
    """
    start = time.process_time()
    result = action()
    seconds = time.process_time() - start
    tracemalloc.start()
    try:
        action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert peak < BYTES + path.stat().st_size, f"{peak / 2**20:.0f} MiB"
    return result


def bounded(path: Path) -> str:
    """What is said of a file that is refused within the limits."""

    def refusal() -> str:
        with pytest.raises(CheckpointError) as error:
            open_tensor_file(path)
        return str(error.value)

    message = within_limits(path, refusal)
    assert len(message) < 700
    return message
