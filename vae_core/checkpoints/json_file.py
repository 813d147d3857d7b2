"""Files of JSON that stand beside weights: a config, an index of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..regular_files import read_regular

_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
MAX_BYTES = 1_000_000  # of a config.json; real ones have one kilobyte
MAX_ITEMS = 100_000  # commas, and as many brackets: to make objects of more takes seconds in which nothing else runs


def json_object(file: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a file, in UTF-8, or in UTF-16 or UTF-32 as some editors and shells write it.

    Args:
        most: bytes that the file may have.

    Raises:
        OSError: it cannot be read; FileNotFoundError if there is none.
        ValueError: it is not JSON, is not an object, is too large, or has too many items; says which, as a part of a
            sentence.
    """
    raw = read_regular(file, most)
    if raw.count(b",") > MAX_ITEMS or raw.count(b"[") + raw.count(b"{") > MAX_ITEMS:
        raise ValueError(f"it lists more than {MAX_ITEMS} items")
    try:
        values = json.loads(raw)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not text in UTF-8") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is {_KINDS.get(type(values), 'a number')}, not an object with fields")
    return values
