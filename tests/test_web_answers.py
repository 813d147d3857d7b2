"""The page is typed for what the routes and events carry: `web/js/host/answers.d.ts` beside real answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest
from given.models import BY_NAME, family_fields, make
from given.nodes import Makers
from host.stand_in import Host, Pack, installed
from safetensors.torch import save_file
from torch import zeros

from vae_core import save_single_file

TYPES = Path(__file__).resolve().parents[1] / "web" / "js" / "host" / "answers.d.ts"


class Property(NamedTuple):
    type: str
    optional: bool


def read_types() -> dict[str, dict[str, Property]]:
    """The properties of every interface of the file."""
    found = {}
    text = re.sub(r"/\*\*.*?\*/", "", TYPES.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name, body in re.findall(r"export interface (\w+) \{\n(.*?)\n\}", text, re.DOTALL):
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        matches = [re.fullmatch(r"(\w+)(\??): (.+)", line) for line in lines]
        assert all(matches), f"one of the properties of {name} is not on a line of its own"
        found[name] = {match[1]: Property(match[3], bool(match[2])) for match in matches if match}
    return found


INTERFACES = read_types()


def fits(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a type of the file."""
    if " | " in kind:
        return any(fits(value, each) for each in kind.split(" | "))
    if kind.endswith("[]"):
        return isinstance(value, list) and all(fits(each, kind.removesuffix("[]")) for each in value)
    if kind.startswith("["):
        kinds = kind.strip("[]").split(", ")
        parts = value if isinstance(value, list) else []
        return len(parts) == len(kinds) and all(fits(part, each) for part, each in zip(parts, kinds, strict=True))
    if kind in INTERFACES:
        return not differences(value, kind)
    plain: dict[str, Callable[[], bool]] = {
        "string": lambda: isinstance(value, str),
        "number": lambda: isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": lambda: isinstance(value, bool),
        "null": lambda: value is None,
        "unknown": lambda: True,
    }
    return plain[kind]() if kind in plain else f"'{value}'" == kind


def differences(answer: Any, interface: str) -> list[str]:
    """What of an answer is not as the interface says; as JSON carries it."""
    answer, expected = json.loads(json.dumps(answer)), INTERFACES[interface]
    if not isinstance(answer, dict):
        return [f"{answer!r} is not an object"]
    missing = {name for name, each in expected.items() if not each.optional} - answer.keys()
    found = [f"{name} is missing" for name in sorted(missing)]
    found += [f"{name} is not in the interface" for name in sorted(answer.keys() - expected.keys())]
    return found + [
        f"{name} is {answer[name]!r} and not {each.type}"
        for name, each in expected.items()
        if name in answer and not fits(answer[name], each.type)
    ]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    with installed("new", folder) as found:
        vae = folder / "models" / "vae"
        for name in ("SDXL", "FLUX.1", "FLUX.2"):
            save_single_file(make(family_fields(BY_NAME[name])), vae / f"{name}.safetensors")
        save_file({"text_model.final_layer_norm.weight": zeros(8)}, vae / "clip.safetensors")
        (vae / "broken.safetensors").write_bytes(b"<!doctype html><p>404")
        yield found


@pytest.mark.parametrize("name", ["demo", "SDXL.safetensors", "FLUX.1.safetensors", "FLUX.2.safetensors"])
def test_a_vae_is_described_as_the_page_expects(host: Host, pack: Pack, name: str) -> None:
    assert differences(pack.module("nodes.questions").describe_file(name), "FileInfo") == []


@pytest.mark.parametrize("name", ["clip.safetensors", "broken.safetensors", "missing.safetensors", "../x"])
def test_what_cannot_be_loaded_is_described_as_the_page_expects(host: Host, pack: Pack, name: str) -> None:
    assert differences(pack.module("nodes.questions").describe_file(name), "UnusableFile") == []


def plan(pack: Pack, **question: Any) -> dict[str, Any]:
    questions = pack.module("nodes.questions")
    body = {"name": "demo", "direction": "decode", "width": 512, "height": 512, "device": "cpu", **question}
    return questions.plan(questions.Question.read(body))


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize(
    "question",
    [
        {},
        {"name": None},
        {"tile_size": 128},
        {"memory_budget": 0.15, "width": 2048, "height": 1024},
        {"mode": "blended", "tile_size": 256, "overlap": 64},
        {"mode": "blended", "tile_size": 1024, "overlap": 64},
    ],
    ids=["exact", "no VAE", "strips", "little memory", "tiles", "one tile"],
)
def test_a_plan_is_as_the_page_expects(host: Host, pack: Pack, direction: str, question: dict[str, Any]) -> None:
    found = plan(pack, direction=direction, **question)
    assert differences(found, "Plan") == []
    assert found["assumed_vae"] == (question.get("name", "") is None)


@pytest.mark.parametrize("question", [{"memory_budget": 0.0001}, {"width": 7}, {"name": "clip.safetensors"}])
def test_why_there_is_no_plan_is_as_the_page_expects(host: Host, pack: Pack, question: dict[str, Any]) -> None:
    assert differences(plan(pack, **question), "NoPlan") == []


def in_typescript(kind: Any) -> set[str]:
    """A type of Python's as the alternatives that the file has for it."""
    arguments = get_args(kind)
    if isinstance(kind, UnionType):
        return set().union(*(in_typescript(each) for each in arguments))
    if get_origin(kind) is Literal:
        return {f"'{value}'" for value in arguments}
    if get_origin(kind) is list:
        return {f"{each}[]" for each in in_typescript(arguments[0])}
    plain = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null", None: "null"}
    return {plain.get(kind) or kind.__name__.removesuffix("Answer")}


DECLARED = {
    "FileAnswer": "FileInfo",
    "UnusableFileAnswer": "UnusableFile",
    "NoPlanAnswer": "NoPlan",
    "PlanAnswer": "Plan",
    "PlacesAnswer": "Places",
    "SecondsAnswer": "Seconds",
    "StatusEvent": "Status",
}


@pytest.mark.parametrize("answer", DECLARED)
def test_the_pack_declares_what_the_page_expects(pack: Pack, answer: str) -> None:
    declared = get_type_hints(getattr(pack.module("nodes.answers"), answer))
    expected = {name: each.type for name, each in INTERFACES[DECLARED[answer]].items()}
    assert declared.keys() == expected.keys()
    for name, kind in declared.items():
        pixels = expected[name].replace("[number, number, number, number]", "number[]")  # a rectangle
        assert in_typescript(kind) == set(pixels.split(" | ")), name


def test_every_answer_is_declared(pack: Pack) -> None:
    assert INTERFACES.keys() - {"PlanQuestion"} == set(DECLARED.values())
    made = {name for name in vars(pack.module("nodes.answers")) if name.endswith(("Answer", "Event"))}
    assert made == DECLARED.keys()


def test_the_question_is_the_one_that_the_route_reads(pack: Pack) -> None:
    read = {field.name for field in fields(pack.module("nodes.questions").Question)}
    assert INTERFACES["PlanQuestion"].keys() - {"direction"} == read - {"encode"}


def test_progress_is_as_the_page_expects(host: Host, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = Makers(pack)
    monkeypatch.setattr(pack.module("nodes.status"), "STATUS_SECONDS", 0)
    pack.run("SeamlessVAEDecode", samples=makers.latent(1, 4, 20, 20), vae=makers.vae(), unique_id="12")
    events = [data for name, data in host.events if name == "seamless_vae.status"]
    assert len(events) > 3
    assert [differences(event, "Status") for event in events] == [[]] * len(events)


@pytest.mark.parametrize(
    "change, difference",
    [
        ({"peak_bytes": "1"}, "peak_bytes is '1' and not number"),
        ({"free_bytes": None}, None),
        ({"free_bytes": True}, "free_bytes is True and not number | null"),
        ({"way": "file"}, "way is 'file' and not 'whole' | 'strips' | 'tiles'"),
        ({"tiles": [[0, 0, 8]]}, "tiles is [[0, 0, 8]] and not [number, number, number, number][]"),
        ({"places": {"device": 1, "cpu": 2}}, "places is {'device': 1, 'cpu': 2} and not Places"),
        ({"store": "memory"}, "store is not in the interface"),
    ],
)
def test_a_difference_is_found(host: Host, pack: Pack, change: dict[str, Any], difference: str | None) -> None:
    assert differences({**plan(pack), **change}, "Plan") == ([difference] if difference else [])
