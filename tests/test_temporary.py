"""Where no temporary file can be made: a sentence with the folder, what was to be put there, and what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from given.models import SMALL, make

from vae_core import VAEError, inspect_vae
from vae_core.streaming.offload_file import OffloadFile

PLACES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path / "gone",
    "a file": lambda path: path / "file",
    "no name of a folder": lambda path: "a\0b",
    "too long a name": lambda path: path / ("x" * 300),
}
MAKERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "maps": (lambda path: OffloadFile().lend(2**20), "1 MiB of feature maps"),
    "a push": (lambda path: make(SMALL).push_to_hub("someone/model", token="none"), "the model"),
    "a look at the Hub": (lambda path: inspect_vae("someone/model"), "the header of the weights"),
    "a process that saves nothing": (
        lambda path: make(SMALL).save_pretrained(
            path / "saved", is_main_process=False, save_function=lambda weights, file: None, safe_serialization=False
        ),
        "what is left of the weights",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("maker", MAKERS)
def test_no_place_for_a_temporary_file(maker: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = str(PLACES[place](tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", folder)
    make, what = MAKERS[maker]
    with pytest.raises(VAEError, match="Set TMPDIR|set TMPDIR") as caught:
        make(tmp_path)
    assert str(caught.value).startswith(what)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
