"""Change a module in one place at a time and see whether its tests notice: `python tools/mutate.py MODULES TESTS...`.

For example `python tools/mutate.py vae_core.streaming.stats tests/streaming/test_stats.py --most 50`. First the tests
run once, unchanged, and it is noted which of them come by which statement; a mutant is given to those that come by its
own, the quickest first. Tests that fail unchanged are named and left out. Each mutant runs in a forked process, which
has other packages imported already and the product not yet; one without end, or that takes too much memory, is killed
and counts as noticed. Prints each survivor as its line before and after, with the number of tests that came by, and
each one that a signal ended, because a machine that stands still ends some as well; ends with the numbers. The same
seed draws the same mutants.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 20  # seconds for one test of a mutant, beside ten times what it takes unchanged
LONGEST = 3600  # seconds for all tests of one
MEMORY = 8 << 30  # bytes for one mutant
VISIT = "__visited__"

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd},
}
INSTEAD = {"always": True, "never": False}


class Outcome(NamedTuple):
    """What a run of tests has come to.

    Attributes:
        code: of the process; 0 where every test passed.
        report: what the process has written, if it was asked to.
    """

    code: int
    report: dict[str, Any]


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
            found += [(number, "always"), (number, "never")]
    return found


def mutated(source: str, place: tuple[int, str]) -> tuple[ast.AST, Any, str]:
    """The whole tree with one change, the changed node, and what it was."""
    tree = ast.parse(source)
    number, kind = place
    node: Any = list(ast.walk(tree))[number]
    before = f"if {ast.unparse(node.test)}" if kind in INSTEAD else ast.unparse(node)
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
        node.test = ast.Constant(INSTEAD[kind])
    return ast.fix_missing_locations(tree), node, before


def statements(tree: ast.AST) -> dict[int, int]:
    """Number of each node in the walk -> the line of the statement of a function that it is in.

    What is not in a function's body runs when the module is imported, and is not there.
    """
    found: dict[int, int] = {}
    order = {id(node): number for number, node in enumerate(ast.walk(tree))}

    def look(node: ast.AST, line: int | None) -> None:
        if line is not None:
            found[order[id(node)]] = line
        for name, value in ast.iter_fields(node):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    inner = line is not None or (isinstance(node, ast.FunctionDef) and name == "body")
                    look(each, each.lineno if inner and isinstance(each, ast.stmt) else line)

    look(tree, None)
    return found


def with_visits(source: str, name: str) -> ast.AST:
    """A module's tree with a call before each statement of a function, which is given the module and the line."""
    tree = ast.parse(source)
    found = statements(tree)
    lines = {id(node) for number, node in enumerate(ast.walk(tree)) if number in found}
    for node in list(ast.walk(tree)):
        for part in ("body", "orelse", "finalbody"):
            block = getattr(node, part, None)
            if not isinstance(block, list) or not any(id(each) in lines for each in block):
                continue
            told = []
            for index, each in enumerate(block):
                documents = index == 0 and isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
                if isinstance(each, ast.stmt) and not documents:
                    told.append(ast.parse(f"{VISIT}({(name, each.lineno)})").body[0])
                told.append(each)
            setattr(node, part, told)
    return ast.fix_missing_locations(tree)


class Module:
    """A module of the product, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        path = ROOT / name.replace(".", "/")
        self.path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.source = self.path.read_text(encoding="utf-8")
        self.places = places(ast.parse(self.source))
        self.statements = statements(ast.parse(self.source))
        self.nodes: list[Any] = list(ast.walk(ast.parse(self.source)))

    def line(self, place: tuple[int, str]) -> int:
        """Of a change; 0 where a node has none."""
        return getattr(self.nodes[place[0]], "lineno", 0)


def modules_of(names: str) -> list[Module]:
    """Modules by their names between commas; `package.*` is all of a package that can be changed."""
    found = []
    for name in names.split(","):
        package = ROOT / name.removesuffix(".*").replace(".", "/")
        inside = sorted(package.glob("*.py")) if name.endswith(".*") else [package]
        paths = (each.parent if each.name == "__init__.py" else each.with_suffix("") for each in inside)
        found += [Module(".".join(each.relative_to(ROOT).parts)) for each in paths]
    return [each for each in found if each.places]


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads modules from trees in the place of their files, which call `visit` where `with_visits` says."""

    def __init__(self, trees: dict[str, tuple[Path, Any]], visit: Any = None) -> None:
        self.trees, self.visit = trees, visit

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.trees:
            return None
        file = self.trees[name][0]
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, file, loader=self, submodule_search_locations=folders)

    def exec_module(self, module: Any) -> None:
        file, tree = self.trees[module.__name__]
        module.__dict__[VISIT] = self.visit
        exec(compile(tree, str(file), "exec"), module.__dict__)  # noqa: S102


class Watch:
    """Of each test, the lines that it comes by, and how long it takes; and what of other packages is imported."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.tests: dict[str, tuple[float, list[tuple[str, int]]]] = {}
        self.failed: set[str] = set()
        self.report: dict[str, Any] = {"tests": self.tests}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.lines.clear()
        self.started = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tests[nodeid] = time.monotonic() - self.started, sorted(self.lines)

    def pytest_sessionfinish(self) -> None:
        self.report["failed"] = sorted(self.failed & self.tests.keys())
        self.report["modules"] = [
            name
            for name, module in sys.modules.items()
            if "site-packages" in (getattr(module, "__file__", None) or "") and getattr(module, "__name__", "") == name
        ]


class Chosen:
    """Keeps some tests of those that are found, the quickest file first, and ends the process that one does not end."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.files: dict[str, float] = {}
        for test, each in seconds.items():
            self.files[test.partition("::")[0]] = self.files.get(test.partition("::")[0], 0) + each

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self.seconds]
        items.sort(key=lambda item: (self.files[item.nodeid.partition("::")[0]], self.seconds[item.nodeid]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE + 10 * self.seconds[nodeid])

    def pytest_runtest_logfinish(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(finder: Instead, arguments: list[str], plugin: Any) -> Outcome:
    """Run tests in a process of its own with the module that the finder has."""
    with tempfile.TemporaryFile() as shared:
        child = os.fork()
        if child == 0:
            os.setsid()
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            code = 1
            with contextlib.suppress(BaseException):
                import pytest

                sys.meta_path.insert(0, finder)
                code = pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", *arguments], [plugin])
                shared.write(json.dumps(getattr(plugin, "report", {})).encode())
                shared.flush()
            os._exit(int(code))
        code = _end_of(child)
        shared.seek(0)
        return Outcome(code, json.loads(shared.read() or b"{}"))


def _end_of(child: int) -> int:
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and _resident(child) < MEMORY:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _resident(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", help="such as vae_core.streaming.stats; several between commas; vae_core.cli.*")
    parser.add_argument("tests", nargs="+", help="files or folders")
    parser.add_argument("--most", type=int, default=10**6, help="mutants of each module, drawn with the seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--lines", help="of those drawn, only the ones in these lines, such as 61,97: to try survivors again"
    )
    parser.add_argument("--marks", default="not slow", help="as pytest's -m")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    modules = modules_of(options.modules)
    marks = ["-m", options.marks]
    watch = Watch()
    trees = {each.name: (each.path, with_visits(each.source, each.name)) for each in modules}
    report = run(Instead(trees, watch.lines.add), [*marks, *options.tests], watch).report
    for test in report["failed"]:
        print(f"fails unchanged, and is left out: {test}", flush=True)
        del report["tests"][test]
    for name in report["modules"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    visits = {test: (took, set(map(tuple, lines))) for test, (took, lines) in report["tests"].items()}
    for module in modules:
        chosen = random.Random(options.seed).sample(module.places, min(options.most, len(module.places)))
        if options.lines:
            chosen = [each for each in chosen if str(module.line(each)) in options.lines.split(",")]
        try_mutants(module, chosen, marks, visits)


def try_mutants(module: Module, chosen: list[tuple[int, str]], marks: list[str], visits: dict[str, Any]) -> None:
    """Print which of these mutants survive."""
    survivors, done = 0, 0
    began = time.monotonic()
    try:
        for place in chosen:
            tree, node, before = mutated(module.source, place)
            at = module.name, module.statements.get(place[0])
            tests = {test: took for test, (took, lines) in visits.items() if at[1] is None or at in lines}
            files = sorted({test.partition("::")[0] for test in tests})
            finder = Instead({module.name: (module.path, tree)})
            done += 1
            code = run(finder, ["-x", *marks, *files], Chosen(tests)).code if tests else 0
            survivors += not code
            if not code or os.WIFSIGNALED(code):
                after = f"if {INSTEAD[place[1]]}" if place[1] in INSTEAD else ast.unparse(node)
                line = f"{module.path.relative_to(ROOT)}:{module.line(place)}"
                end = f"ended by {signal.Signals(os.WTERMSIG(code)).name}" if code else f"{len(tests)} tests"
                print(f"{line}: {before}  ->  {after}  ({end})", flush=True)
    finally:
        numbers = f"{done} of {len(module.places)} mutants, {survivors} survived"
        print(f"{module.name}: {numbers}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
