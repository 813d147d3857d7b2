"""Names that take minutes to look at: refused, or passed over, in a moment."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from given.models import fields, make

from vae_core import CheckpointError, inspect_vae

# A few hundred times what each takes, and a tenth of what it took before there were limits.
SECONDS = 8.0


def header(path: Path, names: list[str]) -> Path:
    entries = {name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(names)}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(len(names)))
    return path


LONG: dict[str, list[str]] = {
    "one name": ["a" * 24_000_000],
    "one name of parts": ["a." * 12_000_000],
    "one name that is nearly a LoRA's": ["x_lora_A" * 2_000_000],
    "one name that is nearly a layer's": ["decoder.up.0.block." * 1_000_000],
    "many names": [f"{i:0400d}" for i in range(40_000)],
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_names_of_millions_of_characters(name: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    if form == "safetensors":
        header(path, LONG[name])
    else:
        torch.save({each: torch.zeros(1) for each in LONG[name][:1000]}, path)
    started = time.process_time()
    try:
        assert inspect_vae(path).problem is not None
    except CheckpointError as error:
        assert len(str(error)) < 1000
    assert time.process_time() - started < SECONDS


def test_a_config_of_many_fields(tmp_path: Path) -> None:
    vae = make(fields(32))
    vae.save_pretrained(tmp_path)
    values = {**vae.config.to_dict(), **{f"{i:05d}": 1 for i in range(70_000)}}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    started = time.process_time()
    assert inspect_vae(tmp_path).problem is None
    assert time.process_time() - started < SECONDS


def test_metadata_of_many_quotes_is_read(tmp_path: Path) -> None:
    """As trainers write the tags of their images."""
    tags = json.dumps({f"tag {i}": i for i in range(50_000)})
    text = json.dumps(
        {"__metadata__": {"ss_tag_frequency": tags}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"0")
    assert "found 1 tensors" in (inspect_vae(path).problem or "")
