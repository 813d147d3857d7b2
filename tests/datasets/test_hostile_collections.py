"""Collections from anywhere: what leads out of their folder, is too large, too deep or missing is a sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from given.collection import encode, make_images

from vae_core import AutoencoderKL, DatasetError
from vae_core.datasets import LatentDataset, decode_dataset, records, verify_dataset

RECORD = "shards/000/000000-0000.json"
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("source") / "few", 4)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, few: Path, vae: AutoencoderKL) -> Path:
    out = tmp_path_factory.mktemp("honest") / "out"
    encode(few, out, vae)
    return out


@pytest.fixture(scope="module")
def kohyas(tmp_path_factory: pytest.TempPathFactory, few: Path, vae: AutoencoderKL) -> Path:
    """Kohya's files beside the images."""
    out = tmp_path_factory.mktemp("kohya") / "few"
    shutil.copytree(few, out)
    encode(out, out, vae, layout="kohya", kohya="sd")
    return out


def said(out: Path) -> list[str]:
    """Why a collection cannot be read: by the reader, and what `verify-dataset` finds."""
    found = []
    try:
        dataset = LatentDataset(out)
        assert [dataset[i]["key"] for i in range(len(dataset))]
    except DatasetError as error:
        found.append(str(error))
    try:
        found += [str(fault) for fault in verify_dataset(out).faults]
    except DatasetError as error:
        found.append(str(error))
    assert all(len(each) < 1000 for each in found)
    return found


def changed(honest: Path, out: Path, name: str, change: Change | bytes | None) -> Path:
    """A copy of which one file is another one, or gone."""
    shutil.copytree(honest, out)
    place = next(out.rglob(name)) if "/" not in name else out / name
    if change is None:
        place.unlink()
    elif isinstance(change, bytes):
        place.write_bytes(change)
    else:
        value = json.loads(place.read_bytes())
        found = change(value)
        place.write_text(json.dumps(value if found is None else found))
    return out


def put(*way: Any) -> Change:
    """Put the last of these where the others lead."""
    *keys, last, value = way

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


OUTSIDE = ["../x", "/etc/passwd", "a/../../x", "C:\\x", "C:/x", "..\\x", "a\\..\\..\\x", "\\\\server\\x", "x\0", ""]


@pytest.mark.parametrize("path", OUTSIDE, ids=ascii)
def test_paths_that_lead_out(path: str, honest: Path, kohyas: Path, tmp_path: Path) -> None:
    out = changed(honest, tmp_path / "a", RECORD, put("files", 0, "path", path))
    assert sum("outside of the collection" in each for each in said(out)) >= 1
    out = changed(kohyas, tmp_path / "b", "000000-0000.json", put("images", 0, "file", path))
    assert len([each for each in said(out) if "outside of the collection" in each]) == 2


HUGE = "x" * 3_000_000
DAMAGED: dict[str, tuple[str, Change | bytes | None, str]] = {
    "a record of 20,000 lists": (RECORD, b"[" * 20_000, "too deeply"),
    "a manifest of 20,000 lists": ("manifest.json", b"[" * 20_000, "too deeply"),
    "splits of 20,000 lists": ("splits.jsonl", b"[" * 20_000, "too deeply"),
    "a list of shards of 20,000 lists": ("shards.jsonl", b"[" * 20_000, "too deeply"),
    "no splits": ("splits.jsonl", None, "splits.jsonl"),
    "splits that are not objects": ("splits.jsonl", b"[]\n5\n", "splits.jsonl"),
    "a split without files": ("splits.jsonl", b'{"number": 0, "kind": "files"}\n', "lacks 'urls'"),
    "a split of another kind": ("splits.jsonl", b'{"number": 0, "kind": "zip", "urls": []}\n', "neither of files"),
    "a record without images": (RECORD, lambda record: record.pop("images") and None, "lacks 'images'"),
    "a record without a name": (RECORD, lambda record: record.pop("name") and None, "lacks 'name'"),
    "a record that is a list": (RECORD, b"[]", "cannot be read"),
    "images that are numbers": (RECORD, put("images", [1, 2]), "not a list of objects"),
    "a position below nothing": (RECORD, put("images", 0, "position", -1), "whole number"),
    "a shape of text": (RECORD, put("images", 0, "shape", "abc"), "list of sizes"),
    "an empty shape": (RECORD, put("images", 0, "shape", []), "list of sizes"),
    "a hash of another kind": (RECORD, put("images", 0, "sha256", "zz"), "sha256"),
    "a name of a megabyte": (RECORD, put("name", HUGE), "not that of a shard"),
    "another format": ("manifest.json", put("format", HUGE), "cannot be read"),
    "settings of a megabyte": ("manifest.json", put("settings", "layout", HUGE), "cannot be read"),
    "settings that are text": ("manifest.json", put("settings", HUGE), "cannot be read"),
    "a scale of text": ("manifest.json", put("scale", "scaling_factor", "1"), "its scale"),
    "a scale of zero": ("manifest.json", put("scale", "scaling_factor", 0), "its scale"),
    "a config that is none": ("manifest.json", put("vae", "config", [HUGE]), "cannot be read"),
    "no VAE": ("manifest.json", lambda manifest: manifest.pop("vae") and None, "lacks 'vae'"),
    "totals of text": ("manifest.json", put("totals", {"images": HUGE}), "whole number"),
    "totals that are false": ("manifest.json", put("totals", False), "types that such a file"),
    "totals that are an empty list": ("manifest.json", put("totals", []), "types that such a file"),
    "totals of nothing": ("manifest.json", put("totals", {}), "lacks 'images'"),
    "a batch norm that is 0": ("manifest.json", put("batch_norm", 0), "types that such a file"),
    "a batch norm without a variance": ("manifest.json", put("batch_norm", {"running_mean": [0.0]}), "running_var"),
    "a manifest that is a list": ("manifest.json", b"[]", "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_collections(name: str, honest: Path, tmp_path: Path) -> None:
    file, change, reason = DAMAGED[name]
    found = said(changed(honest, tmp_path / "out", file, change))
    assert found and any(reason in each for each in found), found


@pytest.mark.parametrize(("name", "file"), [("MOST_MANIFEST", "manifest.json"), ("MOST_RECORD", RECORD)])
def test_sizes_are_bounded(name: str, file: str, honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_core.datasets import collection

    assert getattr(records, name) >= 1000 * (honest / file).stat().st_size
    monkeypatch.setattr(collection, name, (honest / file).stat().st_size - 1)
    assert any("bytes; at most" in each for each in said(honest))


def test_an_honest_collection_has_nothing_to_say(honest: Path, kohyas: Path) -> None:
    assert said(honest) == said(kohyas) == []


def test_decoding_says_the_same(honest: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    out = changed(honest, tmp_path / "a", RECORD, put("files", 0, "path", "../x"))
    with pytest.raises(DatasetError, match="outside of the collection"):
        list(decode_dataset(out, tmp_path / "b", vae))


@pytest.mark.parametrize("change", ["cut", "written in place", "another file"])
def test_a_shard_that_changes_while_it_is_read(change: str, honest: Path, tmp_path: Path) -> None:
    """It is not mapped, which would end the process, and what is in it now is not taken for what was."""
    copy = tmp_path / "copy"
    shutil.copytree(honest, copy)
    dataset = LatentDataset(copy)
    assert dataset[0]["latents"].isfinite().all()
    shard = next(copy.rglob("*.safetensors"))
    content = shard.read_bytes()
    if change == "cut":
        os.truncate(shard, 200)
    elif change == "written in place":
        with open(shard, "r+b") as file:
            file.seek(len(content) - 64)
            file.write(bytes(64))
        os.utime(shard, ns=(1, 1))
    else:
        shutil.copy2(shard, tmp_path / "again")
        os.replace(tmp_path / "again", shard)
    with pytest.raises(DatasetError, match="has changed since it was opened"):
        dataset[1]
