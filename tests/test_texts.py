"""What people read about the nodes: names and tooltips in two languages, help pages, example workflows, what is
published. `python tools/texts.py` brings up to date what is made from the nodes.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))  # last: `fuzz` is a package of the tests, too

import texts  # noqa: E402

NODES = texts.load_nodes()
LANGUAGES = tuple(texts.HEADINGS)
CODE = sorted([*(ROOT / "nodes").rglob("*.py"), *(ROOT / "vae_core").rglob("*.py")])
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
IMAGE_BYTES = 80_000
IMAGES_OF = {"en": "images/Seamless", "zh": "images/zh/Seamless"}
# What help pages name, in italics or Chinese quotation marks, that is not on our page: of the core, and other words.
NAMED = {
    "en": re.compile(r"(?<![*\w])\*([^*\s][^*\n]*)\*(?![*\w])"),
    "zh": re.compile("“([^”]+)”"),
}
OTHER_NAMES = {
    "en": {
        *("Load VAE", "VAE Encode", "VAE Decode", "VAE Encode (for Inpainting)", "Load Checkpoint", "Int"),
        *("increment", "list", "float_exr", "Seamless"),
    },
    "zh": {
        *("加载VAE", "VAE编码", "VAE解码", "VAE编码（局部重绘）", "加载图像", "整数"),  # noqa: RUF001
        *("种子 + i", "种子 + k × 批量大小 + i", "先解码再编码"),  # noqa: RUF001
    },
}
# What vue-i18n takes for its own: placeholders, linked messages, plurals.
MESSAGE_SYNTAX = re.compile(r"[{}@|]")
HAN = re.compile(r"[\u4e00-\u9fff]")
REMEDY = "run `python tools/texts.py`"


def strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for each in value.values() for text in strings(each)]


def shape(value: Any) -> Any:
    """The keys alone."""
    return {key: shape(each) for key, each in value.items()} if isinstance(value, dict) else None


def nothing_at(value: Any) -> set[str]:
    """The keys of nulls."""
    if isinstance(value, list):
        return {key for each in value for key in nothing_at(each)}
    if not isinstance(value, dict):
        return set()
    own = {key for key, each in value.items() if each is None}
    return own | {key for each in value.values() for key in nothing_at(each)}


def assert_allowed(value: Any, kind: Any, options: dict[str, Any]) -> None:
    """Whether a widget takes a value."""
    if isinstance(kind, list):
        assert value in kind
    elif kind in ("INT", "FLOAT"):
        assert options["min"] <= value <= options["max"]
    else:
        assert isinstance(value, {"BOOLEAN": bool, "STRING": str}[kind])


def messages(path: Path) -> list[str]:
    """The string constants of a file that are not docstrings, with {} for what is formatted into them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in node.values)
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            found.append(node.value)
    return found


def test_the_english_texts_are_those_of_the_nodes() -> None:
    assert texts.read_texts("en") == texts.english(NODES), REMEDY


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_is_there_and_no_other(language: str) -> None:
    found = texts.read_texts(language)
    assert shape(found) == shape(texts.english(NODES))
    for text in strings(found):
        assert text.strip() == text != ""
        assert not MESSAGE_SYNTAX.search(text), text


def test_chinese_is_chinese() -> None:
    for node in texts.read_texts("zh").values():
        explanations = [node["description"]]
        explanations += [each["tooltip"] for kind in ("inputs", "outputs") for each in node[kind].values()]
        assert all(HAN.search(text) for text in explanations)


def test_both_languages_have_the_same_files() -> None:
    for file in (ROOT / "locales" / "en").iterdir():
        other = ROOT / "locales" / "zh" / file.name
        pair = [json.loads(path.read_text(encoding="utf-8")) for path in (file, other)]
        assert shape(pair[0]) == shape(pair[1]), file.name


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", NODES)
def test_every_node_has_a_help_page_with_an_image(node_id: str, language: str) -> None:
    page = texts.page_path(node_id, language).read_text(encoding="utf-8")
    found = texts.read_texts(language)[node_id]
    assert page == texts.updated_page(page, NODES[node_id], found, language), REMEDY
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert images and all(name.startswith(IMAGES_OF[language]) for name in images)
    for name in images:  # the front end looks for them below web/docs, wherever the page is
        with Image.open(texts.DOCS / name) as image:
            image.verify()
        assert (texts.DOCS / name).stat().st_size < IMAGE_BYTES, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_name_what_is_on_the_page(language: str) -> None:
    """Nodes, by their short names too, inputs, outputs, buttons, entries of menus."""
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    page = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    titles = {each["display_name"] for each in nodes.values()}
    known = OTHER_NAMES[language] | titles | set(strings(page["seamlessVae"]))
    known |= {re.sub("^Seamless (VAE )?", "", each) for each in titles}
    known |= {put["name"] for each in nodes.values() for puts in ("inputs", "outputs") for put in each[puts].values()}
    pages = {texts.page_path(node_id, language) for node_id in NODES}
    found = {name for each in pages for name in NAMED[language].findall(each.read_text(encoding="utf-8"))}
    assert found - known == set(), "nothing on the page has that name"


def test_no_help_page_is_stale() -> None:
    expected = {texts.page_path(node_id, language) for node_id in NODES for language in LANGUAGES}
    assert set(texts.DOCS.rglob("*.md")) == expected
    mentioned = {name for page in expected for name in re.findall(r"\((images/[^)]+)\)", page.read_text("utf-8"))}
    images = [file for file in (texts.DOCS / "images").rglob("*") if file.is_file()]
    assert {file.relative_to(texts.DOCS).as_posix() for file in images} == mentioned


# Words of other fields and turns of phrase that docs/glossary.md has better ones for.
UNWANTED = re.compile(
    r"\b(pictures?|somebody|someone|nobody|whoever|told|for want of|rehears\w*|arithmetic|(plain|whole) modules)\b",
    re.IGNORECASE,
)
UNWANTED_NAME = re.compile(
    r"pictur|somebody|nobody|whoever|(^|_)told(_|$)|rehears|arithmetic|plain_(module|run|pass|path)|(^|_)ratio(_|$)",
    re.IGNORECASE,
)
THEIR_NAMES = {
    "ArithmeticError",
    "peak_signal_noise_ratio",
    "downscale_ratio",
    "upscale_ratio",
    "compression_ratio",
}  # of other packages
GUIDES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *(ROOT / "vae_core" / name for name in ("README.md", "demo/README.md")),
    *sorted((ROOT / "web" / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "glossary.md"),
]

PAGE = [*sorted((ROOT / "web" / "js").rglob("*.[jt]s")), *sorted((ROOT / "locales").rglob("*.json"))]

READ = [*CODE, *GUIDES, *PAGE, *EXAMPLES, ROOT / "tools" / "images" / "notes.py", ROOT / "pyproject.toml"]
# "Is not a", unless something is not there at all, or no longer, no larger or no more than something else.
NO_SUCH_THING = re.compile(r"(?<!there )(?<!There )\b(is|are|was|were) no (?!(more|one|\w+er)\b)(?=\w)")
UNIDIOMATIC = re.compile(
    r"\b(anew|shall|has not|have not|in vain|in one another)\b(?! been)"
    r"|cannot (be|do it)(?=$|[.;,)])|(tells|told) (which|whether|what)\b"
)


@pytest.mark.parametrize("file", READ, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_is_read_says_that_something_is_not_a_thing(file: Path) -> None:
    """Not that it is no such thing; comments and docstrings too."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if NO_SUCH_THING.search(line)] == []


@pytest.mark.parametrize("file", CODE, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_messages_have_the_idioms_of_english(file: Path) -> None:
    assert [text for text in messages(file) if UNIDIOMATIC.search(text)] == []


@pytest.mark.parametrize(
    ("text", "idiomatic"),
    [
        ("3 workers cannot do it; give a whole number.", False),
        ("a limit of -1 images cannot be; give 0.", False),
        ("which SDXL has not. Leave it out.", False),
        ("save it anew.", False),
        ("if it shall be there", False),
        ("nothing tells which one is meant", False),
        ("its brackets are in one another", False),
        ("the file cannot be read: it is damaged", True),
        ("it has not been changed", True),
        ("the job was cancelled, and nothing shows which one is meant", True),
    ],
)
def test_unidiomatic_sentences_are_found(text: str, idiomatic: bool) -> None:
    assert (UNIDIOMATIC.search(text) is None) is idiomatic


@pytest.mark.parametrize("file", READ, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_is_read_uses_the_field_s_words(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [*messages(file), *(line.replace("arithmetic", "") for line in lines)] if file.suffix == ".py" else lines
    assert [text for text in found if UNWANTED.search(text)] == []


def test_the_list_of_what_tests_are_given_is_whole() -> None:
    folder = ROOT / "tests" / "given"
    listed = re.findall(r"^(\w+) +\S", (folder / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def test_names_use_the_field_s_words() -> None:
    found = set()
    for file in [*CODE, *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for kind in ("id", "name", "arg", "attr"):
                name = getattr(node, kind, None)
                if isinstance(name, str) and name not in THEIR_NAMES and UNWANTED_NAME.search(name):
                    found.add(f"{file.relative_to(ROOT)}: {name}")
    assert not found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("weights that are no plain tensors", True),
        ("this is no file", True),
        ("there is no file", False),
        ("it is no longer there, and is no larger than it was", False),
    ],
)
def test_what_is_no_such_thing_is_found(text: str, found: bool) -> None:
    assert bool(NO_SUCH_THING.search(text)) is found


def test_messages_are_found(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        '"""is no doc"""\ndef f(x):\n    """is no doc"""\n    g(f"a {x} is no " "b", "c")\n'
    )
    assert messages(tmp_path / "some.py") == ["a {} is no b", "c"]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_workflow_is_ready_to_open(file: Path) -> None:
    saved = json.loads(file.read_text(encoding="utf-8"))
    types = [node["type"] for node in saved["nodes"]]
    notes = [node["widgets_values"][0] for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    assert [bool(HAN.search(text)) for text in notes] == [False, True], "a note in English, and one in Chinese"
    assert {name for name in types if name.startswith("Seamless")} <= set(NODES)
    slots = {(node["id"], index) for node in saved["nodes"] for index, _ in enumerate(node.get("outputs", []))}
    for _, source, output, target, slot, _ in saved["links"]:
        inputs = next(node["inputs"] for node in saved["nodes"] if node["id"] == target)
        assert (source, output) in slots and inputs[slot]["link"] is not None
    assert not nothing_at(saved) - {"link", "links"}, "the front end warns of a workflow with other nulls"
    for node in saved["nodes"]:
        if node["type"] in NODES:  # inputs of today, and values that are allowed
            known = texts.inputs_of(NODES[node["type"]])
            # The front end saves what is linked first, then what has a widget.
            assert [each["name"] for each in node["inputs"]] == sorted(
                known, key=lambda name: "default" in known[name][1]
            )
            widgets = {name: each for name, each in known.items() if "default" in each[1]}
            slots_of_values = [
                slot
                for name, (_, options) in widgets.items()
                for slot in ([name, None] if options.get("control_after_generate") else [name])
            ]
            for name, value in zip(slots_of_values, node.get("widgets_values", []), strict=True):
                if name is not None:
                    assert_allowed(value, *widgets[name])
    with Image.open(file.with_suffix(".jpg")) as image:
        image.verify()


def test_what_is_installed_is_what_the_project_needs() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)
    assert found is not None
    needed = [each for each in re.findall(r'"([^"]+)"', found[1]) if not each.startswith("torch")]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == needed


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "README.zh-CN.md",
        "vae_core/README.md",
        "CONTRIBUTING.md",
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_links_lead_somewhere(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", page) + [
        (path, "") for path in re.findall(r'src="([^"]+)"', page)
    ]
    for path, heading in links:
        if path.startswith("http"):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in titles]


# Of each language: the ending of its guides, and of its help pages.
ENDINGS = {"en": (".md", ".md"), "zh": (".zh-CN.md", "/zh.md")}


@pytest.mark.parametrize("language", ENDINGS)
def test_the_guides_name_every_node_and_example(language: str) -> None:
    ending, help_ending = ENDINGS[language]
    readme = (ROOT / f"README{ending}").read_text(encoding="utf-8")
    for node_id in NODES:
        assert f"](web/docs/{node_id}{help_ending})" in readme
    assert f"](docs/first-steps{ending})" in readme
    first_steps = (ROOT / "docs" / f"first-steps{ending}").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", first_steps, re.MULTILINE)) == sorted(file.stem for file in EXAMPLES)


def outline(page: str) -> list[str]:
    """What a page is made of, line by line, without its words."""
    kinds = ("# ", "## ", "- **", "| ", "![", "```", "")
    return [next(kind for kind in kinds if line.startswith(kind)) for line in page.splitlines()]


@pytest.mark.parametrize("name", ["README", "docs/first-steps"])
def test_a_guide_is_the_same_in_both_languages(name: str) -> None:
    english, chinese = ((ROOT / f"{name}{ending}").read_text(encoding="utf-8") for ending, _ in ENDINGS.values())
    assert outline(english) == outline(chinese)


def test_the_readme_is_one_screen() -> None:
    """What, image, install, nodes, messages: all else is in `docs/`."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Install", "Nodes", "Messages"]
    assert len(page.splitlines()) < 60


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/troubleshooting.md"])
def test_the_messages_in_the_guides_are_the_pack_s(name: str) -> None:
    said = [text for path in CODE for text in messages(path)]
    for file in (ROOT / "locales").glob("*/main.json"):
        said += strings(json.loads(file.read_text(encoding="utf-8")))
    page = (ROOT / name).read_text(encoding="utf-8")
    tables = re.findall(r"^\| (?:message|it says|提示信息) \|.*\n\| ---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [line.split(" | ")[0].removeprefix("| ") for table in tables for line in table.splitlines()]
    assert len(rows) > 5
    for row in rows:
        for part in re.split(r"…|;| / ", row):
            assert any(part.strip(" .,:()") in text for text in said), row


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/streaming.md", "docs/benchmarks.md", "vae_core/README.md"])
def test_what_the_documents_name_is_there(name: str) -> None:
    """Files, and private names, which change."""
    words = re.findall(r"`([^`\n]+)`", (ROOT / name).read_text(encoding="utf-8"))
    folders = ("vae_core", "nodes", "tests", "benchmarks", "tools", "web", "locales")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix == ".py")
    for word in words:
        if re.fullmatch(r"[\w/]+\.(py|js|ts)", word) and not word.startswith(("comfy/", "folder_paths")):  # the host's
            assert any(path.as_posix().endswith(f"/{word}") for path in files), word
        elif re.fullmatch(r"_[A-Za-z]\w+|test_\w+", word):
            assert re.search(rf"\b{word}\b", code), word
