"""The manner of the source: each thing has one name and one place, a line does one thing, and files are short."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "vae_core").rglob("*.py"), *(ROOT / "nodes").glob("*.py")])
FOLDERS = ("vae_core", "nodes", "tests", "tools", "benchmarks", "web/js")

# Of the same kind in two worlds, on purpose: the JAX twin's, and of the two layouts of shards, which are called alike.
TWINS = {"Level", "ModelOutput", "Opened"}


def test_no_class_of_another_kind_has_the_same_name() -> None:
    names: Counter[str] = Counter()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names.update(node.name for node in tree.body if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1 and not name.startswith("_")} == TWINS


def test_constants_have_one_place() -> None:
    """Public ones of one name and one value: what is written twice is changed once."""
    found: Counter[str] = Counter()
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and re.match(r"[A-Z][A-Z0-9_]+ = ", ast.unparse(node)):
                found[ast.unparse(node)] += 1
    assert [constant for constant, count in found.items() if count > 1] == ["MAX_NAME = 1000"]  # characters, and bytes


def packed(source: str) -> list[str]:
    """The lines that assign several values to several targets, but for those that exchange them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        value = node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            exchanged = sorted(map(ast.unparse, target.elts)) == sorted(map(ast.unparse, value.elts))
            found += [] if exchanged else [ast.unparse(node)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_line_assigns_one_value(path: Path) -> None:
    assert packed(path.read_text(encoding="utf-8")) == []


def test_packed_lines_are_found() -> None:
    found = packed("a, b = c, d\na, b = b, a\na, b = f()\na = b, c")
    assert [re.sub(r"[()]", "", line) for line in found] == ["a, b = c, d"]  # Python 3.10 puts more of them


def written(source: str) -> list[str]:
    """The calls that write to a file by its name, of which a kill or a full disk leaves a part."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        opens = re.fullmatch(r"(.+\.)?open", called) and any(
            re.fullmatch(r"[rbt]*[wax+][wbt+]*", text) for text in texts
        )
        if opens or re.search(r"\.write_(text|bytes)$", called):
            found.append(ast.unparse(node))
    return found


def test_files_are_written_whole() -> None:
    """By `write_file` and `write_together`; what is downloaded goes into a temporary folder of its own before."""
    found = {path.relative_to(ROOT).as_posix(): written(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: calls for name, calls in found.items() if calls} == {
        "vae_core/atomic.py": ["open(handle, 'wb', closefd=False)"],
        "vae_core/datasets/webdataset_layout.py": [
            "tarfile.open(fileobj=buffer, mode='w', format=tarfile.USTAR_FORMAT)"
        ],
        "vae_core/hub.py": ["open(path, 'wb')", "(folder / config.name).write_bytes(read_regular(config, MAX_BYTES))"],
    }


def read(source: str) -> list[str]:
    """The calls that open a file by its name to read it, whatever it is."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    texts = [ast.unparse(node) for node in calls]
    return [
        text
        for node, text in zip(calls, texts, strict=True)
        if re.search(r"\.read_(text|bytes)$", ast.unparse(node.func))
        or (re.fullmatch(r"(.+\.)?open", ast.unparse(node.func)) and re.search(r"'rb?t?'", text))
    ]


def test_files_of_others_are_read_as_regular_ones() -> None:
    """By `open_regular` and `read_regular`: a pipe or a device in a file's place is not waited for."""
    found = {path.relative_to(ROOT).as_posix(): read(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: calls for name, calls in found.items() if calls} == {
        "vae_core/regular_files.py": ["open(path, 'rb', opener=_opened)"],
        "vae_core/atomic.py": ["open(source, 'rb')"],  # what a save of ours has left
        "vae_core/datasets/transfer.py": ["fsspec.open(url, 'rb')"],  # not on this disk
        "nodes/report.py": ["_LOCALE.read_text(encoding='utf-8')"],  # the pack's own
        "vae_core/streaming/limits.py": ["path.read_text(errors='surrogateescape')"],  # the kernel's
        "vae_core/streaming/numba_functions.py": ["path.read_bytes()", "path.read_bytes()"],  # our own
    }


def test_writing_calls_are_found() -> None:
    source = "a.write_text('')\nopen('w')\nopen(b, 'rb')\nopen(b, mode='a+')\nb.open('xb')\nwrite_bytes(b)"
    assert written(source) == ["a.write_text('')", "open('w')", "open(b, mode='a+')", "b.open('xb')"]


def test_no_file_is_longer_than_400_lines() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".js", ".ts")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
