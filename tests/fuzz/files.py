"""Files of tensors: a VAEError, or what the file says."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from given.hostile import Zip, dictionary, header, integer, legacy, named, storage, tensor, text, zipped
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from fuzz.limits import limits, put
from vae_core import VAEError
from vae_core.checkpoints.open_file import open_tensor_file
from vae_core.checkpoints.safetensors_file import DTYPES
from vae_core.checkpoints.unpickler import _INSTRUCTIONS

LONGEST = 900  # characters of a message


def opened(path: Path) -> Any:
    """What a file lists and every tensor of it, or None if it is refused as it should be."""
    with limits(path.stat().st_size):
        try:
            source = open_tensor_file(path)
            return source, source.read(name for name, info in source.tensors.items() if info.dtype is not None)
        except VAEError as error:
            assert len(str(error)) < LONGEST
            return None


# safetensors, against the library.

NUMBERS = st.one_of(
    st.integers(0, 12),
    st.sampled_from([4, 8, -1, -0.0, 1.0, 2**31, 2**63, 2**64 - 1, 2**64, 10**30, True, None, "4", [], float("inf")]),
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(sorted(DTYPES)), st.sampled_from(["F33", "", 5, None, "f32"])),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), st.sampled_from([None, {}, "4", 4])),
        "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), st.sampled_from([None, {}, "04"])),
    },
    optional={"more": NUMBERS},
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Mostly honest: tensors one after another, then some lies."""
    entries: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.text(max_size=3), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(["F32", "F16", "U8", "BF16", "F64", "BOOL", "F4", "F8_E4M3"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = torch.Size(shape).numel() * DTYPES[dtype][1] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        entries["__metadata__"] = draw(
            st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), NUMBERS), max_size=2)
        )
    for name in draw(st.lists(st.sampled_from(sorted(entries)), max_size=1)) if entries else []:
        entries[name] = draw(st.one_of(ENTRY, NUMBERS))
    raw = bytearray(json.dumps(entries).encode())
    for _ in range(draw(st.integers(0, 1))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.sampled_from(b'{}[]",:0-.eN \\\xff\x00'))
    return header(bytes(raw), bytes(max(0, end + draw(st.sampled_from([0, 0, 0, 1, -1])))))


@given(raw=headers())
def safetensors(raw: bytes) -> None:
    as_the_library(put("x.safetensors", raw))


def as_the_library(path: Path) -> None:
    """Take a file if and only if the library takes it, with the same names."""
    raw = path.read_bytes()
    found = opened(path)
    try:
        with safe_open(path, "pt") as library:
            names = set(library.keys())
    except (SafetensorError, OSError, ValueError, RuntimeError):
        names = None
    if found is not None:
        assert names is not None, "the library refuses it"
        assert set(found[0].tensors) == names
        assert sum(info.size for info in found[0].tensors.values() if info.dtype) <= len(raw)
    elif names is not None:
        text = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
        twins = json.loads(text, object_pairs_hook=lambda pairs: pairs)
        assert text[:1] != b"{" or len(dict(twins)) < len(twins), "an honest file is refused"


# Pickles: instructions and honest pieces in any order.

PIECES = [
    *(bytes([code]) for code in sorted(_INSTRUCTIONS)),
    *(bytes([code]) for code in b"\x82\x83\x84\x96\x97\x98o"),
    *(b"}", b"]", b")", b"(", b"N", b"u.", b"s", b"t", b"R", b"b", b"Q", b"2", b"0", b".", b"e", b"a"),
    *(text("a"), text("storage"), text("cpu"), integer(0), integer(4), integer(-1), integer(1 << 70)),
    *(b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94", b"\x80\x02", b"\x80\x04", b"\x95" + (20).to_bytes(8, "little")),
    *(
        storage(4),
        storage(3, "1"),
        tensor(storage(4), (2, 2), (2, 1)),
        tensor(storage(4), (9,), (1,)),
        dictionary(a=b"N"),
    ),
    *(named("collections", "OrderedDict"), named("torch._utils", "_rebuild_tensor_v2"), named("torch", "FloatStorage")),
    *(
        named("torch._utils", "_rebuild_parameter"),
        named("torch._tensor", "_rebuild_from_type_v2"),
        named("torch", "Size"),
    ),
    *(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), named("numpy", "dtype"), text("f4")),
    *(named("torch._utils", "_rebuild_device_tensor_from_numpy"), named("_codecs", "encode"), named("omegaconf", "A")),
    *(named("builtins", "set"), named("builtins", "list"), named("collections", "defaultdict"), named("os", "system")),
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14), whole=st.booleans(), old=st.booleans())
def pickles(pieces: list[bytes], whole: bool, old: bool) -> None:
    program = b"".join(pieces)
    program = dictionary(a=program) + b"." if whole else program + b"."
    path = put("x.ckpt", b"")
    if old:
        legacy(program, path, pickle.dumps(["0"], 2), (4).to_bytes(8, "little") + bytes(16))
    else:
        zipped(program, path, {"archive/data/0": bytes(16), "archive/data/1": bytes(12)})
    opened(put(path.name, path.read_bytes()))


# Zip archives: every field of an honest one may lie.

HONEST = b"\x80\x02" + dictionary(a=tensor(storage(4), (4,), (1,))) + b"."
LIES = {
    "flags": st.sampled_from([0, 1, 8, 0x40, 0x800, 0xFFFF]),
    "local_flags": st.sampled_from([0, 1, 8, 0x800]),
    "method": st.sampled_from([0, 8, 99]),
    "crc": st.sampled_from([0, 1]),
    "size": st.sampled_from([0, 1, 16, 2**31, 2**32 - 1]),
    "packed": st.sampled_from([0, 1, 16, 2**31, 2**32 - 1]),
    "header": st.sampled_from([0, 1, 100, 2**31, 2**32 - 1]),
}


@given(data=st.data())
def zip_archives(data: st.DataObject) -> None:
    archive = Zip()
    names = [
        "x/data.pkl",
        "x/data/0",
        *data.draw(st.lists(st.sampled_from(["x/version", "x/data/1", "../a", ""]), max_size=2)),
    ]
    liar = data.draw(st.integers(0, 2 * len(names)))
    for i, name in enumerate(names):
        content = HONEST if i == 0 else bytes(16)
        lies = data.draw(st.fixed_dictionaries({}, optional=LIES)) if i == liar else {}
        archive.add(name, content, **lies)  # type: ignore[arg-type]
    raw = bytearray(
        archive.bytes(
            prefix=data.draw(st.sampled_from([b"", b"", b"", b"PK\x03\x04", b"\x80\x02}."])),
            comment=data.draw(st.sampled_from([b"", b"", b"", b"PK\x05\x06", b"hello"])),
            count=data.draw(st.sampled_from([None, None, None, 0, 1, 0xFFFF])),
            between=data.draw(st.sampled_from([b"", b"", b"", b"PK\x06\x07" + bytes(16)])),
        )
    )
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = opened(put("x.bin", raw))
    if found is not None and "a" in found[1]:
        assert found[1]["a"].shape == (4,)
