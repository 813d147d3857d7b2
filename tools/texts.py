"""Brings the texts about the nodes up to date: `python tools/texts.py`.

The texts of the nodes are written in `nodes/` alone. From it come `locales/en/nodeDefs.json`, whole, and the
tables of inputs and outputs in the help pages, `web/docs/<NodeId>.md` and `web/docs/<NodeId>/zh.md`; those of the
Chinese pages from `locales/zh/nodeDefs.json`, which is written by hand.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "web" / "docs"
HEADINGS = {"en": ("## Inputs", "## Outputs"), "zh": ("## 输入", "## 输出")}
COLUMNS = {"en": ("input", "output", "type", "default", "what it is"), "zh": ("输入", "输出", "类型", "默认值", "说明")}
# Choices that depend on the machine and its files.
OPEN_CHOICES = {"en": "a list", "zh": "列表"}
OPEN = ("vae_name", "device", "folder")

Nodes = dict[str, type[Any]]
Texts = dict[str, dict[str, Any]]


def load_nodes() -> Nodes:
    """The pack's nodes, loaded from its file as a host does it."""
    name = "seamless_vae_texts"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def inputs_of(node: type[Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The inputs of a node that the user sees, in their order."""
    groups = node.INPUT_TYPES()
    return {**groups.get("required", {}), **groups.get("optional", {})}


def english(nodes: Nodes) -> Texts:
    """The content of `locales/en/nodeDefs.json`."""
    return {
        name: {
            "display_name": node.DISPLAY_NAME,
            "description": node.DESCRIPTION,
            "inputs": {
                each: {"name": each, "tooltip": options["tooltip"]} for each, (_, options) in inputs_of(node).items()
            },
            "outputs": {
                str(index): {"name": each, "tooltip": node.OUTPUT_TOOLTIPS[index]}
                for index, each in enumerate(node.RETURN_NAMES)
            },
        }
        for name, node in nodes.items()
    }


def read_texts(language: str) -> Texts:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def as_json(texts: Texts) -> str:
    return json.dumps(texts, ensure_ascii=False, indent=2) + "\n"


def page_path(node_id: str, language: str) -> Path:
    """Where the front end looks for a node's help: in the user's language first, then without one."""
    return DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"


def updated_page(page: str, node: type[Any], texts: dict[str, Any], language: str) -> str:
    """A help page with its title, description and tables as the node has them now."""
    inputs, outputs = HEADINGS[language]
    lines = page.split("\n")
    lines[0], lines[2] = f"# {texts['display_name']}", texts["description"]
    return _with_table(
        _with_table("\n".join(lines), inputs, _inputs_table(node, texts, language)),
        outputs,
        _outputs_table(node, texts, language),
    )


def _with_table(page: str, heading: str, table: str) -> str:
    before, _, after = page.partition(f"{heading}\n")
    assert after, f"the page has no {heading}"
    _, sep, rest = after.partition("\n## ")
    return f"{before}{heading}\n\n{table}\n{sep}{rest}"


def _inputs_table(node: type[Any], texts: dict[str, Any], language: str) -> str:
    name, _, kind, default, what = COLUMNS[language]
    rows = [f"| {name} | {kind} | {default} | {what} |", "| --- | --- | --- | --- |"]
    for each, (type_, options) in inputs_of(node).items():
        shown = _name(each, texts["inputs"][each]["name"])
        kinds = OPEN_CHOICES[language] if each in OPEN else _type(type_)
        value = "" if "default" not in options else f"`{options['default']}`"
        rows.append(f"| {shown} | {kinds} | {value} | {texts['inputs'][each]['tooltip']} |")
    return "\n".join(rows)


def _outputs_table(node: type[Any], texts: dict[str, Any], language: str) -> str:
    _, name, kind, _, what = COLUMNS[language]
    rows = [f"| {name} | {kind} | {what} |", "| --- | --- | --- |"]
    for index, (each, type_) in enumerate(zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)):
        output = texts["outputs"][str(index)]
        rows.append(f"| {_name(each, output['name'])} | {_type(type_)} | {output['tooltip']} |")
    return "\n".join(rows)


def _name(name: str, translated: str) -> str:
    return f"`{name}`" if translated == name else f"{translated} `{name}`"


def _type(type_: Any) -> str:
    return type_ if isinstance(type_, str) else ", ".join(f"`{each}`" for each in type_)


def main() -> None:
    nodes = load_nodes()
    english_file = ROOT / "locales" / "en" / "nodeDefs.json"
    english_file.write_text(as_json(english(nodes)), encoding="utf-8", newline="\n")
    for language in HEADINGS:
        texts = read_texts(language)
        for node_id, node in nodes.items():
            path = page_path(node_id, language)
            page = updated_page(path.read_text(encoding="utf-8"), node, texts[node_id], language)
            path.write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
