"""Collections from anywhere: the manifest, the splits, the records and the files of shards, each of which may lie."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from given.collection import encode, make_images, small_vae
from hypothesis import given
from hypothesis import strategies as st

from fuzz.beside import VALUES
from fuzz.limits import folder, limits
from vae_core import VAEError
from vae_core.datasets import LatentDataset, verify_dataset

LAYOUTS = ("shards", "webdataset", "kohya")
PATHS = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "C:\\x",
    "..\\x",
    "\0",
    "",
    ".",
    "none",
    "shards/000/000000-0000.safetensors",
]


@cache
def honest(layout: str) -> Path:
    """A collection of five images in two shards."""
    source, out = folder() / f"images-{layout}", folder() / f"honest-{layout}"
    make_images(source, 5)
    options: dict[str, Any] = {"kohya": "sd"} if layout == "kohya" else {}
    place = source if layout == "kohya" else out
    encode(source, place, small_vae(), layout=layout, shard_images=3, **options)
    return place


def check(out: Path) -> None:
    """Read all that a collection has, and verify it: latents and faults, or a VAEError."""
    with limits(sum(place.stat().st_size for place in out.rglob("*") if place.is_file())):
        for use in (lambda: _items(out), lambda: verify_dataset(out).faults):
            try:
                found = use()
            except VAEError as error:
                assert len(str(error)) < 1500, str(error)
            else:
                assert all(len(str(each)) < 3000 for each in found if not isinstance(each, dict))


def _items(out: Path) -> list[dict[str, Any]]:
    dataset = LatentDataset(out)
    return [dataset[i] for i in range(len(dataset))]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside of one of JSON's."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in inner for place in places(each, (*at, key)))]


def changed(data: st.DataObject, value: Any) -> Any:
    """A value one of whose parts is another, or gone."""
    way = data.draw(st.sampled_from(places(value)))
    other = data.draw(st.one_of(VALUES, st.sampled_from(PATHS), st.integers(-3, 2**64)))
    if not way:
        return other
    holder = value
    for key in way[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[way[-1]] = other
    else:
        del holder[way[-1]]
    return value


@given(data=st.data())
def collections(data: st.DataObject) -> None:
    source = honest(data.draw(st.sampled_from(LAYOUTS)))
    out = folder() / "collection"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    files = sorted(place for place in out.rglob("*") if place.is_file() and place.suffix not in (".png", ".jpg"))
    for place in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        raw = bytearray(place.read_bytes())
        what = data.draw(st.sampled_from(["value", "value", "value", "byte", "cut", "gone", "deep"]))
        if what == "gone":
            place.unlink()
            continue
        if what == "value" and place.suffix in (".json", ".jsonl"):
            values = [json.loads(line) for line in raw.splitlines()] if place.suffix == ".jsonl" else [json.loads(raw)]
            number = data.draw(st.integers(0, max(0, len(values) - 1)))
            if values:
                values[number] = changed(data, values[number])
            raw = bytearray("".join(f"{json.dumps(value)}\n" for value in values).encode())
        elif what == "deep":
            raw = bytearray(b"[" * 20_000)
        elif raw:
            at = data.draw(st.integers(0, len(raw) - 1))
            raw = raw[:at] if what == "cut" else raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
        place.write_bytes(raw)
    check(out)
