"""What exceptions of other packages say goes into messages in one line, and cut: by `errors.in_one_line` everywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from vae_core import errors
from vae_core.errors import CheckpointError, in_one_line

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("vae_core", "nodes") for path in (ROOT / folder).rglob("*.py"))
# Their texts are this package's own sentences.
OURS = {name for name in vars(errors) if name.endswith("Error")} | {"RefusedError"}
SAFE = {"in_one_line", "reason"}  # what flattens and cuts
FACTS = {"name", "errno", "start", "filename", "status"}  # of an exception, beside what it says
LOGGING = {"debug", "info", "warning", "error", "critical"}


def called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", "") or getattr(function, "attr", "")


def arguments(node: ast.AST) -> list[ast.expr]:
    """What is passed on as it is: the arguments of a call, or what a function returns."""
    if isinstance(node, ast.Return):
        return [node.value] if node.value else []
    return [*node.args, *(each.value for each in node.keywords)] if isinstance(node, ast.Call) else []


def is_text(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression has in it, as it is, what an exception of one of these names says."""
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute) and node.attr in FACTS:
        return False
    if isinstance(node, ast.Compare):
        return False
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):  # str.partition and its like; " ".join(...)
            return any(is_text(each, names) for each in [node.func.value, *node.args])
        by_name = called(node) == "getattr" and ast.unparse(node.args[1]) == "'strerror'"
        return (called(node) in ("str", "repr") or by_name) and is_text(node.args[0], names)
    return any(is_text(child, names) for child in ast.iter_child_nodes(node))


def caught(tree: ast.AST) -> Iterator[tuple[list[ast.stmt], set[str]]]:
    """Statements, and the names that exceptions of others have there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.name and node.type:
            kinds = {
                ast.unparse(each) for each in (node.type.elts if isinstance(node.type, ast.Tuple) else [node.type])
            }
            if kinds - OURS:
                yield node.body, {node.name}
        elif isinstance(node, ast.FunctionDef) and node.name not in SAFE:
            given = {each.arg: ast.unparse(each.annotation) for each in node.args.args if each.annotation}
            if names := {name for name, kind in given.items() if kind in ("Exception", "BaseException", "OSError")}:
                yield node.body, names


def as_they_are(source: str) -> list[str]:
    """The places of a module that pass on what an exception of another package says, as it says it."""
    found = []
    for body, names in caught(ast.parse(source)):
        waiting: list[ast.AST] = list(body)
        while waiting:
            node = waiting.pop(0)
            if called(node) in SAFE or isinstance(node, ast.Compare):
                continue
            if isinstance(node, ast.Assign) and is_text(node.value, names):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            is_said = (
                (isinstance(node, ast.FormattedValue) and is_text(node.value, names))
                or (called(node) in LOGGING and any(is_text(each, names) for each in arguments(node)))
                or any(called(each) in ("str", "repr") and is_text(each, names) for each in arguments(node))
            )
            if is_said:
                found.append(f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
            waiting[:0] = ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_others_say_is_in_one_line(file: Path) -> None:
    assert as_they_are(file.read_text(encoding="utf-8")) == []


HANDLERS = {  # what is done with an `OSError` that was caught, and whether it is found
    "raise CheckpointError(f'{path}: {error}')": True,
    "raise CheckpointError(f'{path}: {error.strerror or error}')": True,
    "raise CheckpointError(f'{path}: {str(error)[:200]}')": True,
    "return Failure(key, str(error))": True,
    "return str(error)": True,
    "why = ' '.join(str(error).split())\n    return Failure(key, f'it is {why}')": True,
    "why = str(error) or 'nothing'\n    raise ValueError(f'it is {why}')": True,
    "why = getattr(error, 'strerror', None) or error\n    raise ValueError(f'it is {why}')": True,
    "logger.warning('%s: %s', path, error)": True,
    "raise CheckpointError(f'{path}: {in_one_line(error)}')": False,
    "why = in_one_line(error)\n    raise ValueError(f'it is {why}')": False,
    "raise CheckpointError(f'{type(error).__name__} {error.errno}')": False,
    "if 'worker' not in str(error): raise": False,
    "if is_missing(error): raise": False,
}


@pytest.mark.parametrize(("body", "is_found"), HANDLERS.items())
def test_what_is_found(body: str, is_found: bool) -> None:
    for kinds in ("OSError", "(VAEError, ValueError)", "CheckpointError"):
        source = f"try:\n    pass\nexcept {kinds} as error:\n    {body}\n"
        assert bool(as_they_are(source)) == (is_found and kinds != "CheckpointError")
    assert bool(as_they_are(f"def sentence(error: Exception) -> str:\n    {body}\n")) == is_found


SAID = {  # in messages
    "RuntimeError": (RuntimeError("a\nb\t c"), "a b c"),
    "a full stop at its end": (ValueError("It is not one. "), "It is not one"),
    "nothing": (AssertionError(), "AssertionError"),
    "white space": (ValueError(" \n"), "ValueError"),
    "a long text": (ValueError("ab " * 10**6), ("ab " * 100).rstrip()),
    "the system's": (FileNotFoundError(2, "No such file", "a\nb"), "No such file"),
    "a text": ("CUDA error:\n no kernel image", "CUDA error: no kernel image"),
    "an empty text": ("", ""),
    "ours, however long": (
        CheckpointError(f"{'a' * 400} is not one.\nGive another."),
        f"{'a' * 400} is not one. Give another.",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_in_one_line(case: str) -> None:
    given, said = SAID[case]
    assert in_one_line(given) == said
