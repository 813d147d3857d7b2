"""The corpus of hostile files, by classes: each is one sentence, soon, in little memory; honest ones beside load."""

from __future__ import annotations

import copyreg
import itertools
import json
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    MARK,
    NONE,
    STOP,
    Zip,
    calls,
    dictionary,
    entry,
    header,
    integer,
    legacy,
    named,
    remembered,
    stacked,
    storage,
    tensor,
    text,
    zipped,
)
from safetensors import SafetensorError, safe_open
from vaes import assert_same_weights, fields, ldm, make

from vae_core import CheckpointError, UnsafeCheckpointError, VAEError, inspect_vae, load_vae
from vae_core.checkpoints.open_file import open_tensor_file
from vae_core.checkpoints.safetensors_file import MAX_TENSORS

SECONDS, BYTES = 2, 64 << 20  # that a refusal may take beside the file itself


def refused(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """What is said of a file that is refused: the same by all functions, as one sentence with its name."""
    with pytest.raises(kind) as error:
        open_tensor_file(path)
    for function in (load_vae, inspect_vae):
        with pytest.raises(kind) as same:
            function(path)
        assert str(same.value) == str(error.value)
    message = str(error.value)
    assert path.name in message and message.endswith(".") and len(message) < 700
    return message


def bounded(path: Path) -> str:
    """The same within two seconds and 64 MiB beyond the file."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(CheckpointError) as error:
            open_tensor_file(path)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BYTES + path.stat().st_size, f"{peak / 2**20:.0f} MiB"
    assert seconds < SECONDS * 5, f"{seconds:.1f} s"  # tracing takes four fifths of it
    assert len(str(error.value)) < 700
    return str(error.value)


# Names and calls.

NAMES = [
    *("os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.open"),
    *("io.open", "builtins.getattr", "builtins.__import__", "subprocess.Popen", "subprocess.check_output"),
    *("torch.load", "torch.hub.load", "torch.serialization.load", "pickle.loads", "_pickle.loads", "marshal.loads"),
    *("operator.attrgetter", "operator.methodcaller", "functools.partial", "pydoc.locate", "pkgutil.resolve_name"),
    *("sys.modules", "types.CodeType", "types.FunctionType", "runpy.run_path", "timeit.timeit", "cProfile.run"),
    *("code.interact", "code.InteractiveInterpreter", "idlelib.run.Executive", "lib2to3.pgen2.grammar.Grammar.loads"),
    *("pip.main", "pip._internal.main", "pty.spawn", "uuid._get_command_stdout", "ctypes.CDLL", "shutil.rmtree"),
    *("asyncio.unix_events._UnixSubprocessTransport._start", "logging.FileHandler", "logging.config._resolve"),
    *("numpy.f2py.crackfortran.getlincoef", "numpy.f2py.os.system", "numpy.testing._private.utils.runstring"),
    *("numpy.load", "numpy.core.multiarray.fromfile", "numpy.ctypeslib.load_library", "numpy.lib.npyio.load"),
    *(
        "torch.utils.collect_env.run",
        "torch.utils.bottleneck.__main__.run_autograd_prof",
        "torch._inductor.codecache.x",
    ),
    *(
        "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
        "torch._dynamo.guards.GuardBuilder.get",
    ),
    *("torch.utils._config_module.ConfigModule.load_config", "torch.utils.data.datapipes.utils.decoder.basichandlers"),
    *(
        "torch.jit.unsupported_tensor_ops.execWrapper",
        "torch.distributed.rpc.internal._run_function",
        "torch.nn.Linear",
    ),
    *("lightning.fabric.utilities.cloud_io._load", "pytorch_lightning.trainer.os.system", "omegaconf.omegaconf.os"),
    *("transformers.utils.hub.subprocess", "accelerate.commands.launch.main", "torch.optim.lr_scheduler.partial"),
    *("collections.OrderedDict.fromkeys", "builtins.dict.__init__", "torch.FloatStorage.from_file", "webbrowser.open"),
    *(
        "__main__.x",
        "copyreg._reconstructor",
        "builtins.map",
        "builtins.type",
        "builtins.setattr",
        "builtins.breakpoint",
    ),
]


@pytest.mark.parametrize("full", NAMES)
def test_names_that_could_run_code_are_refused_by_name(full: str, tmp_path: Path) -> None:
    """By every instruction that names and every one that calls, in both forms, whatever is done with the result."""
    module, _, name = full.rpartition(".")
    for i, (how, by) in enumerate(
        itertools.product(("REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"), (named, stacked, remembered))
    ):
        program = calls(by(module, name), "x")[how]
        whole = (program + STOP, program + b"0N" + STOP, b"}" + text("a") + program + b"s.")[i % 3]
        path = (zipped if i % 2 else legacy)(whole, tmp_path / f"{i}.pt")
        assert f"asks for {full}," in refused(path, UnsafeCheckpointError) if i < 2 else True
        with pytest.raises(UnsafeCheckpointError, match="asks for"):
            open_tensor_file(path)


@pytest.mark.parametrize("full", ["posix.system", "builtins.eval", "collections.OrderedDict", "omegaconf.DictConfig"])
def test_inst_makes_nothing(full: str, tmp_path: Path) -> None:
    module, _, name = full.rpartition(".")
    refused(zipped(MARK + text("x") + f"i{module}\n{name}\n".encode() + STOP, tmp_path / "x.pt"), UnsafeCheckpointError)


ODD_NAMES = {
    "an integer for a module": b"K\x01" + text("system") + b"\x93.",
    "bytes for a name": text("posix") + b"C\x06system\x93.",
    "a list for a module": b"]" + text("system") + b"\x93.",
    "not UTF-8": text(b"\xff\xfe") + text("system") + b"\x93.",
    "a surrogate": text(b"\xed\xa0\x80") + text("system") + b"\x93.",
    "from a memo that is not there": b"h\x07h\x08\x93.",
    "an empty name": named("", "") + STOP,
    "Python 2's builtins": named("__builtin__", "eval") + text("1") + b"\x85R.",
    "a line break in it": text("posix\nsystem") + text("x") + b"\x93.",
    "a megabyte of name": text("a" * 1_000_000) + text("b") + b"\x93.",
    "the escape of a terminal": text("\x1b[2J") + text("b") + b"\x93.",
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(name: str, tmp_path: Path) -> None:
    message = refused(zipped(ODD_NAMES[name], tmp_path / "x.pt"))
    assert "\x1b" not in message and "\n" not in message


def test_the_extension_registry_is_not_asked(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    copyreg._extension_cache[240] = os.system  # type: ignore[attr-defined]
    try:
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00", b"\x82\x01"):
            refused(zipped(code + text("true") + b"\x85R.", tmp_path / "x.pt"), UnsafeCheckpointError)
    finally:
        copyreg.remove_extension("os", "system", 240)
        copyreg._extension_cache.pop(240, None)  # type: ignore[attr-defined]


ORDERED = named("collections", "OrderedDict") + b")R"
STATE = {
    "of a function": named("torch._utils", "_rebuild_tensor_v2") + dictionary(name=NONE) + b"b.",
    "of a class": named("collections", "OrderedDict") + dictionary(keys=NONE) + b"b.",
    "of a number type": named("torch", "float32") + dictionary(x=NONE) + b"b.",
    "of a dummy's class": named("omegaconf", "DictConfig") + dictionary(__setstate__=NONE) + b"b.",
    "of a dictionary": b"}" + dictionary(items=NONE) + b"b.",
    "of a list": b"]" + dictionary(append=NONE) + b"b.",
    "items of a state dict": ORDERED + dictionary(items=named("omegaconf", "A")) + b"b.",
    "keys of a state dict": ORDERED + dictionary(__iter__=NONE) + b"b.",
    "by slots": ORDERED + NONE + dictionary(items=NONE) + b"\x86b.",
    "of a tensor": tensor(storage(1), (1,), (1,)) + dictionary(shape=NONE) + b"b.",
    "SETITEMS of a tensor": tensor(storage(1), (1,), (1,)) + MARK + text("a") + NONE + b"u.",
    "SETITEM of a list": b"]" + integer(5) + NONE + b"s.",
    "SETITEM of a string": text("a") + text("a") + NONE + b"s.",
    "APPENDS to a dictionary": b"}" + MARK + NONE + b"e.",
    "APPEND to a storage": storage(1) + NONE + b"a.",
    "APPENDS to a set": b"\x8f" + MARK + NONE + b"e.",
    "ADDITEMS to a list": b"]" + MARK + NONE + b"\x90.",
    "ADDITEMS to a frozen set": MARK + b"\x91" + MARK + NONE + b"\x90.",
    "a call of a tensor": tensor(storage(1), (1,), (1,)) + b")R.",
    "a call of a text": text("eval") + b")R.",
    "a dictionary of a number": named("builtins", "dict") + integer(5) + b"\x85R.",
    "a list of a text": named("builtins", "list") + text("abc") + b"\x85R.",
}


@pytest.mark.parametrize("name", STATE)
def test_state_and_items_of_what_has_none(name: str, tmp_path: Path) -> None:
    refused(zipped(STATE[name], tmp_path / "x.pt", {"archive/data/0": bytes(4)}))
    assert list(OrderedDict(a=1).items()) == [("a", 1)]


# Resources.


def doubled(depth: int) -> bytes:
    """A tuple of itself twice, again and again."""
    return b")" + b"2\x86" * depth


MEGABYTES = {
    "BYTEARRAY8 of 512 MiB": b"\x96" + (512 << 20).to_bytes(8, "little") + STOP,
    "BINBYTES8 of 2^62": b"\x8e" + (1 << 62).to_bytes(8, "little") + STOP,
    "BINUNICODE8 of 2^40": b"\x8d" + (1 << 40).to_bytes(8, "little") + STOP,
    "BINSTRING of 2^31": b"T" + (1 << 31).to_bytes(4, "little") + STOP,
    "LONG_BINPUT of 2^31": b"Nr\xff\xff\xff\x7f.",
    "LONG4 of 2^30": b"\x8b" + (1 << 30).to_bytes(4, "little") + STOP,
    "an integer of 10,000 bytes": b"\x8b" + (10_000).to_bytes(4, "little") + b"\x7f" * 10_000 + STOP,
    "an integer of 100,000 digits": b"I" + b"9" * 50_000 + b"\n.",
    "a reference that doubles": doubled(40) + b"Q.",
    "a key that doubles": b"}" + doubled(40) + b"Ns.",
    "keys that double": b"}" + MARK + doubled(40) + b"Nu.",
    "a dictionary of keys that double": MARK + doubled(40) + b"Nd.",
    "an item of a set that doubles": b"\x8f" + MARK + doubled(40) + b"\x90.",
    "a frozen set of it": MARK + doubled(40) + b"\x91.",
    "arguments that double": named("omegaconf", "A") + doubled(40) + b"R" + doubled(40) + b"\x86.",
    "a tensor of it": named("torch._utils", "_rebuild_tensor_v2") + doubled(40) + b"R.",
    "a shape of it": named("torch._utils", "_rebuild_tensor_v2")
    + MARK
    + storage(1)
    + integer(0)
    + doubled(40)
    + b"2\x89NtR.",
    "a name of it": doubled(40) + doubled(40) + b"\x93.",
    "a storage's key of it": MARK + text("storage") + named("torch", "FloatStorage") + doubled(40) + b"NK\x01tQ.",
    "bytes by a codec of it": named("_codecs", "encode") + text("a") + doubled(40) + b"\x86R.",
    "a state of it": ORDERED + doubled(40) + b"b.",
    "a result of it": doubled(40) + STOP,
    "three million lists": b"]" * 3_000_000 + STOP,
    "three million sets": b"\x8f" * 3_000_000 + STOP,
    "three million places of memory": b"N" + b"\x94" * 3_000_000 + STOP,
    "three million marks": MARK * 3_000_000 + STOP,
    "copies of a large list": named("builtins", "list")
    + b"q\x00]"
    + MARK
    + NONE * 100_000
    + b"eq\x01"
    + b"h\x00h\x01\x85R" * 10_000
    + STOP,
    "copies of a large text": named("_codecs", "encode")
    + b"q\x000"
    + text("a" * 1_000_000)
    + b"q\x010"
    + b"h\x00h\x01\x85R" * 5000
    + STOP,
    "nested 50,000 deep": MARK * 50_000 + b"t" * 50_000 + STOP,
    "tuples of one": NONE + b"\x85" * 50_000 + STOP,
}


@pytest.mark.parametrize("name", MEGABYTES)
def test_short_programs_that_would_take_memory_or_time(name: str, tmp_path: Path) -> None:
    bounded(zipped(MEGABYTES[name], tmp_path / "x.pt"))
    bounded(legacy(MEGABYTES[name], tmp_path / "y.pt"))


def test_dictionaries_in_one_another_a_million_times(tmp_path: Path) -> None:
    """Each of 200 dictionaries has the next one 20 times: 20^200 ways through them."""
    program = b"}q\x00"
    for i in range(200):
        inner = b"".join(text(f"k{j}") + b"h" + bytes([i]) for j in range(20))
        program += b"0}" + MARK + inner + b"uq" + bytes([i + 1])
    source = open_tensor_file(zipped(program + STOP, tmp_path / "x.pt"))
    assert not source.tensors


COMPRESSED = {
    "a program of three million lists": (b"]" * 3_000_000 + STOP, {}),
    "a byte order of 256 MiB": (b"}.", {"archive/byteorder": bytes(64 << 20)}),
    "a storage": (dictionary(a=tensor(storage(1000), (1000,), (1,))) + STOP, {"archive/data/0": bytes(4000)}),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_entries_are_not_opened(name: str, tmp_path: Path) -> None:
    program, others = COMPRESSED[name]
    message = bounded(zipped(program, tmp_path / "x.pt", others, zipfile.ZIP_DEFLATED))
    assert "is compressed" in message


def test_a_byte_order_that_is_none(tmp_path: Path) -> None:
    assert "byteorder" in bounded(zipped(b"}.", tmp_path / "x.pt", {"archive/byteorder": bytes(1 << 20)}))
    assert "byteorder" in refused(zipped(b"}.", tmp_path / "x.pt", {"archive/byteorder": b"middle"}))
    assert "big-endian" in refused(zipped(b"}.", tmp_path / "x.pt", {"archive/byteorder": b"big"}))


# Frames and ends.

FRAMES = {
    "of two bytes": b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00}.",
    "past the end": b"\x80\x04\x95\xff\x00\x00\x00\x00\x00\x00\x00}" + bytes(20) + STOP,
    "in another": b"\x80\x04\x95"
    + (30).to_bytes(8, "little")
    + b"\x95"
    + (10).to_bytes(8, "little")
    + b"}"
    + b"N0" * 10
    + STOP,
    "cut by an instruction": b"\x80\x04\x95" + (5).to_bytes(8, "little") + text("abcdefgh") + STOP,
    "two protocols": b"\x80\x04\x80\x02}.",
    "protocol 6": b"\x80\x06}.",
    "protocol 255": b"\x80\xff}.",
    "no end": b"\x80\x02}",
    "two objects": b"}}.",
    "no object": b".",
    "a mark left": b"}(.",
    "a pop too many": b"0.",
    "a second program": b"}." + named("posix", "system") + text("x") + b"\x85R.",
    "an empty second program": b"}.}.",
    "a byte too many": b"}.\x00",
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_and_ends(name: str, tmp_path: Path) -> None:
    refused(zipped(FRAMES[name], tmp_path / "x.pt"))


# Tensors.

TENSORS = {
    "longer than its storage": tensor(storage(4), (5,), (1,)),
    "begins at its end": tensor(storage(4), (1,), (1,), offset=4),
    "strides beyond it": tensor(storage(4), (2,), (4,)),
    "a stride of zero": tensor(storage(4), (1 << 20, 1 << 20), (0, 0)),
    "a negative stride": tensor(storage(4), (2,), (-1,), offset=1),
    "a negative size": tensor(storage(4), (-1,), (1,)),
    "a negative offset": tensor(storage(4), (1,), (1,), offset=-1),
    "2^63 elements": tensor(storage(4), (1 << 63,), (1,)),
    "2^62 x 0": tensor(storage(4), (1 << 62, 4), (1 << 62, 1)),
    "more strides than sizes": tensor(storage(4), (4,), (1, 1)),
    "a hundred dimensions": tensor(storage(4), (1,) * 100, (1,) * 100),
    "a storage of -1": tensor(storage(-1), (1,), (1,)),
    "a storage larger than its entry": tensor(storage(5), (5,), (1,)),
    "a storage in two types": tensor(storage(4), (4,), (1,))
    + b"0"
    + tensor(storage(4, kind="HalfStorage"), (4,), (1,)),
    "a storage without an entry": tensor(storage(4, key="7"), (4,), (1,)),
    "a storage's key that is a path": tensor(storage(4, key="../data/0"), (4,), (1,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_in_their_storage(name: str, tmp_path: Path) -> None:
    refused(zipped(dictionary(a=TENSORS[name]) + STOP, tmp_path / "x.pt", {"archive/data/0": bytes(16)}))


def test_an_honest_program_by_hand_is_read(tmp_path: Path) -> None:
    """The same pieces, told the truth: a guard for all tables above."""
    program = (
        b"\x80\x02"
        + dictionary(a=tensor(storage(4), (2, 2), (2, 1)), b=tensor(storage(4), (2,), (2,), offset=1))
        + STOP
    )
    values = torch.arange(4.0)
    source = open_tensor_file(zipped(program, tmp_path / "x.pt", {"archive/data/0": values.numpy().tobytes()}))
    read = source.read(["a", "b"])
    assert read["a"].tolist() == [[0, 1], [2, 3]] and read["b"].tolist() == [1, 3]


# Zip archives.

GOOD = b"\x80\x02" + dictionary(a=tensor(storage(4), (4,), (1,))) + STOP
DATA = torch.arange(4.0).numpy().tobytes()


def good(**changes: Any) -> Zip:
    """A torch file with changes to its first entry."""
    return Zip().add("x/data.pkl", GOOD, **changes).add("x/data/0", DATA)


ARCHIVES = {
    "flags that differ": good(local_flags=1).bytes(),
    "encrypted": good(flags=1).bytes(),
    "local name unlike the central one": good(local_name="x/data.pk_").bytes(),
    "a wrong sum": good(crc=12345).bytes(),
    "two of a name": good().add("x/data.pkl", b"}.").bytes(),
    "two roots": good().add("y/data.pkl", GOOD).bytes(),
    "a root and none": good().add("data.pkl", GOOD).bytes(),
    "a prefix": good().bytes(prefix=b"MZ" * 8),
    "a pickle in front": good().bytes(prefix=b"\x80\x02}."),
    "a comment": good().bytes(comment=b"hello"),
    "a second end": good().bytes(comment=Zip().bytes()),
    "something behind the directory": good().bytes(between=b"abcd"),
    "a count too high": good().bytes(count=3),
    "a count too low": good().bytes(count=1),
    "a name that climbs": good().add("x/../../etc/passwd", b"").bytes(),
    "an absolute name": good().add("/etc/passwd", b"").bytes(),
    "a name of Windows": good().add("x\\data", b"").bytes(),
    "a size too high": good(size=1 << 20, packed=1 << 20).bytes(),
    "a size of zip64 without one": good(size=0xFFFFFFFF, packed=0xFFFFFFFF).bytes(),
    "past the end": good().add("x/data/1", b"", header=1 << 20).bytes(),
    "overlapping": good().add("x/data/1", DATA, header=0).bytes(),
    "not stored": good(method=8).bytes(),
    "an unknown method": good(method=99).bytes(),
    "empty": Zip().bytes(),
    "an archive in an archive": Zip().add("x/inner.pt", good().bytes()).bytes(),
    "arrays of NumPy": Zip().add("a.npy", b"\x93NUMPY").bytes(),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_lie(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(ARCHIVES[name])
    refused(path)


def test_archives_that_tell_the_truth(tmp_path: Path) -> None:
    """Without a sum, as torch writes on request; with data descriptors, as it always does."""
    path = tmp_path / "x.pt"
    for archive in (good(), good(crc=0), good(flags=0x808), good(flags=0x808, local_flags=0x800)):
        path.write_bytes(archive.bytes())
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
        with pytest.raises(CheckpointError) as error:
            load_vae(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert inspect_vae(path).problem == str(error.value) and len(str(error.value)) < 700


# JSON beside weights.

CONFIGS = {
    "a billion layers": {"layers_per_block": 10**9},
    "ten million levels": {"block_out_channels": [32] * 100_000},
    "no groups": {"norm_num_groups": 0},
    "negative groups": {"norm_num_groups": -32},
    "a width of a billion": {"block_out_channels": [32 * 10**9]},
    "a patch of a billion": {"patch_size": [10**9, 10**9]},
    "text for widths": {"block_out_channels": "abc"},
    "widths of nothing": {"block_out_channels": []},
    "a list for a number": {"latent_channels": [4]},
    "an object for a number": {"in_channels": {}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_cannot_be(name: str, tmp_path: Path) -> None:
    make(fields(32)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**values, **CONFIGS[name]}), encoding="utf-8")
    start = time.process_time()
    with pytest.raises(VAEError) as error:
        load_vae(tmp_path)
    assert time.process_time() - start < SECONDS
    try:
        said = inspect_vae(tmp_path).problem
    except VAEError as same:
        said = str(same)
    assert said == str(error.value)


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


# Advisories, and what they were about.


def test_cve_2025_32434_tar_archives_of_old_torch_are_not_opened(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "x.pt"
    (tmp_path / "pickle").write_bytes(named("posix", "system") + text("x") + b"\x85R.")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(tmp_path / "pickle", "pickle")
    assert "is a tar archive" in refused(path)


def test_cve_2026_24747_items_of_what_has_none_and_storages_that_lie(tmp_path: Path) -> None:
    for name in ("SETITEMS of a tensor", "SETITEM of a list", "SETITEM of a string"):
        refused(zipped(STATE[name], tmp_path / "x.pt", {"archive/data/0": bytes(4)}))
    program = dictionary(a=tensor(storage(5), (5,), (1,))) + STOP
    refused(zipped(program, tmp_path / "x.pt", {"archive/data/0": bytes(16)}))


def test_cve_2026_4538_exported_programs_are_not_opened(tmp_path: Path) -> None:
    """A .pt2 archive has no weights in torch's form, and what is pickled in it is not looked for."""
    archive = Zip().add("x/archive_format", b"pt2").add("x/data/weights/model.pt", named("posix", "system") + b".")
    (tmp_path / "x.pt2").write_bytes(archive.bytes())
    assert "0 data.pkl in it" in refused(tmp_path / "x.pt2")


def test_cve_2025_1716_pip_is_not_named(tmp_path: Path) -> None:
    program = calls(named("pip", "main"), "install")["REDUCE"] + STOP
    assert "asks for pip.main" in refused(zipped(program, tmp_path / "x.pt"), UnsafeCheckpointError)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.txt", "x", "x.gguf"])
def test_cve_2025_10155_the_ending_of_a_name_changes_nothing(name: str, tmp_path: Path) -> None:
    program = calls(named("posix", "system"), "x")["REDUCE"] + STOP
    for pack in (zipped, legacy):
        assert "asks for posix.system" in refused(pack(program, tmp_path / name), UnsafeCheckpointError)


def test_cve_2025_10156_a_wrong_sum_hides_nothing(tmp_path: Path) -> None:
    program = calls(named("posix", "system"), "x")["REDUCE"] + STOP
    path = tmp_path / "x.pt"
    path.write_bytes(Zip().add("x/data.pkl", program, crc=1).bytes())
    assert "has other bytes than were written" in refused(path)
    path.write_bytes(Zip().add("x/data.pkl", program, crc=0).bytes())
    assert "asks for posix.system" in refused(path, UnsafeCheckpointError)


def test_cve_2025_10157_names_below_a_harmless_module_are_not_harmless(tmp_path: Path) -> None:
    for module, name in (
        ("asyncio.unix_events", "x"),
        ("numpy.f2py", "x"),
        ("torch.optim.os", "system"),
        ("uuid", "os"),
    ):
        refused(zipped(calls(stacked(module, name), "x")["REDUCE"] + STOP, tmp_path / "x.pt"), UnsafeCheckpointError)


def test_ghsa_5j3x_jp52_966f_calls_after_the_end_are_seen(tmp_path: Path) -> None:
    refused(zipped(b"}." + calls(named("posix", "system"), "x")["REDUCE"] + STOP, tmp_path / "x.pt"))


def test_ghsa_mxhj_88fx_4pcv_calls_whose_result_is_popped_are_seen(tmp_path: Path) -> None:
    for program in calls(named("posix", "system"), "x").values():
        path = zipped(program + b"0}" + STOP, tmp_path / "x.pt")
        assert "asks for posix.system" in refused(path, UnsafeCheckpointError)


# Honest files, beside all of this.


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def of_an_accelerator(weight: torch.Tensor) -> Calls:
    """How torch before 2.1 wrote tensors of Apple devices, and TPUs theirs."""
    return Calls(torch._utils._rebuild_device_tensor_from_numpy, weight.numpy(), weight.dtype, "mps:0", False)


def from_cpu(weight: torch.Tensor) -> Calls:
    return Calls(torch._utils._rebuild_device_tensor_from_cpu_tensor, weight, weight.dtype, "xla:0", False)


@pytest.mark.parametrize("legacy_form", [False, True])
@pytest.mark.parametrize(
    "wrap, protocol",  # NumPy's arrays by protocol 5 are byte arrays, which torch.save does not write
    [(of_an_accelerator, 2), (of_an_accelerator, 4), (from_cpu, 2), (torch.nn.Parameter, 3), (torch.nn.Parameter, 5)],
)
def test_tensors_of_tpus_and_apple_devices(wrap: Any, protocol: int, legacy_form: bool, tmp_path: Path) -> None:
    vae = make(fields(32))
    content = {"state_dict": {key: wrap(weight.detach()) for key, weight in ldm(vae).items()}, "step": 3}
    path = tmp_path / "x.ckpt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy_form)
    assert_same_weights(load_vae(path), vae)


def test_arrays_in_columns_and_halves(tmp_path: Path) -> None:
    import numpy as np

    values = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    call = Calls(torch._utils._rebuild_device_tensor_from_numpy, values, torch.bfloat16, "xla:0", False)
    torch.save({"a": call}, tmp_path / "x.pt")
    read = open_tensor_file(tmp_path / "x.pt").read(["a"])["a"]
    assert read.dtype == torch.bfloat16 and read.tolist() == [[0, 1, 2], [3, 4, 5]]


FRAMEWORKS = {
    "deepspeed.runtime.fp16.loss_scaler": "class LossScaler: pass\nclass DynamicLossScaler(LossScaler): pass",
    "deepspeed.runtime.zero.config": "import enum\nclass ZeroStageEnum(int, enum.Enum):\n    weights = 3",
    "torch_xla.core.xla_model": "class Device: pass",
    "omegaconf.dictconfig": "class DictConfig(dict): pass",
    "accelerate.utils.dataclasses": "class DistributedType: pass",
}


def test_what_frameworks_leave_is_passed_over(tmp_path: Path) -> None:
    """DeepSpeed's and others' objects beside the weights, made by stand-ins of their classes in another process."""
    vae = make(fields(32))
    for module, source in FRAMEWORKS.items():
        parts = module.split(".")
        for depth in range(1, len(parts)):
            folder = tmp_path.joinpath(*parts[:depth])
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        tmp_path.joinpath(*parts).with_suffix(".py").write_text(source, encoding="utf-8")
    torch.save({"module": {f"module.{key}": weight for key, weight in ldm(vae).items()}}, tmp_path / "in.pt")
    script = (
        "import torch, datetime, collections\n"
        "from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler\n"
        "from deepspeed.runtime.zero.config import ZeroStageEnum\n"
        "from omegaconf.dictconfig import DictConfig\n"
        "from accelerate.utils.dataclasses import DistributedType\n"
        "scaler = DynamicLossScaler(); scaler.scale = 2.0\n"
        "extra = dict(loss_scaler=scaler, stage=ZeroStageEnum.weights, config=DictConfig(a=1),\n"
        "    now=datetime.datetime.now(), kind=DistributedType(), shapes={'a': torch.Size([1])},\n"
        "    counter=collections.Counter('aab'), ds_version='0.14',\n"
        "    generator=torch.Generator().get_state(), tuple_key={(0, 'a'): 1})\n"
        "torch.save({**torch.load('in.pt'), **extra}, 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert_same_weights(load_vae(tmp_path / "out.pt"), vae)
    assert not {"deepspeed", "torch_xla"} & set(sys.modules)


def test_quantised_tensors_are_named_and_not_called_dangerous(tmp_path: Path) -> None:
    weights = {
        k: torch.quantize_per_tensor(w.float(), 0.1, 0, torch.qint8) if w.ndim == 4 else w
        for k, w in ldm(make(fields(32))).items()
    }
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="quantised") as error:
        load_vae(tmp_path / "x.pt")
    assert not isinstance(error.value, UnsafeCheckpointError)
    assert inspect_vae(tmp_path / "x.pt").problem == str(error.value)
