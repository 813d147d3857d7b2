"""The direction of imports, read off the source: lower layers know nothing of the ones above them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import nn

PACKAGE = Path(__file__).resolve().parents[1] / "vae_core"
FILES = sorted(PACKAGE.rglob("*.py"))

# Hosts, other frameworks, and what only some extras bring: never when vae_core is imported.
FOREIGN = {"comfy", "comfy_extras", "nodes", "folder_paths", "server", "diffusers", "transformers", "accelerate"}
JAX = {"jax", "jaxlib", "flax", "optax", "msgpack"}

# module of vae_core -> modules of vae_core that it may import. A package stands for everything in it.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "read_only": {"errors"},
    "config": {"config_values", "errors", "read_only"},
    "temporaries": set(),
    "file_names": set(),
    "regular_files": set(),
    "atomic": {"file_names", "regular_files", "temporaries"},
    "image_formats": {"errors"},
    "image": {"errors", "atomic", "file_names", "image_formats", "regular_files", "tensor_kinds"},
    "metrics": {"errors", "tensor_kinds"},
    "threads": set(),
    "compile_time": set(),
    "masks": {"errors", "image", "tensor_kinds"},
    "autocast": set(),
    "preview": {"autocast"},
    "latent": {"errors", "config", "tensor_kinds"},
    "tiling.grid": {"errors"},
    "layers": set(),
    "optional": {"errors"},
    "ldm_names": set(),
    "diffusers_names": set(),
    "attention": {"config", "layers", "ldm_names", "diffusers_names", "errors", "optional", "streaming.internals"},
    "blocks": {"layers", "ldm_names", "diffusers_names", "attention", "errors", "config"},
    "posterior": {"errors", "config", "tensor_kinds"},
    "outputs": {"posterior", "streaming"},
    "damage": {"errors", "streaming", "wrappers"},
    "encoder": {"damage", "blocks", "ldm_names", "diffusers_names", "attention", "layers", "config", "errors"},
    "decoder": {"damage", "blocks", "ldm_names", "diffusers_names", "attention", "layers", "config", "errors"},
    "tensor_kinds": set(),
    "wrappers": set(),
    "patched": {"blocks", "attention", "encoder", "decoder", "streaming", "tensor_kinds"},
    "graft": {"patched", "blocks", "attention", "encoder", "decoder", "errors", "optional", "streaming"},
    "halves": {
        *("patched", "wrappers", "layers", "blocks", "attention", "encoder", "decoder", "config", "errors"),
        "streaming",
    },
    "running": {"errors", "halves", "posterior", "streaming", "tiling.grid"},
    "units": set(),
}
# These join the parts; nothing below them may import them.
TOP = {"cli", "__main__", "loading", "autoencoder_kl", "checkpoints"}
LOW = set(ALLOWED) | {"tiling.blend"}
# The JAX twin: what it computes with takes nothing of the torch side but these; what reads and writes weights takes
# the readers and writers of checkpoints too.
FLAX_ALLOWED = {"flax", "config", "errors", "tiling.grid"}
FLAX_FILES = {"flax.convert", "flax.files", "flax.pretrained_mixin", "flax.loading"}
FLAX_FILES_ALLOWED = FLAX_ALLOWED | {"checkpoints", "hub", "loading", "pretrained_mixin", "regular_files"}


def module_name(path: Path) -> str:
    """`tiling.grid` for vae_core/tiling/grid.py; a package has its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, at_import_time: bool) -> tuple[set[str], set[str]]:
    """(absolute top-level names, modules of vae_core) that a file imports.

    With `at_import_time`, imports inside functions and under TYPE_CHECKING do not count.
    """
    package = [*PACKAGE.name.split("."), *path.relative_to(PACKAGE).parent.parts]
    outside, inside = set(), set()

    def visit(node: ast.AST) -> None:
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            outside.update(alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add((node.module or "").split(".")[0])
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = package[1 : len(package) - node.level + 1]
            module = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                deeper = [*module, alias.name]
                is_module = PACKAGE.joinpath(*deeper).is_dir() or PACKAGE.joinpath(*deeper).with_suffix(".py").exists()
                inside.add(".".join(deeper if is_module else module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return outside, inside


def is_in(module: str, group: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in group)


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "vae_core")
def test_relative_inside_and_no_host_outside(path: Path) -> None:
    always, _ = imports_of(path, at_import_time=True)
    anywhere, _ = imports_of(path, at_import_time=False)
    assert "vae_core" not in anywhere, "inside the package, import relatively"
    assert not always & FOREIGN
    if not module_name(path).startswith("flax"):
        assert not always & JAX


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_direction(module: str) -> None:
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    _, inside = imports_of(path, at_import_time=False)
    assert {name for name in inside if not is_in(name, ALLOWED[module])} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "vae_core")
def test_nothing_below_imports_what_joins_it(path: Path) -> None:
    module = module_name(path)
    _, inside = imports_of(path, at_import_time=False)
    if module in LOW:
        assert not {name for name in inside if is_in(name, TOP)}
    if not is_in(module, {"cli", "__main__"}):
        assert not {name for name in inside if is_in(name, {"cli", "__main__"})}
    if not is_in(module, {"cli", "flax"}):
        assert not {name for name in inside if is_in(name, {"flax"})}


@pytest.mark.parametrize("path", [path for path in FILES if is_in(module_name(path), {"streaming"})], ids=module_name)
def test_the_engine_knows_no_model(path: Path) -> None:
    _, inside = imports_of(path, at_import_time=False)
    assert not {
        name
        for name in inside
        if not is_in(
            name, {"streaming", "tiling", "errors", "units", "atomic", "autocast", "temporary", "tensor_kinds"}
        )
    }


# What is private in torch and numba: the first five say what to look at when upgrading.
PRIVATE = {
    "compile_time",
    "graft",
    "wrappers",
    "streaming.internals",
    "streaming.numba_functions",
    "streaming.winograd_jit.lanes",
    "streaming.winograd_jit.multiply",
}


# What torch keeps on a module, and what its compiler puts there.
OF_A_MODULE = {name for name in vars(nn.Conv2d(1, 1, 1)) if name.startswith("_")}
OF_A_MODULE |= {"_conv_forward", "_call_impl", "_compiled_call_impl", "_orig_mod"}


def private_names(path: Path) -> set[str]:
    """Private names of torch and numba: dotted ones, those on modules, and imports from numba's and LLVM's inside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = {name for name in dotted if re.match(r"(torch|numba)\.", name) and re.search(r"\._[a-zA-Z]", name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & OF_A_MODULE
    strings = {each.value for each in ast.walk(tree) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    found |= strings & OF_A_MODULE
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name for name in names if re.match(r"numba\.core|llvmlite|torch\.([\w.]+\.)?_", name)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "vae_core")
def test_what_is_private_in_other_packages_is_in_one_place(path: Path) -> None:
    assert bool(private_names(path)) == (module_name(path) in PRIVATE)


HOST = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution"}


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "nodes").glob("*.py")), ids=lambda path: path.stem)
def test_nodes_ask_the_host_in_one_file(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name.split(".")[0] for node in imported if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        (node.module or "").split(".")[0] for node in imported if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not names & (HOST | {"nodes", "vae_core"})  # host.py itself imports it by name, when it is needed
    named = {
        node.value.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert path.stem == "host" or "import_module" not in path.read_text(encoding="utf-8") or not named & HOST


@pytest.mark.parametrize("path", [path for path in FILES if is_in(module_name(path), {"flax"})], ids=module_name)
def test_flax_computes_without_torch(path: Path) -> None:
    outside, inside = imports_of(path, at_import_time=False)
    on_files = module_name(path) in FLAX_FILES
    assert not {name for name in inside if not is_in(name, FLAX_FILES_ALLOWED if on_files else FLAX_ALLOWED)}
    assert on_files or "torch" not in outside


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of nodes of which each can be reached from each, by Tarjan's algorithm (1972); single nodes left out."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        numbers[node] = lowest[node] = len(numbers)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in numbers:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == numbers[node]:
            index = stack.index(node)
            group = set(stack[index:])
            del stack[index:]
            if len(group) > 1 or node in graph.get(node, ()):
                found.append(group)

    for node in sorted(graph):
        if node not in numbers:
            visit(node)
    return found


def test_no_circle_of_imports() -> None:
    """Those inside functions count, and those for types alone."""
    graph = {module_name(path): imports_of(path, at_import_time=False)[1] for path in FILES}
    assert circles(graph) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d", "f"}, "f": set(), "g": {"g", "a"}}
    assert sorted(map(sorted, circles(graph))) == [["a", "b", "c"], ["d", "e"], ["g"]]


def test_importing_vae_core_brings_nothing_foreign() -> None:
    foreign = sorted(FOREIGN | JAX)
    script = f"import sys, vae_core; print([name for name in {foreign!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_found_on_its_first_use() -> None:
    script = (
        "import sys, vae_core; assert 'torch' not in sys.modules;"
        "assert vae_core.image.from_pil and vae_core.checkpoints.families.FAMILIES;"
        "assert set(vae_core._HOMES) == set(vae_core.__all__) - {'__version__'};"
        "assert set(vae_core.__all__) <= set(dir(vae_core));"
        "[getattr(vae_core, name) for name in vae_core.__all__];"
        "assert not hasattr(vae_core, 'nonsense') and not hasattr(vae_core, '__wrapped__')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr


# The nodes.

NODES = PACKAGE.parent / "nodes"
# module of nodes -> modules of nodes that it may import; every node's own file may import all of these.
NODES_ALLOWED: dict[str, set[str]] = {
    "host": set(),
    "latents": set(),
    "previews": set(),
    "answers": set(),
    "adopt": set(),
    "prefix": set(),
    "checks": set(),
    "inputs": set(),
    "first_stage": {"latents"},
    "report": {"host", "latents"},
    "status": {"host", "answers", "previews"},
    "hub_cache": set(),
    "catalogue": {"host", "checks", "hub_cache"},
    "show": {"host", "checks"},
    "tiling": {"checks"},
    "speeds": {"host"},
    "jobs": {"host", "speeds", "status"},
    "third_party": {"host", "latents", "report", "status"},
    "autoencoder": {"host", "latents", "status", "adopt", "checks", "previews", "report", "jobs"},
    "vaes": {"host", "adopt", "autoencoder", "first_stage", "report", "status", "third_party"},
    "coding": {"checks", "latents", "status", "tiling", "vaes"},
    "wire": {"autoencoder", "checks", "first_stage", "host", "latents", "status"},
    "questions": {"answers", "catalogue", "host", "latents", "speeds", "tiling"},
    "answering": {"answers"},
    "routes": {"host", "questions", "answering", "answers"},
}


def imports_among_nodes(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(NODES.glob("*.py")), ids=lambda path: path.stem)
def test_direction_among_nodes(path: Path) -> None:
    """And no circle: what a module may import is written before it, and no node imports another."""
    before = list(NODES_ALLOWED)
    if path.stem in NODES_ALLOWED:
        allowed = NODES_ALLOWED[path.stem]
        assert allowed <= set(before[: before.index(path.stem)])
    else:
        allowed = set(before) if path.stem != "__init__" else {each.stem for each in NODES.glob("*.py")}
    assert imports_among_nodes(path) <= allowed
