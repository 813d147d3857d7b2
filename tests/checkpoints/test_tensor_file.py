"""Files that are damaged, or something else: one sentence each, with what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
from pathlib import Path

import pytest
import torch
from given.files import assert_same_weights, ldm
from given.models import fields, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vae_core import CheckpointError, VAEError, inspect_vae, load_vae, save_single_file
from vae_core.checkpoints.open_file import open_tensor_file
from vae_core.checkpoints.tensor_file import read_mapped


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


FOREIGN = {
    "is empty (0 bytes)": b"",
    "has 3 bytes, too few": b"abc",
    "is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 334643276\n",
    "is a web page, not weights": b"\n<!DOCTYPE html>\n<html><body>Access denied</body></html>",
    "is a GGUF file": b"GGUF\x03\x00\x00\x00" + bytes(100),
    "is an HDF5 (Keras) file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "has Flax weights (msgpack)": b"\x81\xa7encoder\x81\xa7conv_in\x81\xa6kernel" + bytes(50),
    "has Flax weights (msgpack). Save it once with PyTorch weights.": b"\x8f\xa6kernel" + bytes(50),
    "is neither safetensors nor a torch file (it starts with 90 a6": b"\x90\xa6kernel" + bytes(50),
    "is JSON text, not weights": b'{"_class_name": "AutoencoderKL"}',
    "is neither safetensors nor a torch file (it starts with 01 02 03 04 05 06 07 08).": bytes(range(1, 100)),
    "its safetensors header alone should have 9000": (9000).to_bytes(8, "little") + b"{" + bytes(50),
    "has a broken safetensors header (Unterminated string": raw_safetensors(b'{"a": {"dtype": "F32", "sha'),
    "has a broken safetensors header ('a' has no data_offsets)": raw_safetensors({"a": {"dtype": "F32", "shape": [1]}}),
    "has a broken safetensors header ('a' is a int)": raw_safetensors({"a": 5}),
    "has a broken safetensors header ('a', of shape (2,) and type F32, is in 4 bytes)": raw_safetensors(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "has a broken safetensors header (it has a negative number": raw_safetensors(
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, bytes(4)
    ),
    "but its header describes": raw_safetensors(
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(4)
    ),
    "has no tensors": raw_safetensors({"__metadata__": {"format": "pt"}}),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_files_that_are_no_checkpoint(message: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    path.write_bytes(FOREIGN[message])
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        load_vae(path)
    assert "vae.safetensors" in str(error.value)
    assert str(error.value).endswith(".")
    info = inspect_vae(path)
    assert info.problem == str(error.value) and info.config is None
    assert info.file_size == (0 if message == "has no tensors" else path.stat().st_size)  # no file with a tensor


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere.safetensors does not exist. Check the path"):
        load_vae(tmp_path / "nowhere.safetensors")


def test_truncation(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_single_file(make(fields(32)), path)
    raw = path.read_bytes()
    for length in (9, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match="(truncated|too few).* Download or copy it again"):
            load_vae(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(number: float, tmp_path: Path) -> None:
    vae = make(fields(32, 64))
    weights = {key: torch.full_like(weight, number) for key, weight in ldm(vae).items()}
    save_file(weights, tmp_path / "vae.safetensors")
    small = sum(weight.ndim == 1 for weight in weights.values())
    with pytest.raises(CheckpointError, match=rf"not finite \({small} of the {small} biases and norms"):
        load_vae(tmp_path / "vae.safetensors")
    one = ldm(vae)
    one["decoder.norm_out.bias"][3] = number
    save_file(one, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=rf"1 of the {small} .*such as decoder.conv_norm_out.bias"):
        load_vae(tmp_path / "vae.safetensors")


def test_large_finite_half_precision_weights_are_no_error(tmp_path: Path) -> None:
    vae = make(fields(64)).half()
    torch.nn.init.constant_(vae.decoder.conv_norm_out.bias, 65504.0)  # their sum is beyond half precision
    save_single_file(vae, tmp_path / "vae.safetensors")
    assert_same_weights(load_vae(tmp_path / "vae.safetensors"), vae)


def test_a_misaligned_tensor_is_copied(tmp_path: Path) -> None:
    values = torch.arange(4, dtype=torch.float32)
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [1, 17]},
        "none": {"dtype": "F32", "shape": [0], "data_offsets": [17, 17]},
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors(header, b"\x07" + values.numpy().tobytes()))
    source = open_tensor_file(path)
    read = source.read(["b", "none"])
    assert torch.equal(read["b"], values)
    assert read["none"].shape == (0,)
    assert {name: t.tolist() for name, t in source.read(["a"]).items()} == {"a": [7]}


def test_reads_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    } | {"scalar": torch.tensor(3.0), "fp8": torch.ones(3).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    source = open_tensor_file(tmp_path / "x.safetensors")
    assert source.metadata == {"a": "b"}
    read, expected = source.read(source.tensors), load_file(tmp_path / "x.safetensors")
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else True


def test_a_copy_depends_on_nothing(file: Path) -> None:
    """What is written over a file meanwhile is in no copy, not even in one that nobody has looked at."""
    save_file({"a": torch.zeros(10_000)}, file)
    copy = open_tensor_file(file).read(["a"], mapped=False)["a"]
    with open(file, "r+b") as opened:
        opened.seek(-4, 2)
        opened.write(struct.pack("<f", 5))
    assert copy[-1] == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_was_cut_after_it_was_listed(mapped: bool, file: Path) -> None:
    save_file({"a": torch.zeros(10)}, file)
    source = open_tensor_file(file)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"vae\.safetensors ends before its last tensor: truncated\. Download"):
        source.read(["a"], mapped)


def test_a_file_system_that_cannot_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make(fields(32))
    save_single_file(vae, tmp_path / "vae.safetensors")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no mapping here")

    monkeypatch.setattr("vae_core.checkpoints.tensor_file.mmap.mmap", refuse)
    assert_same_weights(load_vae(tmp_path / "vae.safetensors"), vae)


def test_8_bit_floats_are_widened_exactly(tmp_path: Path) -> None:
    weights = {key: weight.to(torch.float8_e4m3fn) for key, weight in ldm(make(fields(32))).items()}
    save_file(weights, tmp_path / "fp8.safetensors")
    assert inspect_vae(tmp_path / "fp8.safetensors").dtype == torch.float8_e4m3fn
    loaded = load_vae(tmp_path / "fp8.safetensors")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.state_dict()["decoder.conv_in.weight"].float(), weights["decoder.conv_in.weight"].float())


def test_types_that_are_no_weights(tmp_path: Path) -> None:
    weights = {key: weight.to(torch.int8) for key, weight in ldm(make(fields(32))).items()}
    save_file(weights, tmp_path / "int8.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of type int8: it is quantised"):
        load_vae(tmp_path / "int8.safetensors")
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    (tmp_path / "f4.safetensors").write_bytes(raw_safetensors(header, b"\x07"))
    source = open_tensor_file(tmp_path / "f4.safetensors")
    with pytest.raises(CheckpointError, match="a number type that torch does not have"):
        read_mapped(tmp_path / "f4.safetensors", source.tensors)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_raise_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(3.0), "b": torch.ones(2, 2)}, path, metadata={"format": "pt"})
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 29))
    raw[position] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(VAEError):
        source = open_tensor_file(path)
        source.read(name for name, info in source.tensors.items() if info.dtype)
