"""Hostile pickles, by classes: each is one sentence, soon, in little memory."""

from __future__ import annotations

import copyreg
import itertools
import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from given.hostile import (
    MARK,
    NONE,
    STOP,
    bounded,
    calls,
    dictionary,
    integer,
    legacy,
    named,
    refused,
    remembered,
    stacked,
    storage,
    tensor,
    text,
    zipped,
)

from vae_core import CheckpointError, UnsafeCheckpointError
from vae_core.checkpoints.open_file import open_tensor_file

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
    "a dictionary of triples": named("builtins", "dict") + b"]" + NONE * 3 + b"\x87a\x85R.",
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
@pytest.mark.thorough
def test_short_programs_that_would_take_memory_or_time(name: str, tmp_path: Path) -> None:
    bounded(zipped(MEGABYTES[name], tmp_path / "x.pt"))
    with pytest.raises(CheckpointError):
        open_tensor_file(legacy(MEGABYTES[name], tmp_path / "y.pt"))


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
    "cut by an instruction behind a line": b"\x80\x04\x95" + (7).to_bytes(8, "little") + b"I1\n0" + text("") + b"0}.",
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


def test_two_frames_and_a_line_in_the_first(tmp_path: Path) -> None:
    frames = (b"I1\n0}" + text("a"), ONE + b"s.")
    program = b"\x80\x04" + b"".join(b"\x95" + len(each).to_bytes(8, "little") + each for each in frames)
    path = zipped(program, tmp_path / "x.pt", {"archive/data/0": bytes(16)})
    assert list(open_tensor_file(path).tensors) == ["a"]


# Tensors.

ONE = tensor(storage(4), (4,), (1,))
FUNCTION = named("torch._utils", "_rebuild_tensor_v2")
ARGUMENTS = ONE.removeprefix(FUNCTION).removesuffix(b"R")  # a tuple


def rebuilt(function: bytes, inner: bytes) -> bytes:
    """A tensor of a class, which another function makes."""
    return OF_A_CLASS + MARK + function + named("torch", "Tensor") + inner + NONE + b"tR"


OF_A_CLASS = named("torch._tensor", "_rebuild_from_type_v2")
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
    "rebuilt by itself": rebuilt(OF_A_CLASS, rebuilt(FUNCTION, ARGUMENTS).removeprefix(OF_A_CLASS).removesuffix(b"R")),
    "rebuilt from a list": rebuilt(FUNCTION, ARGUMENTS.removesuffix(b"t") + b"l"),
    "rebuilt by a container": rebuilt(named("collections", "OrderedDict"), b")"),
    "a storage's key that is a path": tensor(storage(4, key="../data/0"), (4,), (1,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_in_their_storage(name: str, tmp_path: Path) -> None:
    refused(zipped(dictionary(a=TENSORS[name]) + STOP, tmp_path / "x.pt", {"archive/data/0": bytes(16)}))


def test_an_honest_program_by_hand_is_read(tmp_path: Path) -> None:
    """The same pieces with true sizes: a guard for all tables above."""
    program = (
        b"\x80\x02"
        + dictionary(
            a=tensor(storage(4), (2, 2), (2, 1)),
            b=tensor(storage(4), (2,), (2,), offset=1),
            c=rebuilt(FUNCTION, ARGUMENTS),
        )
        + STOP
    )
    values = torch.arange(4.0)
    source = open_tensor_file(zipped(program, tmp_path / "x.pt", {"archive/data/0": values.numpy().tobytes()}))
    read = source.read(["a", "b", "c"])
    assert read["a"].tolist() == [[0, 1], [2, 3]] and read["b"].tolist() == [1, 3]
    assert read["c"].tolist() == [0, 1, 2, 3]
