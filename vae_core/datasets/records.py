"""What a collection's own files may say: bounded sizes, the fields that readers use, and paths inside of its folder.

A collection may come from anywhere, so that nothing of it is used before it was looked at here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config_values import is_number
from ..errors import in_one_line
from ..regular_files import open_regular, read_regular
from .cache_names import leads_out
from .sources import Split

MOST_MANIFEST = 16 << 20  # bytes; real ones have some thousand
MOST_RECORD = 64 << 20  # bytes of a shard's record or of a line of `splits.jsonl`; an image takes some hundred
_TOTALS = ("images", "failures", "shards", "bytes")
_OF_A_BATCH_NORM = ("running_mean", "running_var")
_SHA256 = re.compile("[0-9a-f]{64}")


def read_json(place: Path, most: int) -> Any:
    """What a file of JSON says.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes, or is not JSON.
    """
    return _parsed(read_regular(place, most), most)


def read_lines(place: Path, most: int = MOST_RECORD) -> Iterator[Any]:
    """What each line of a file says, as JSON. Raises as `read_json`."""
    with open_regular(place) as file:
        while line := file.readline(most + 1):
            yield _parsed(line, most)


def _parsed(raw: bytes, most: int) -> Any:
    if len(raw) > most:
        raise ValueError(f"it has more than {most} bytes")
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


def reason(error: Exception) -> str:
    """Why a file cannot be used, in few words whatever it says."""
    if isinstance(error, (TypeError, AttributeError)):
        return "it has values of types that such a file does not have"
    text = in_one_line(error)
    return f"it lacks {text}" if isinstance(error, KeyError) else text


def check_record(record: Any, has_own_files: bool) -> dict[str, Any]:
    """The record of a shard, if it has what readers use.

    Args:
        has_own_files: whether each image has files of its own, as in kohya's layout.

    Raises:
        ValueError, KeyError, TypeError: it lacks something, or names a file outside of the collection.
    """
    split, _, chunk = _text(record, "name").partition("-")
    if not (_has_digits_alone(split) and _has_digits_alone(chunk)):
        raise ValueError("its name is not that of a shard")
    if not isinstance(record["last"], bool):
        raise ValueError("it does not say whether it is the last one")
    for file in _objects(record, "files"):
        _inside(_text(file, "path"))
        _text(file, "sha256")
        _count(file, "bytes")
        if "ending" in file:
            _text(file, "ending")
    for image in _objects(record, "images"):
        _text(image, "key")
        _count(image, "position")
        if not _SHA256.fullmatch(_text(image, "sha256")):
            raise ValueError("its sha256 is not a SHA-256 hash")
        for name in ("shape", "size", "crop", "bucket", "resized"):
            _counts(image, name)
        if has_own_files:
            _inside(_text(image, "file"))
    for failure in _objects(record, "failures"):
        _text(failure, "key")
        _count(failure, "position")
    return record


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for a manifest that lacks what readers use beside its settings."""
    scale = manifest["scale"]
    if scale["convention"] not in ("raw", "diffusion"):
        raise ValueError("its scale is not one of raw and diffusion")
    if not all(is_number(scale[name]) for name in ("scaling_factor", "shift_factor")) or not scale["scaling_factor"]:
        raise ValueError("its scale has numbers that no latents are scaled by")
    _text(manifest, "source")
    _text(manifest["vae"], "sha256")
    for name in _TOTALS if "totals" in manifest else ():
        _count(manifest["totals"], name)
    for name in _OF_A_BATCH_NORM if "batch_norm" in manifest else ():
        values = manifest["batch_norm"][name]
        if not isinstance(values, list) or not all(map(is_number, values)):
            raise ValueError(f"its {name[:40]} is not a list of numbers")


def split_of(values: Any) -> Split:
    """A split by what its line of `splits.jsonl` says. Raises ValueError, KeyError or TypeError if it is not one."""
    split = Split(**{**values, "urls": tuple(values["urls"]), "keys": tuple(values.get("keys", ()))})
    for name in ("number", "start", "stop"):
        _count(vars(split), name)
    if split.kind not in ("files", "tar", "rows") or not all(
        isinstance(each, str) for each in (*split.urls, *split.keys)
    ):
        raise ValueError("a split is neither of files, nor of a tar, nor of rows")
    return split


def _inside(path: str) -> None:
    """Raise ValueError for a path that may lead out of the folder that it is in, on any system."""
    if leads_out(path):
        raise ValueError(f"it names {path[:80]!r}, which is outside of the collection")


def _objects(record: Any, name: str) -> list[dict[str, Any]]:
    found = record[name]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"its {name} are not a list of objects")
    return found


def _text(values: Any, name: str) -> str:
    if not isinstance(values[name], str):
        raise ValueError(f"its {name} is not text")
    return values[name]


def _count(values: Any, name: str) -> None:
    if not _is_count(values[name]):
        raise ValueError(f"its {name[:40]} is not a whole number of at least 0")


def _counts(values: Any, name: str) -> None:
    found = values[name]
    if not isinstance(found, list) or not 2 <= len(found) <= 4 or not all(map(_is_count, found)):
        raise ValueError(f"its {name} is not a list of sizes")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _has_digits_alone(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 12
