"""Pickles: nothing in them runs, whatever they contain, and honest ones load."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.files import assert_same_weights, ldm
from given.models import fields, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_core import AutoencoderKL, CheckpointError, UnsafeCheckpointError, VAEError, inspect_vae, load_vae
from vae_core.checkpoints import allowed, machine, pickled, unpickler
from vae_core.checkpoints.open_file import open_tensor_file

PROTOCOLS = (0, 1, 2, 3, 4, 5)


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return make(fields(32))


def pack(program: bytes, path: Path, legacy: bool = False) -> Path:
    """A torch file whose structure is this pickle."""
    if legacy:
        path.write_bytes(b"".join(pickle.dumps(n, 2) for n in (pickled.LEGACY_MAGIC, 1001, {})) + program)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/version", "3\n")
    return path


def witness(path: Path) -> str:
    """A shell command that leaves a trace."""
    return f'"{sys.executable}" -c "open({str(path)!r}, chr(119))"' if os.name == "nt" else f"touch {path}"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_is_refused_by_name_and_not_made(protocol: int, legacy: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    program = pickle.dumps({"state_dict": {}, "epoch": Calls(os.system, witness(trace))}, protocol)
    path = pack(program, tmp_path / "vae.ckpt", legacy)
    for function in (load_vae, AutoencoderKL.from_single_file):
        with pytest.raises(UnsafeCheckpointError, match=rf"vae.ckpt asks for {os.system.__module__}.system") as error:
            function(path)
        assert str(error.value).endswith("get the weights as safetensors, or save a plain state dict.")
        assert inspect_vae(path).problem == str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "function, name",
    [
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (getattr, "builtins.getattr"),
        (open, "(_?io|builtins).open"),
        (__import__, "builtins.__import__"),
        (subprocess.Popen, "(subprocess|commands).Popen"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
        (pickle.loads, "_?pickle.loads"),
        (torch.nn.Linear, "torch.nn.modules.linear.Linear"),
        (os.remove, "(posix|nt).(remove|unlink)"),
    ],
)
def test_what_may_not_be_named(function: Any, name: str, tmp_path: Path) -> None:
    for protocol in (2, 4):
        path = pack(pickle.dumps([Calls(function, "1")], protocol), tmp_path / "x.pt")
        with pytest.raises(UnsafeCheckpointError, match=name):
            open_tensor_file(path)


HAND_WRITTEN = {
    "INST": b"(S'touch TRACE'\niposix\nsystem\n.",
    "GLOBAL and REDUCE": b"cposix\nsystem\n(S'touch TRACE'\ntR.",
    "STACK_GLOBAL": b"\x8c\x05posix\x8c\x06system\x93(S'touch TRACE'\ntR.",
    "OBJ": b"(cposix\nsystem\nS'touch TRACE'\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'touch TRACE'\nt\x81.",
    "a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    "through an allowed module": b"cnumpy.f2py\nos.system\n(S'touch TRACE'\ntR0cposix\nsystem\n.",
    "numpy's own exec": b"cnumpy.testing._private.utils\nrunstring\n(S'import os'\n}tR0cposix\nsystem\n.",
    "extension registry": b"\x82\x01.",
    "a builtin by Python 2's name": b"c__builtin__\neval\n(S'1'\ntR.",
    "BUILD on a shared function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'name'\nS'x'\nsb.",
    "BUILD of a class": b"ccollections\nOrderedDict\n(N}S'keys'\nS'x'\nstb.",
    "BUILD of a torch type": b"ctorch\nfloat32\n}S'x'\nI1\nsb.",
    "a reference of another kind": b"(S'module'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI1\ntQ.",
    "a reference that is no tuple": b"S'storage'\nQ.",
    "a reference to no storage class": b"(S'storage'\nccollections\nOrderedDict\nS'0'\nS'cpu'\nI1\ntQ.",
    "a rebuilder with a strange function": b"ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nN)NtR.",
    "a tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n))I0\nNtR.",
    "bytes by another codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\ntR.",
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
@pytest.mark.parametrize("legacy", [False, True])
def test_hand_written_programs(name: str, legacy: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = pack(HAND_WRITTEN[name].replace(b"TRACE", str(trace).encode()), tmp_path / "x.pt", legacy)
    with pytest.raises(CheckpointError):
        load_vae(path)
    assert not trace.exists()
    assert OrderedDict.keys is not None and allowed.Rebuild("x").name == "x"


@pytest.mark.parametrize(
    "program",
    [
        b"Nr\xff\xff\xff\x7f.",
        b"\x8e" + bytes(7) + b"\x10a.",
        b"(" * 50_000 + b"t" * 50_000 + b".",
        b"N" + b"\x85" * 50_000 + b".",
    ],
    ids=["memo", "bytes", "tuples in tuples", "tuples of one"],
)
def test_short_programs_that_ask_for_much_memory(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt "):
        load_vae(pack(program, tmp_path / "x.pt"))


def test_a_file_cannot_bend_what_the_next_one_meets(tmp_path: Path) -> None:
    """BUILD of a class is refused; of an object that is passed over it changes nothing."""
    program = b"comegaconf\nThing\n}S'append'\nccollections\nOrderedDict\nsb."
    with pytest.raises(UnsafeCheckpointError, match="changes the attributes of a Dummy"):
        unpickler.load(io.BytesIO(program), len(program), "a", machine.time_limit())
    program = b"comegaconf\nThing\n)R}S'append'\nccollections\nOrderedDict\nsb."
    thing, _ = unpickler.load(io.BytesIO(program), len(program), "a", machine.time_limit())
    assert thing is allowed.PLACEHOLDER and not hasattr(thing, "append")


def test_training_objects_are_passed_over_and_not_imported(vae: AutoencoderKL, tmp_path: Path) -> None:
    """What a training script leaves beside the weights; its classes need not be installed."""
    lightning = pathlib.Path(tmp_path / "pytorch_lightning")
    (lightning / "callbacks").mkdir(parents=True)
    (lightning / "__init__.py").write_text("", encoding="utf-8")
    (lightning / "callbacks" / "__init__.py").write_text(
        "class Monitor:\n"
        "    def __init__(self): self.best = 1\n"
        "    def __setstate__(self, state): raise RuntimeError('run')\n"
        "class Names(dict): pass\n"
        "class Steps(list): pass\n",
        encoding="utf-8",
    )
    path = tmp_path / "model.ckpt"
    script = (
        "import sys, torch, pytorch_lightning.callbacks as c\n"
        "extra = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.save({**extra, 'callbacks': {c.Monitor: c.Monitor(), 'x': c.Names(a=c.Steps([1]))}}, sys.argv[2])"
    )
    content = {
        "epoch": 3,
        "state_dict": {**ldm(vae), "loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(1)},
        "hyper_parameters": argparse.Namespace(lr=1e-4, path=pathlib.PurePosixPath("a")),
        "counts": defaultdict(int, a=1),
        "numbers": [1 + 2j, range(3), slice(1), {1, 2}, bytearray(b"a")],
        "optimizer_states": [{"state": defaultdict(dict, a={}), "lr": np.float64(0.1), "betas": np.arange(2)}],
        "set": {1, 2},
        "bytes": b"abc",
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "device": torch.device("cpu"),
    }
    torch.save(content, tmp_path / "extra.pt")
    subprocess.run([sys.executable, "-c", script, tmp_path / "extra.pt", path], check=True, cwd=tmp_path)
    assert b"pytorch_lightning" in path.read_bytes()
    assert_same_weights(load_vae(path), vae)
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("legacy", [False, True])
def test_views_strides_and_shared_storages(vae: AutoencoderKL, legacy: bool, tmp_path: Path) -> None:
    """Tensors that are windows into one storage, or transposed in it."""
    weights = vae.state_dict()
    flat = torch.cat([torch.zeros(3), *(w.flatten() for w in weights.values())])
    offset, shared = 3, {}
    for key, weight in weights.items():
        shared[key] = flat[offset : offset + weight.numel()].view(weight.shape)
        offset += weight.numel()
    query = "decoder.mid_block.attentions.0.to_q.weight"
    shared[query] = weights[query].t().contiguous().t()
    path = tmp_path / "vae.pt"
    torch.save(shared, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_vae(path)
    assert_same_weights(loaded, vae)
    assert loaded.decoder.conv_in.weight.untyped_storage().nbytes() == loaded.decoder.conv_in.weight.numel() * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_types(vae: AutoencoderKL, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {key: weight.to(dtype) for key, weight in ldm(vae).items()}
    torch.save(weights, tmp_path / "vae.pt")
    loaded = load_vae(tmp_path / "vae.pt")
    assert loaded.dtype == dtype
    assert torch.equal(loaded.decoder.conv_in.weight, weights["decoder.conv_in.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_one_clear_error(vae: AutoencoderKL, legacy: bool, tmp_path: Path) -> None:
    whole = tmp_path / "vae.pt"
    torch.save(ldm(vae), whole, _use_new_zipfile_serialization=not legacy)
    raw = whole.read_bytes()
    cut = tmp_path / "cut.pt"
    for length in [0, 1, 2, 5, 20, 100, 1000, len(raw) // 2, len(raw) - 30, len(raw) - 1]:
        cut.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt .*(Download|safetensors)"):
            load_vae(cut)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    """A byte changed anywhere in the structure: it loads, or it is an error of ours."""
    stream = io.BytesIO()
    torch.save({"a": torch.arange(3), "b": {"c": [1.5, "x", {2}]}}, stream, _use_new_zipfile_serialization=False)
    raw = bytearray(stream.getvalue())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt"
    path.write_bytes(raw)
    with contextlib.suppress(VAEError):
        open_tensor_file(path)


def test_tensors_that_reach_out_of_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(4, dtype=torch.float32)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in contents if name.endswith("data.pkl"))
    assert contents[program].count(b"K\x04") == 2  # the storage's size, then the shape
    head, _, tail = contents[program].rpartition(b"K\x04")
    contents[program] = head + b"K\x05" + tail
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="reaches beyond the end of its storage"):
        open_tensor_file(path)


def test_files_that_are_no_weights(vae: AutoencoderKL, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="is a list, not a state dict"):
        load_vae(path)
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="has no tensors"):
        load_vae(path)
    path.write_bytes(pickle.dumps({"weights": [1, 2]}, 2))
    with pytest.raises(CheckpointError, match="is a pickle, but not a torch file"):
        load_vae(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "text" * 30)
    with pytest.raises(CheckpointError, match="is a zip archive, but not a torch file"):
        load_vae(path)
    torch.save(ldm(vae), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        load_vae(path)
    torch.save(vae, path)
    with pytest.raises(CheckpointError, match="has a whole model in it, .* nothing was run"):
        load_vae(path)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
    with pytest.raises(CheckpointError, match="TorchScript program"):
        load_vae(path)


UNNAMED: dict[str, tuple[Any, list[str]]] = {
    "a tensor": (torch.zeros(1), ["latent"]),
    "a list": ([torch.zeros(1), torch.ones(1)], ["latent.0", "latent.1"]),
    "a tuple": ((torch.zeros(1),), ["latent.0"]),
    "a list of other things": ([1, torch.zeros(1)], ["latent.1"]),
    "a dictionary": ({"a": torch.zeros(1)}, ["a"]),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_tensors_without_names_are_given_one(name: str, tmp_path: Path) -> None:
    content, names = UNNAMED[name]
    torch.save(content, tmp_path / "x.pt")
    assert list(open_tensor_file(tmp_path / "x.pt", "latent").tensors) == names
    if not isinstance(content, dict):
        with pytest.raises(CheckpointError, match="not a state dict"):
            open_tensor_file(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [[], (), 1, "a"])
def test_what_has_no_tensor_is_given_no_name(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"is a {type(content).__name__}, not a state dict"):
        open_tensor_file(tmp_path / "x.pt", "latent")


def test_a_storage_smaller_than_promised(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.arange(4, dtype=torch.float32)}, stream, _use_new_zipfile_serialization=False)
    raw = stream.getvalue()
    path = tmp_path / "x.pt"
    path.write_bytes(raw[:-24] + struct.pack("<q", 3) + raw[-16:])
    with pytest.raises(CheckpointError, match="3 numbers instead of 4"):
        open_tensor_file(path)
