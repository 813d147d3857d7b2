"""What docs/reliability.md names is there: tests, files and tools."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"\b(?:tests|tools)/[\w/]+(?:\.py)?(?:::\w+)?", DOCUMENT)))


@pytest.mark.parametrize("named", NAMED)
def test_what_is_named_is_there(named: str) -> None:
    path, _, test = named.partition("::")
    paths = [ROOT / path, *ROOT.glob(f"{path}*")]
    assert any(each.exists() for each in paths), f"{path} is not there"
    if test:
        assert re.search(rf"^\s*def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_promise_has_tests() -> None:
    promised = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("## What is promised")[1].split("\n## ")[0]
    promises = re.findall(r"^- \*\*", promised, re.MULTILINE)
    rows = DOCUMENT.split("## The promises of SECURITY.md")[1].split("\n## ")[0].count("\n| ") - 2
    assert rows >= len(promises) == 7
