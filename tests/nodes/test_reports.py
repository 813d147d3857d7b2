"""What nodes report: each fact has a text in every language, whose places are those that the fact fills."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from given.nodes import Makers
from host.stand_in import Pack

pytestmark = pytest.mark.usefixtures("new_host")

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    file.parent.name: json.loads(file.read_text(encoding="utf-8"))["seamlessVae"]
    for file in (ROOT / "locales").glob("*/main.json")
}
PLACE = re.compile(r"\{(\w+)\}")
# Where a function makes a fact of any key.
GENERAL = {("report.py", "key"), ("report.py", "f'{key}.one' if count == 1 else f'{key}.many'")}


def facts() -> Iterator[Any]:
    """Patterns of keys, and the names of the values, of each fact that a node makes."""
    for file in sorted((ROOT / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute):
                continue
            name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
            if name not in ("Fact", "counted") or (file.name, ast.unparse(call.args[0])) in GENERAL:
                continue
            given = {each.arg for each in call.keywords} | ({"count"} if name == "counted" else set())
            for key in keys_of(call.args[0]):
                pattern = key + (r"\.(one|many)" if name == "counted" else "")
                yield pytest.param(pattern, given, id=f"{file.stem}, {pattern}")


def keys_of(node: ast.expr) -> list[str]:
    """Each as a pattern, in which any word may stand where one is put in."""
    if isinstance(node, ast.IfExp):
        return keys_of(node.body) + keys_of(node.orelse)
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+" for part in node.values]
        return ["".join(parts)]
    assert isinstance(node, ast.Constant) and isinstance(node.value, str), ast.dump(node)
    return [re.escape(node.value)]


FACTS = list(facts())


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(("pattern", "given"), FACTS)
def test_every_fact_has_a_text(pattern: str, given: set[str | None], language: str) -> None:
    found = [text for key, text in TEXTS[language].items() if re.fullmatch(pattern, key)]
    assert found
    for text in found:
        if None not in given:  # else they are gathered before
            assert set(PLACE.findall(text)) <= given, text
            assert PLACE.sub("", text).count("{") == 0


def test_the_facts_are_found() -> None:
    assert len(FACTS) > 30


def said(fact: Any, texts: dict[str, str]) -> str:
    """What the page makes of a fact."""
    if isinstance(fact, list):
        return texts["report.separator"].join(said(each, texts) for each in fact)
    if not isinstance(fact, dict):
        return str(fact)
    return PLACE.sub(lambda place: said(fact["values"][place[1]], texts), texts[fact["key"]])


@pytest.mark.parametrize("language", TEXTS)
def test_the_page_gets_what_the_output_says(language: str, pack: Pack, make: Makers) -> None:
    vae, latent = make.vae(), make.latent(3, 4, 10, 12)
    place = "sets/a {count} of_00001 [output]"  # a name that looks like a place
    saving = {"filename_prefix": "sets/a {count} of", "layout": "shards", "kohya_family": "auto", "dtype": "float32"}
    lists: dict[str, Any] = {name: [value] for name, value in {**saving, "vae": vae}.items()}
    reports = {
        "Inspect": pack.execute("SeamlessVAEInspect", vae=vae),
        "Inspect, of a latent": pack.execute("SeamlessVAEInspect", vae=vae, samples=latent),
        "Save": pack.execute("SeamlessLatentSave", samples=[latent], **lists),
        "Load": pack.execute("SeamlessLatentLoad", folder=place, count=2),
        "Load, of one": pack.execute("SeamlessLatentLoad", folder=place),
        "Round Trip": pack.execute("SeamlessVAERoundTrip", pixels=make.image(1, 8, 8, 3), vae=vae),
    }
    for name, done in reports.items():
        page = json.loads(json.dumps(done["ui"]["facts"]))
        lines = [said(fact, TEXTS[language]) for fact in page]
        if language == "en":
            assert "\n".join(lines) == done["ui"]["text"][0], name
        else:  # apart from names, numbers and units
            assert all(re.search("[\u4e00-\u9fff]", line) for line in lines if line[:4] not in ("PSNR", "late")), lines
