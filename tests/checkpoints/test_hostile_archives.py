"""Hostile archives, headers of safetensors and JSON: each is one sentence, soon, in little memory."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import ldm, refusal
from given.hostile import (
    STOP,
    Zip,
    bounded,
    dictionary,
    entry,
    header,
    legacy,
    named,
    refused,
    storage,
    tensor,
    text,
)
from given.models import fields, make
from safetensors import SafetensorError, safe_open

from vae_core import CheckpointError, load_vae
from vae_core.checkpoints.open_file import open_tensor_file
from vae_core.checkpoints.safetensors_file import MAX_TENSORS

# Zip archives.

GOOD = b"\x80\x02" + dictionary(a=tensor(storage(4), (4,), (1,))) + STOP
DATA = torch.arange(4.0).numpy().tobytes()


def good(**changes: Any) -> Zip:
    """A torch file with changes to its first entry."""
    return Zip().add("x/data.pkl", GOOD, **changes).add("x/data/0", DATA)


def field(*numbers: int, kind: int = 1, length: int | None = None) -> bytes:
    """A field of the directory, by default zip64's."""
    return struct.pack("<HH", kind, 8 * len(numbers) if length is None else length) + struct.pack(
        f"<{len(numbers)}Q", *numbers
    )


NONE = 0xFFFFFFFF  # what stands for a number that is in zip64's field


def large(extra: bytes, **changes: Any) -> Zip:
    """A torch file whose second entry has numbers in zip64's field."""
    return Zip().add("x/data.pkl", GOOD).add("x/data/0", DATA, extra=extra, **changes)


def inside() -> Zip:
    """An entry whose data has another one in it, which the directory lists as well."""
    found, name = good(), "x/data/2"
    at = len(found.body) + 30 + len(name)
    found.add(name, Zip().add("x/data/1", DATA).body)
    found.directory += Zip().add("x/data/1", DATA, header=at).directory
    found.count += 1
    return found


def unlisted() -> Zip:
    """A torch file behind an entry that its directory does not list."""
    found = Zip()
    found.body = Zip().add("x/data/1", DATA).body
    return found.add("x/data.pkl", GOOD).add("x/data/0", DATA)


AT = len(Zip().add("x/data.pkl", GOOD).body)
OTHER = field(7, 8, kind=0x5455)
ARCHIVES = {
    **{f"zip64 with header {n}": large(field(n), header=NONE).bytes() for n in (AT + 1, 2**63 - 1, 2**63, 2**64 - 1)},
    **{f"zip64 with size {n}": large(field(n, n), size=NONE, packed=NONE).bytes() for n in (15, 17, 2**63, 2**64 - 1)},
    "a zip64 field that is too short": large(field(16), size=NONE, packed=NONE).bytes(),
    "a zip64 field that ends too early": large(field(16, 16)[:-1], size=NONE, packed=NONE).bytes(),
    "a zip64 field of no length": large(field(16, 16, length=0), size=NONE, packed=NONE).bytes(),
    "another field instead": large(OTHER, size=NONE, packed=NONE).bytes(),
    "a zip64 field within another": large(
        field(9, 9, kind=5, length=99) + field(16, 16), size=NONE, packed=NONE
    ).bytes(),
    "a zip64 end that is elsewhere": good().bytes64(at=5),
    "a zip64 end far away": good().bytes64(at=2**64 - 1),
    "something between zip64's end and its locator": good().bytes64(between=b"abcd"),
    "a zip64 end with another magic number": good().bytes64(magic=0x06064B51),
    "a zip64 count too high": good().bytes64(count=3),
    "a zip64 count of 2^64": good().bytes64(count=2**64 - 1),
    "a zip64 count of two kinds": good().bytes64(here=1),
    "an entry in the data of another": inside().bytes(),
    "a short end with another count": good().bytes64(count16=3),
    "a short end with another length": good().bytes64(length32=3),
    "a short end with another start": good().bytes64(start32=3),
    "a zip64 directory too long": good().bytes64(length=2**63),
    "a zip64 directory that starts too early": good().bytes64(start=2**64 - 1),
    "flags that differ": good(local_flags=1).bytes(),
    "encrypted": good(flags=1).bytes(),
    "local name unlike the central one": good(local_name="x/data.pk_").bytes(),
    "a wrong sum": good(crc=12345).bytes(),
    "two of a name": good().add("x/data.pkl", b"}.").bytes(),
    "two roots": good().add("y/data.pkl", GOOD).bytes(),
    "a root and none": good().add("data.pkl", GOOD).bytes(),
    "a prefix": good().bytes(prefix=b"MZ" * 8),
    "a pickle in front": good().bytes(prefix=b"\x80\x02}."),
    "an entry in front that is not listed": unlisted().bytes(),
    "a comment": good().bytes(comment=b"hello"),
    "a second end": good().bytes(comment=Zip().bytes()),
    "something behind the directory": good().bytes(between=b"abcd"),
    "a count too high": good().bytes(count=3),
    "a count too low": good().bytes(count=1),
    "a name that climbs": good().add("x/../../etc/passwd", b"").bytes(),
    "an absolute name": good().add("/etc/passwd", b"").bytes(),
    "a name of Windows": good().add("x\\data", b"").bytes(),
    "a size too high": good(size=1 << 20, packed=1 << 20).bytes(),
    "a size unlike the packed one": good(size=5).bytes(),
    "a size of zip64 without one": good(size=0xFFFFFFFF, packed=0xFFFFFFFF).bytes(),
    "past the end": good().add("x/data/1", b"", header=1 << 20).bytes(),
    "overlapping": good().add("x/data/1", DATA, header=0).bytes(),
    "not stored": good(method=8).bytes(),
    "an unknown method": good(method=99).bytes(),
    "empty": Zip().bytes(),
    "an archive in an archive": Zip().add("x/inner.pt", good().bytes()).bytes(),
    "arrays of NumPy": Zip().add("a.npy", b"\x93NUMPY").bytes(),
}


def test_a_long_name_is_said_in_part(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(good().add("n" * 81, b"").add("n" * 81, b"").bytes())
    assert f"it has '{'n' * 80}' twice" in refused(path)


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_lie(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(ARCHIVES[name])
    refused(path)


def test_archives_that_tell_the_truth(tmp_path: Path) -> None:
    """Without a sum, as torch writes on request; with data descriptors, as it always does; with remarks."""
    path = tmp_path / "x.pt"
    remark = good(comment=b"a remark")
    plain = (good(), good(crc=0), good(flags=0x808), good(flags=0x808, local_flags=0x800), remark)
    more = (large(field(AT), header=NONE), large(OTHER + field(16, 16), size=NONE, packed=NONE))
    for raw in (*(archive.bytes() for archive in (*plain, *more)), good().bytes64(), more[0].bytes64()):
        path.write_bytes(raw)
        assert open_tensor_file(path).read(["a"])["a"].tolist() == [0, 1, 2, 3]


# The form before torch 1.6.

KEYS = pickle.dumps(["0"], 2)
BLOCK = (4).to_bytes(8, "little") + DATA
ONE = dictionary(a=tensor(storage(4), (4,), (1,))) + STOP
LEGACY = {
    "no keys": (b"", b""),
    "keys that are missing": (pickle.dumps([], 2), b""),
    "keys of others": (pickle.dumps(["1"], 2), BLOCK),
    "a key twice": (pickle.dumps(["0", "0"], 2), BLOCK + BLOCK),
    "keys that are no list": (pickle.dumps({"0": 1}, 2), BLOCK),
    "a count that lies": (KEYS, (5).to_bytes(8, "little") + DATA + bytes(4)),
    "a count of 2^63": (KEYS, (1 << 63).to_bytes(8, "little") + DATA),
    "an end too early": (KEYS, BLOCK[:-1]),
    "bytes behind": (KEYS, BLOCK + b"\0"),
    "another pickle behind": (KEYS, BLOCK + pickle.dumps({}, 2)),
    "keys by a call": (named("posix", "system") + text("x") + b"\x85R.", BLOCK),
}


@pytest.mark.parametrize("name", LEGACY)
def test_the_old_form_that_lies(name: str, tmp_path: Path) -> None:
    keys, rest = LEGACY[name]
    refused(legacy(ONE, tmp_path / "x.pt", keys, rest))


def test_the_old_form_that_tells_the_truth(tmp_path: Path) -> None:
    source = open_tensor_file(legacy(ONE, tmp_path / "x.pt", KEYS, BLOCK))
    assert source.read(["a"])["a"].tolist() == [0, 1, 2, 3]


def test_a_magic_number_made_by_a_call(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02" + named("builtins", "int") + text("5") + b"\x85R." + b"}.")
    refused(path)


# safetensors.

SIX = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
HEADERS: dict[str, bytes] = {
    "Infinity": header(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', bytes(4)),
    "1e400": header(b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', bytes(4)),
    "NaN": header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "a float for a size": header({"a": entry(shape=[1.0])}, bytes(4)),
    "a float for an offset": header({"a": entry(offsets=[0, 4.0])}, bytes(4)),
    "text for a size": header({"a": entry(shape=["1"])}, bytes(4)),
    "text for an offset": header({"a": entry(offsets=["0", "4"])}, bytes(4)),
    "true for a size": header({"a": entry(shape=[True])}, bytes(4)),
    "true for an offset": header({"a": entry(shape=[], dtype="U8", offsets=[False, True])}, bytes(1)),
    "a size of -1": header({"a": entry(shape=[-1])}, bytes(4)),
    "minus zero": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', bytes(4)),
    "5,000 digits": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)),
    "2^64": header({"a": entry(shape=[1 << 64])}, bytes(4)),
    "2^63 x 2^63 x 0": header({"a": entry(shape=[1 << 63, 1 << 63, 0], offsets=[0, 0])}),
    "an overlap": header({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
    "the same bytes twice": header({"a": entry(), "b": entry()}, bytes(4)),
    "a hole": header({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
    "a hole in front": header({"a": entry(offsets=[4, 8])}, bytes(8)),
    "bytes behind": header({"a": entry()}, bytes(5)),
    "bytes behind nothing": header({}, bytes(5)),
    "an end too early": header({"a": entry()}, bytes(3)),
    "offsets backwards": header({"a": entry(offsets=[4, 0])}, bytes(4)),
    "three offsets": header({"a": entry(offsets=[0, 2, 4])}, bytes(4)),
    "one offset": header({"a": entry(offsets=[0])}, bytes(4)),
    "a shape that is none": header({"a": entry(shape=None)}, bytes(4)),
    "a shape of lists": header({"a": entry(shape=[[1]])}, bytes(4)),
    "a size that does not fit": header({"a": entry(shape=[2])}, bytes(4)),
    "an unknown type": header({"a": entry(dtype="F31")}, bytes(4)),
    "a type that is a number": header({"a": entry(dtype=32)}, bytes(4)),
    "no type": header({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a field twice": header(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "half of a surrogate pair": header(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "not UTF-8": header(b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "something behind the brace": header(SIX + b"x", bytes(4)),
    "zeros behind the brace": header(SIX + b"\0", bytes(4)),
    "a list": header(b"[1]" + b" " * 10),
    "an entry that is a list": header({"a": [1]}),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "b": entry()}, bytes(4)),
    "metadata that is a list": header({"__metadata__": [1], "b": entry()}, bytes(4)),
    "a control character": header(b'{"a\n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "a comma too many": header(b'{"a":{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}}', bytes(4)),
    "a header that is longer than the file": (1 << 40).to_bytes(8, "little") + SIX,
    "a header of 2^64 - 1": b"\xff" * 8 + SIX,
    "lists in lists": header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "objects in objects": header(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
}


# What some releases of the library let pass, which has two meanings.
AMBIGUOUS = {
    "a name twice": header(SIX[:-1] + b"," + SIX[1:], bytes(4)),
    "a space in front": header(b" " + SIX, bytes(4)),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_headers_of_two_meanings(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(AMBIGUOUS[name])
    refused(path)


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_safetensors_refuses(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[name])
    with pytest.raises((SafetensorError, OSError)), safe_open(path, "pt"):
        pass  # the library's own word
    refused(path)
    bounded(path)


HONEST_HEADERS = {
    "nothing": header({}),
    "metadata alone": header({"__metadata__": {"a": "b"}}),
    "spaces behind": header(SIX + b" " * 7, bytes(4)),
    "a field more": header({"a": {**entry(), "more": [1, {"x": None}]}}, bytes(4)),
    "an empty tensor between": header({"b": entry(shape=[0, 7], offsets=[4, 4]), "a": entry()}, bytes(4)),
    "any order": header({"b": entry(offsets=[4, 8]), "a": entry()}, bytes(8)),
    "escapes in a name": header({'a"\\\n\u00e9\U0001f600': entry()}, bytes(4)),
    "an empty name": header({"": entry()}, bytes(4)),
    "braces in metadata": header({"__metadata__": {"tags": json.dumps({"a": [{}] * 200_000})}, "a": entry()}, bytes(4)),
}


@pytest.mark.parametrize("name", HONEST_HEADERS)
def test_headers_that_safetensors_takes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(HONEST_HEADERS[name])
    with safe_open(path, "pt") as library:
        names = set(library.keys())
    assert set(open_tensor_file(path).tensors) == names


def test_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({f"{i}": entry(shape=[0], offsets=[0, 0]) for i in range(MAX_TENSORS + 3)}))
    assert f"more than {MAX_TENSORS} tensors" in bounded(path)
    path.write_bytes(header(b'{"a":{"dtype":"F32","shape":[' + b"0," * 8_000_000 + b'0],"data_offsets":[0,0]}}'))
    bounded(path)
    with open(path, "wb") as file:
        file.write((90_000_000).to_bytes(8, "little") + b"{" + b" " * 100)
        file.truncate(100_000_000)
    assert "has a safetensors header of 90000000 bytes" in bounded(path)


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    raw = header({"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("F16", [2, 2], [4, 12])}, bytes(12))
    path = tmp_path / "x.safetensors"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            open_tensor_file(path)
    path.write_bytes(raw)
    assert len(open_tensor_file(path).tensors) == 2


@pytest.mark.parametrize("level", ["1000000000", "999", "1000000", "9" * 5000, "\u0663"])
@pytest.mark.parametrize(
    "where", ["encoder.down.{}.block.0.conv1.weight", "decoder.up_blocks.{}.resnets.0.conv1.weight"]
)
def test_numbers_in_names_are_never_counted_up_to(level: str, where: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({**ldm(make(fields(32))), where.format(level): torch.zeros(32, 32, 3, 3)}, path)
    tracemalloc.start()
    try:
        said = refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(said) < 700


# JSON beside weights.

BROKEN_JSON = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\xff\xfe",
    b'{"sample_size": ' + b"9" * 5000 + b"}",
    b" " * 2_000_000,
)


@pytest.mark.parametrize("number", range(len(BROKEN_JSON)))
def test_json_that_is_none(number: int, tmp_path: Path) -> None:
    make(fields(32)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(BROKEN_JSON[number])
    with pytest.raises(CheckpointError, match="config.json cannot be read as JSON"):
        load_vae(tmp_path)
    (tmp_path / "x.index.json").write_bytes(BROKEN_JSON[number])
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        load_vae(tmp_path / "x.index.json")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "a\\b",
        "x\0y",
        "",
        ".",
        "..",
        "i.index.json",
        "\ud800",
        "n" * 300,
        5,
        None,
    ],
)
def test_shards_that_are_elsewhere(name: Any, tmp_path: Path) -> None:
    index = tmp_path / "i.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(CheckpointError) as error:
        load_vae(index)
    assert len(str(error.value)) < 700
