"""Names from anywhere as names of files on every system."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PureWindowsPath

import pytest

from vae_core.file_names import MOST_BYTES, safe_path

NAMES = {
    "": "",
    "photo": "photo",
    "photo.v2.png": "photo.v2.png",
    "ünïcødé 图像": "ünïcødé 图像",
    # slashes
    "a/b": "a/b",
    "a\\b": "a/b",
    "/etc/passwd": "etc/passwd",
    "C:\\x\\y": "C_/x/y",
    "\\\\server\\share\\x": "server/share/x",
    "a//b/": "a/b",
    # dots and spaces
    ".": "",
    "..": "",
    "../../up": "up",
    "a/../b": "a/b",
    "a/.. /b": "a/b",
    "...": "",
    " . ": "",
    ".hidden": "hidden",
    "x.": "x",
    " x. ": "x",
    "a./b ": "a/b",
    # what Windows does not take
    'a<b>c:d"e|f?g*h': "a_b_c_d_e_f_g_h",
    "12:30": "12_30",
    "CON": "_CON",
    "con": "_con",
    "nul.txt": "_nul.txt",
    "Aux .tar.gz": "_Aux .tar.gz",
    "a/prn/b": "a/_prn/b",
    "com1": "_com1",
    "LPT9.png": "_LPT9.png",
    "com²": "_com²",
    "CONOUT$": "_CONOUT$",
    "CON.": "_CON",
    "console": "console",
    "com10": "com10",
    "lpt": "lpt",
    "null": "null",
    # control characters, and what is not text
    "a\0b": "a_b",
    "a\nb\tc\x1b[31m": "a_b_c_[31m",
    "a\x7f\x85b\u2028": "a__b_",
    "\0": "_",
    # long ones
    "x" * MOST_BYTES: "x" * MOST_BYTES,
    "x" * 201: "x" * 187 + "-84a0678c9093",
    "é" * 101: "é" * 93 + "-96cbf9775498",
    "a/" + "y" * 300: "a/" + "y" * 187 + "-9637cfead94a",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_names(name: str, tmp_path: Path) -> None:
    safe = safe_path(name)
    assert safe == NAMES[name]
    assert safe_path(safe) == safe, "a name that is safe stays as it is"
    for part in safe.split("/") if safe else ():
        assert len(os.fsencode(part)) <= MOST_BYTES and part not in (".", "..")
        assert not PureWindowsPath(part).anchor
    if safe:
        file = tmp_path / safe
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1")
        assert tmp_path in file.resolve().parents


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_names_that_are_not_text() -> None:
    assert safe_path("a\ud800b") == "a_b", "no name has it"
    assert safe_path(os.fsdecode(b"caf\xe9/x")) == os.fsdecode(b"caf\xe9/x"), "a name that this system has"
    assert len(os.fsencode(safe_path(os.fsdecode(b"\xe9" * 300)))) <= MOST_BYTES


def test_long_names_stay_different() -> None:
    assert safe_path("x" * 300 + "1") != safe_path("x" * 300 + "2")
