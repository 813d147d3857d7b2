"""Change a module in one place at a time and see whether its tests notice: `python tools/mutate.py MODULE TESTS...`.

For example `python tools/mutate.py vae_core.streaming.stats tests/streaming/test_stats.py --most 50`. Each mutant is
run in a forked process, which has torch imported already and the product not yet. Prints each survivor as its line
before and after; ends with the numbers.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds for one mutant; a loop without end is killed and counts as noticed

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd},
}


def places(tree: ast.AST) -> list[tuple[int, str]]:
    """(number of the node in the walk, what is done to it) for every possible change."""
    found = []
    notes = {
        id(part)
        for node in ast.walk(tree)
        for part in ast.walk(getattr(node, "annotation", None) or getattr(node, "returns", None) or ast.Pass())
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in notes:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            found.append((number, "comparison"))
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            found.append((number, "operator"))
        elif isinstance(node, ast.BoolOp):
            found.append((number, "and/or"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found.append((number, "not"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            found.append((number, "constant"))
        elif isinstance(node, ast.If | ast.IfExp):
            found.append((number, "always"))
    return found


def mutated(source: str, place: tuple[int, str]) -> tuple[ast.AST, Any, str]:
    """The whole tree with one change, the changed node, and what it was."""
    tree = ast.parse(source)
    number, kind = place
    node: Any = list(ast.walk(tree))[number]
    before = f"if {ast.unparse(node.test)}" if kind == "always" else ast.unparse(node)
    if kind == "comparison":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "operator":
        node.op = OPERATORS[type(node.op)]()
    elif kind == "and/or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif kind == "not":
        node.op = ast.UAdd()
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    else:
        node.test = ast.Constant(True)
    return ast.fix_missing_locations(tree), node, before


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a tree in the place of its file."""

    def __init__(self, module: str, path: Path, tree: Any) -> None:
        self.module, self.path, self.tree = module, path, tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)  # noqa: S102


def noticed(finder: Instead, tests: list[str]) -> bool:
    """Whether the tests fail with the module changed."""
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        code = 1
        with contextlib.suppress(BaseException):
            import pytest

            sys.meta_path.insert(0, finder)
            code = pytest.main(["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests])
        os._exit(int(code))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="such as vae_core.streaming.stats")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--most", type=int, default=10**6, help="mutants, drawn with the seed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    path = ROOT / f"{options.module.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    if noticed(Instead(options.module, path, ast.parse(source)), options.tests):
        raise SystemExit("the tests fail without any change")
    every = places(ast.parse(source))
    chosen = random.Random(options.seed).sample(every, min(options.most, len(every)))
    survivors, run = 0, 0
    try:
        for place in chosen:
            tree, node, before = mutated(source, place)
            run += 1
            if not noticed(Instead(options.module, path, tree), options.tests):
                survivors += 1
                after = "if True" if place[1] == "always" else ast.unparse(node)
                print(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {before}  ->  {after}", flush=True)
    finally:
        print(f"{options.module}: {run} of {len(every)} mutants, {survivors} survived", flush=True)


if __name__ == "__main__":
    main()
