"""Small files that would take hours, or all of the memory, by what is compared, copied or joined again and again."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from given.hostile import (
    MARK,
    NONE,
    STOP,
    Zip,
    bounded,
    dictionary,
    integer,
    named,
    storage,
    tensor,
    text,
    within_limits,
    zipped,
)
from safetensors.torch import save_file

from vae_core.checkpoints import machine, zip_file
from vae_core.checkpoints.open_file import open_tensor_file

MODULUS = sys.hash_info.modulus
DATA = {"archive/data/0": bytes(16)}
ONE = tensor(storage(4), (4,), (1,))
MANY = 10_000  # keys of one hash: fifty million comparisons


def real(number: float) -> bytes:
    return b"G" + struct.pack(">d", number)


def pairs(a: int, b: int) -> bytes:
    return integer(a) + integer(b) + b"\x86"


def dict_of(keys: list[bytes]) -> bytes:
    return b"}" + MARK + b"".join(key + NONE for key in keys) + b"u."


def one_by_one(keys: list[bytes]) -> bytes:
    return b"}" + b"".join(key + NONE + b"s" for key in keys) + STOP


def set_of(keys: list[bytes]) -> bytes:
    return b"\x8f" + MARK + b"".join(keys) + b"\x90."


def frozen_set_of(keys: list[bytes]) -> bytes:
    return MARK + b"".join(keys) + b"\x91."


def made_of_a_list(keys: list[bytes]) -> bytes:
    return named("builtins", "set") + b"]" + MARK + b"".join(keys) + b"e\x85R."


COLLIDING: dict[str, list[bytes]] = {
    "integers of hash 0": [integer(MODULUS * i) for i in range(1, MANY)],
    "negative ones": [integer(-MODULUS * i) for i in range(1, MANY)],
    "integers of hash 77, long": [integer((MODULUS << 100) * i + 77) for i in range(1, MANY)],
    "pairs of hash 0": [pairs(0, MODULUS * i) for i in range(1, MANY)],
}
INTO: tuple[Callable[[list[bytes]], bytes], ...] = (dict_of, one_by_one, set_of, frozen_set_of, made_of_a_list)


@pytest.mark.parametrize("into", INTO, ids=lambda into: into.__name__)
@pytest.mark.parametrize("name", COLLIDING)
def test_keys_that_all_have_one_hash(name: str, into: Callable[[list[bytes]], bytes], tmp_path: Path) -> None:
    assert "whole number of" in bounded(zipped(into(COLLIDING[name]), tmp_path / "x.pt"))


def test_a_memo_whose_places_all_have_one_hash(tmp_path: Path) -> None:
    program = NONE + b"".join(b"p%d\n" % (MODULUS * i) for i in range(MANY)) + STOP
    assert "at an impossible place" in bounded(zipped(program, tmp_path / "x.pt"))


LONG: dict[str, bytes] = {
    "keys": dict_of([real(i / 7) for i in range(2000)]),
    "instructions": NONE + b"0N" * 2000 + STOP,
    "items": set_of([text(str(i)) for i in range(500)]),
}


@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_by_any_other_way_is_ended_by_the_clock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(b"}" + text("a") + LONG[name].removesuffix(STOP) + b"s.", tmp_path / "x.pt")
    assert not open_tensor_file(path).tensors
    monkeypatch.setattr(machine, "SECONDS", -1e-9)
    assert "takes more than" in bounded(path)


@pytest.mark.parametrize("into", INTO, ids=lambda into: into.__name__)
def test_honest_keys_are_read(into: Callable[[list[bytes]], bytes], tmp_path: Path) -> None:
    """A guard: of every kind, up to the largest ones."""
    keys = [integer(MODULUS - 1), integer(1 - MODULUS), pairs(3, MODULUS - 1), text("k" * 4096), real(1e300), NONE]
    program = dictionary(a=ONE, other=into(keys).removesuffix(STOP)) + STOP
    assert list(open_tensor_file(zipped(program, tmp_path / "x.pt", DATA)).tensors) == ["a"]


TOO_LARGE = {
    "a whole number of 61 bits": integer(MODULUS),
    "a negative one": integer(-MODULUS),
    "in a pair": pairs(3, MODULUS),
    "a text of 4,097 characters": text("k" * 4097),
    "a tuple of nine": MARK + integer(1) * 9 + b"t",
    "a tuple of numbers with decimals": real(0.5) + b"\x85",
}


@pytest.mark.parametrize("into", INTO, ids=lambda into: into.__name__)
@pytest.mark.parametrize("name", TOO_LARGE)
def test_keys_that_are_just_too_large(name: str, into: Callable[[list[bytes]], bytes], tmp_path: Path) -> None:
    assert "has a key" in bounded(zipped(into([TOO_LARGE[name]]), tmp_path / "x.pt"))


# Names.


def below_long_names(levels: int, length: int, tensors: int) -> bytes:
    inner = b"}" + MARK + b"".join(text(f"t{i}") + ONE for i in range(tensors)) + b"u"
    for level in range(levels):
        inner = b"}" + text(chr(97 + level) * length) + inner + b"s"
    return inner + STOP


LONG_NAMES = {
    "a key of 10 MB": below_long_names(1, 10_000_000, 1000),
    "a key of 10 MB below another": below_long_names(2, 10_000_000, 10),
    "five of 4,000 below one another": below_long_names(5, 4000, 1000),
    "five of 190, and 5,000 tensors": below_long_names(5, 190, 5_000),
    "a dictionary in a thousand others": b"}"
    + MARK
    + text("encoder.conv_in.weight")
    + ONE
    + b"q\x07"
    + text("decoder.conv_in.weight")
    + ONE
    + b"".join(text(f"t{i}") + b"h\x07" for i in range(1000))
    + b"uq\x080}"
    + MARK
    + b"".join(text(f"k{i}") + b"}" + text("x") + b"h\x08s" for i in range(1000))
    + b"u.",
}


@pytest.mark.parametrize("name", LONG_NAMES)
@pytest.mark.thorough
def test_names_are_bounded_before_they_are_put_together(name: str, tmp_path: Path) -> None:
    bounded(zipped(LONG_NAMES[name], tmp_path / "x.pt", DATA))


# Copies.

ARRAY = (
    named("numpy.core.multiarray", "_reconstruct")
    + named("numpy", "ndarray")
    + integer(0)
    + b"\x85C\x01b\x87R"
    + MARK
    + integer(1)
    + integer(SIZE := 4 << 20)
    + b"\x85"
    + named("numpy", "dtype")
    + text("u1")
    + b"\x85R"
    + b"\x89h\x05tb"
)
BYTES = b"B" + struct.pack("<I", SIZE) + bytes(SIZE) + b"q\x050"


def many(thing: bytes, count: int) -> bytes:
    return MARK + b"".join(text(f"t{i}") + thing for i in range(count)) + b"u."


AS_DOUBLE = (
    named("torch._utils", "_rebuild_device_tensor_from_numpy")
    + MARK
    + ARRAY
    + named("torch", "float64")
    + text("cpu")
    + b"\x89tR"
)


@pytest.mark.parametrize(
    ("array", "dtype"), [(ARRAY, torch.uint8), (AS_DOUBLE, torch.float64)], ids=["arrays", "tensors of another type"]
)
def test_one_array_of_bytes_in_a_thousand_arrays_is_copied_when_it_is_read(
    array: bytes, dtype: torch.dtype, tmp_path: Path
) -> None:
    """4 MiB in a file would be 4 GiB: listing them takes nothing, and reading one of them copies one."""
    path = zipped(BYTES + b"}" + many(array, 1000), tmp_path / "x.pt")
    source = within_limits(path, lambda: open_tensor_file(path))
    assert len(source.tensors) == 1000
    read = source.read(["t0", "t1"])
    assert read["t0"].shape == (SIZE,) and read["t0"].data_ptr() != read["t1"].data_ptr()
    assert read["t0"].dtype == source.tensors["t0"].dtype == dtype


def test_bytes_by_a_codec_inside_of_another_call_are_counted(tmp_path: Path) -> None:
    call = named("torch._tensor", "_rebuild_from_type_v2") + b"q\x010" + named("_codecs", "encode") + b"q\x020"
    again = b"h\x01" + MARK + b"h\x02" + named("torch", "Tensor") + b"h\x03h\x04\x86NtR"
    program = call + text("a" * 1_000_000) + b"q\x030" + text("latin1") + b"q\x040" + b"]" + MARK + again * 500 + b"e."
    assert "copies more text" in bounded(zipped(program, tmp_path / "x.pt"))


def test_texts_that_take_four_bytes_a_character_are_counted(tmp_path: Path) -> None:
    program = b"]" + MARK + (text("a" * 1_000_000 + "\U0001f600") + b"q\x00") * 40 + b"e."
    assert "describes more objects" in bounded(zipped(program, tmp_path / "x.pt"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_honest_arrays_are_read(protocol: int, tmp_path: Path) -> None:
    """A guard: bytes of protocol 2 are texts, half of whose characters take two bytes."""
    values = {f"t{i}": np.random.default_rng(i).random((30, 1000), np.float32) for i in range(20)}
    values["columns first"] = np.asfortranarray(values["t0"])
    torch.save(values, tmp_path / "x.pt", pickle_protocol=protocol)
    source = open_tensor_file(tmp_path / "x.pt")
    for name, tensor_of_it in source.read(values).items():
        np.testing.assert_array_equal(tensor_of_it.numpy(), values[name])


# Entries.


def test_a_program_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    size = (1 << 30) + 1
    head, content = Zip(), b""
    raw = head.add("archive/data.pkl", content, size=size, packed=size, crc=1).bytes()
    at = 30 + len("archive/data.pkl")
    with open(path, "wb") as file:  # with a hole in place of the zeros
        file.write(raw[:at])
        file.seek(size, 1)
        directory = raw[at:]
        end = directory[-22:]
        file.write(directory[:-22] + end[:16] + struct.pack("<I", at + size) + end[20:])
    assert f"data.pkl has {size} bytes" in within_limits(path, lambda: bounded(path))


@pytest.mark.parametrize("name", ["x" * 1001, "x" * 900], ids=["a name", "the directory"])
def test_long_directories(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(Zip().add("archive/data.pkl", b"}.").add(f"archive/{name}", b"").bytes())
    if len(name) <= 1000:
        assert not open_tensor_file(path).tensors
        monkeypatch.setattr(zip_file, "MAX_DIRECTORY", 1000)
    assert "directory" in bounded(path)


HUGE = "x" * 3_000_000
INDEXES: dict[str, object] = {
    "a file's name": {"weight_map": {"a": HUGE}},
    "a file's name, of several parts": {"weight_map": {"a": f"../{HUGE}"}},
    "a weight's name": {"weight_map": {HUGE: "a.safetensors"}},
    "no map": {HUGE: 1},
    "a map that is text": {"weight_map": HUGE},
    "many weights": {"weight_map": {f"weight {number}": "a.safetensors" for number in range(400_000)}},
    "many shards": {"weight_map": {f"{number}": f"{number}.safetensors" for number in range(90_000)}},
    "many numbers beside the map": {"weight_map": {"b": "a.safetensors"}, "metadata": [1] * 4_000_000},
    "many lists beside the map": {"weight_map": {"b": "a.safetensors"}, "metadata": [[[]] * 9] * 90_000},
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_with_megabytes_of_text(name: str, tmp_path: Path) -> None:
    save_file({"b": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "i.index.json").write_text(json.dumps(INDEXES[name]))
    bounded(tmp_path / "i.index.json")
