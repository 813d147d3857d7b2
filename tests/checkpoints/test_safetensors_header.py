"""Edges of what a safetensors header may say: each number type, the largest numbers, the limits of this project."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from given.hostile import entry, header

from vae_core import CheckpointError
from vae_core.checkpoints import safetensors_file
from vae_core.checkpoints.open_file import open_tensor_file

BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_tensor_file(path)
    return str(error.value)


@pytest.mark.parametrize("name", safetensors_file.DTYPES)
def test_the_bytes_of_each_number_type(name: str, file: Path) -> None:
    bits = BITS[name]
    file.write_bytes(header({"a": entry(name, [8], [0, bits])}, bytes(bits)))
    info = open_tensor_file(file).tensors["a"]
    assert info.shape == (8,) and (info.dtype is None or info.dtype.itemsize * 8 == bits)
    for other in (bits - 1, bits + 1):
        file.write_bytes(header({"a": entry(name, [8], [0, other])}, bytes(other)))
        assert f"is in {other} bytes" in refusal(file)


def test_the_largest_numbers(file: Path) -> None:
    most = 2**64 - 1
    file.write_bytes(header({"a": entry(shape=[most, 0], offsets=[0, 0])}))
    assert open_tensor_file(file).tensors["a"].shape == (most, 0)
    file.write_bytes(header({"a": entry(shape=[most + 1, 0], offsets=[0, 0])}))
    assert "a number above 2^64 - 1" in refusal(file)
    file.write_bytes(header({"a": entry(shape=[most, 2, 0], offsets=[0, 0])}))
    assert "more than 2^64 elements" in refusal(file)


@pytest.mark.parametrize("beyond", [-7, 0, 1, 8])
def test_a_header_that_ends_behind_the_file(beyond: int, file: Path) -> None:
    """By so many bytes more than the file has; eight more are the number itself."""
    raw = header({"a": entry()}, bytes(4))
    file.write_bytes((len(raw) + beyond).to_bytes(8, "little") + raw[8:])
    assert f"its safetensors header alone should have {len(raw) + beyond}. The file is truncated" in refusal(file)


def test_as_many_tensors_and_numbers_as_allowed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 20)
    monkeypatch.setattr(safetensors_file, "MAX_COMMAS", 100)
    for count in (20, 23):  # beside the braces around all of them and those of the metadata
        entries = {f"{i}": entry("U8", [], [i, i + 1]) for i in range(count)}
        file.write_bytes(header({"__metadata__": {"a": "b"}, **entries}, bytes(count)))
        if count == 20:
            assert len(open_tensor_file(file).tensors) == count
        else:
            assert "more than 20 tensors" in refusal(file)
    file.write_bytes(header({"a": entry("U8", [1] * 101, [0, 1])}, bytes(1)))
    assert "more than 20 tensors" in refusal(file)


def test_a_header_as_long_as_allowed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = header({"a": entry()}, bytes(4))
    size = int.from_bytes(raw[:8], "little")
    file.write_bytes(raw)
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", size)
    assert torch.equal(open_tensor_file(file).read(["a"])["a"], torch.zeros(1))
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", size - 1)
    assert f"has a safetensors header of {size} bytes" in refusal(file)
