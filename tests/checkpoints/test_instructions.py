"""What a pickle's instructions give: plain values as Python's own unpickler makes them; what no file may ask for."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from given.hostile import MARK, NONE, STOP, bounded, dictionary, named, refused, storage, tensor, text, zipped

from vae_core import UnsafeCheckpointError
from vae_core.checkpoints import allowed, machine, unpickler
from vae_core.checkpoints.open_file import open_tensor_file


def loaded(program: bytes) -> Any:
    return unpickler.load(io.BytesIO(program), len(program), "x.pt", machine.time_limit())[0]


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 256, 65_535, 65_536, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**500)),
    *(0.0, 1.5, -1e300, "", "a", "\u00e4\U0001f600", "a\nb", "k" * 300, b"", b"a\xff", b"b" * 300),
    *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [1, [2, 3]], {}, {"a": 1}, {"a": 1, 2: [3], (4, "b"): None}),
    *({1, 2}, set(), frozenset((1, 2)), [[1], [1]]),
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_values_of_every_protocol(value: Any, protocol: int) -> None:
    found = loaded(pickle.dumps(value, protocol))
    assert found == value and type(found) is type(value)


# What no protocol of today writes, but older ones did, or others do.
PROGRAMS = {
    "false as a number": b"I00\n.",
    "true as a number": b"I01\n.",
    "no as a number": b"I0\n.",
    "a long number in a line": b"L-12345678901234567890L\n.",
    "a long number of no bytes": b"\x8a\x00.",
    "a longer one of no bytes": b"\x8b\x00\x00\x00\x00.",
    "64 bytes": b"\x8a\x40" + b"\x01" * 64 + STOP,
    "192 digits": b"I" + b"9" * 192 + b"\n.",
    "a text of Python 2": b"U\x03abc.",
    "one that is not UTF-8": b"U\x03a\xe9c.",
    "a long one": b"T\x03\x00\x00\x00abc.",
    "a text in a line": b"S'abc'\n.",
    "POP of an object": b"K\x01K\x020.",
    "POP of a mark": b"K\x01(0.",
    "POP_MARK": b"K\x01(K\x02K\x031.",
    "DUP": b"K\x012\x86.",
    "an object from the memo": b"]q\x00h\x00\x86.",
    "one from a place in a line": b"]p7\ng7\n\x86.",
    "one from a far place": b"]r\x00\x01\x00\x00j\x00\x01\x00\x00\x86.",
    "LIST and DICT": b"(K\x01(K\x02K\x03dl.",
    "items one by one": b"}K\x01K\x02sK\x03K\x04s.",
    "protocol 5": b"\x80\x05N.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_by_hand(name: str) -> None:
    assert repr(loaded(PROGRAMS[name])) == repr(pickle.loads(PROGRAMS[name], encoding="latin1"))


@pytest.mark.parametrize("code", [b"V%s\n", b"S'%s'\n"], ids=["UNICODE", "STRING"])
def test_lines_that_take_four_bytes_a_character_are_counted(code: bytes, tmp_path: Path) -> None:
    wide = b"\\U0001f600" if code.startswith(b"V") else "\U0001f600".encode()
    program = b"]" + MARK + (code % (b"a" * 60_000 + wide)) * 400 + b"e."
    assert "describes more objects" in bounded(zipped(program, tmp_path / "x.pt"))


@pytest.mark.parametrize("line", [b"\\ud800", b"\\u12", b"\\Uffffffff"])
def test_lines_that_are_no_text(line: bytes, tmp_path: Path) -> None:
    refused(zipped(b"}V" + line + b"\nNs.", tmp_path / "x.pt"))


TOO_LONG = {"65 bytes": b"\x8a\x41" + b"\x01" * 65 + STOP, "193 digits": b"I" + b"9" * 193 + b"\n."}


@pytest.mark.parametrize("name", TOO_LONG)
def test_numbers_that_are_just_too_long(name: str, tmp_path: Path) -> None:
    bounded(zipped(TOO_LONG[name], tmp_path / "x.pt"))


ONE = tensor(storage(4), (4,), (1,))
OPTIONS = dictionary(x=NONE)
NAMED = {
    "a container": named("collections", "OrderedDict") + b")" + OPTIONS + b"\x92.",
    "a function that makes tensors": named("torch._utils", "_rebuild_parameter") + ONE + b"\x85" + OPTIONS + b"\x92.",
    "a type that stands beside tensors": named("torch", "Tensor") + b")" + OPTIONS + b"\x92.",
    "a dummy with a list of options": named("omegaconf", "DictConfig") + b")]\x92.",
    "a dummy with no options": named("omegaconf", "DictConfig") + b")N\x92.",
}


@pytest.mark.parametrize("name", NAMED)
def test_objects_with_named_arguments(name: str, tmp_path: Path) -> None:
    path = zipped(NAMED[name], tmp_path / "x.pt", {"archive/data/0": bytes(16)})
    assert "makes an object with named arguments" in refused(path, UnsafeCheckpointError)


OBJECTS = {
    "torch._utils._rebuild_parameter": named("torch._utils", "_rebuild_parameter") + ONE + b"\x85\x81.",
    "torch.Tensor": named("torch", "Tensor") + b")\x81.",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_what_is_no_class(name: str, tmp_path: Path) -> None:
    path = zipped(OBJECTS[name], tmp_path / "x.pt", {"archive/data/0": bytes(16)})
    assert f"makes an object of {name}" in refused(path, UnsafeCheckpointError)


@pytest.mark.parametrize("made", [b")\x81", b")" + OPTIONS + b"\x92", b")R", MARK + text("a") + b"tR"])
def test_objects_of_frameworks_are_passed_over(made: bytes, tmp_path: Path) -> None:
    thing = named("omegaconf", "DictConfig") + made
    assert loaded(thing + STOP) is allowed.PLACEHOLDER
    changes = b"N\x85b(NNu(Ne(N\x90"  # its state, its items, what is appended and added to it
    path = zipped(dictionary(a=ONE, other=thing + changes) + STOP, tmp_path / "x.pt", {"archive/data/0": bytes(16)})
    assert list(open_tensor_file(path).tensors) == ["a"]
