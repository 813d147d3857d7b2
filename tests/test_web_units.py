"""The unit tests of the web side's pure modules, which Node.js runs: `npm test`. And what its linter cannot see."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
UNITS = sorted((ROOT / "tests" / "web" / "unit").glob("*.test.js"))
MODULES = sorted([*(ROOT / "web" / "js").rglob("*.js"), *(ROOT / "web" / "js").rglob("*.d.ts")])


def test_the_pure_modules_of_the_page() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"Node.js {version.strip()} has no timers for tests; 20 is the first that has")
    assert UNITS
    # Node.js runs files in an environment that says so without their tests, as part of another run.
    environment = {name: value for name, value in os.environ.items() if name != "NODE_TEST_CONTEXT"}
    command = [node, "--test", *map(str, UNITS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"^\S+ fail 0$", done.stdout, re.MULTILINE), done.stdout[-2000:]
    passed = re.search(r"^\S+ pass (\d+)$", done.stdout, re.MULTILINE)
    written = sum(len(re.findall(r"^test\(", file.read_text(encoding="utf-8"), re.MULTILINE)) for file in UNITS)
    assert passed is not None and int(passed[1]) == written


# Words of other fields, and turns of phrase that read badly.
UNWANTED = r"pictur|\bwrap|\b(is|are) no\b|\bdraws?\b|\bstock\b|arithmetic|rehears|\bratio\b|somebody|\bperson\b|, for "


@pytest.mark.parametrize("name", ["main", "settings", "commands"])
def test_texts_use_the_fields_words(name: str) -> None:
    texts = leaves(json.loads((ROOT / "locales" / "en" / f"{name}.json").read_text(encoding="utf-8")))
    assert [each for each in texts if re.search(UNWANTED, re.sub(r"\{\w+\}", "", each), re.IGNORECASE)] == []


def test_every_reason_of_a_jobs_way_can_be_translated() -> None:
    """Those that no patch gives: a plan on the page is one of a file's model."""
    texts = json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["seamlessVae"]
    known = {text for key, text in texts.items() if key.startswith("because.")}
    source = (ROOT / "vae_core" / "streaming" / "choose.py").read_text(encoding="utf-8")
    of_jobs = source.split("def choose_way")[1].split("def _way_of_a_method")[0]
    of_jobs += source.split("def _way_of_a_job")[1].split("\ndef ")[0]
    ways = re.findall(r'Way\("\w+", "([^"]+)"(, False)?', of_jobs)
    assert {reason for reason, unplanned in ways if not unplanned} == known


def leaves(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for each in value.values() for text in leaves(each)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT / "web" / "js").as_posix())
def test_no_type_is_any(module: Path) -> None:
    types = re.findall(r"\{[^{}\n]*\bany\b[^{}\n]*\}|: any\b|<any\b", module.read_text(encoding="utf-8"))
    assert types == []


def test_types_have_names_of_their_own() -> None:
    """One name for one thing, over all modules."""
    text = "\n".join(module.read_text(encoding="utf-8") for module in MODULES)
    declared = re.findall(r"@typedef \{.*\} (\w+)|^(?:export )?(?:class|interface|type) (\w+)", text, re.MULTILINE)
    names = [typedef or declaration for typedef, declaration in declared]
    assert len(names) > 40 and sorted(names) == sorted(set(names))
