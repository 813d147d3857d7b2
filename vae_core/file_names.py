"""Names from anywhere as names of files on every system."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

MOST_BYTES = 200  # of a name; file systems have up to 255, and a number and an ending may follow
# Devices of Windows, whatever ending follows.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)


def text_of(path: object) -> str:
    """A path as text; nothing for what is none: of another type, or one whose `__fspath__` raises or gives bytes."""
    if not isinstance(path, str | os.PathLike):
        return ""
    try:
        text = os.fspath(path)
    except Exception:  # a caller's own class may raise anything
        return ""
    return text if isinstance(text, str) else ""


def safe_path(name: str) -> str:
    """A name as a path with slashes below a folder; nothing where it has no part that can be a name.

    What some system does not take becomes `_`: control characters, `<>:"|?*`, and what this system cannot encode; the
    bytes of its own names that are not text stay. Dots and spaces at the ends of parts are left out, and with them `.`
    and `..`; a part that is a device of Windows gets a `_` before it, and a long one is cut, with a digest of the whole
    so that it stays different from others.
    """
    parts = (_safe_part(part) for part in name.replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part)


def folded_name(name: str) -> str:
    """The same for names that are one on file systems that tell neither capitals nor forms of accents apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _safe_part(part: str) -> str:
    name = "".join("_" if _is_forbidden(each) else each for each in part).strip(". ")
    if _DEVICES.match(name):
        name = f"_{name}"
    data = os.fsencode(name)
    if len(data) <= MOST_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[: MOST_BYTES - 13].decode(errors='ignore')}-{digest}"


def _is_forbidden(character: str) -> bool:
    if character in '<>:"|?*' or unicodedata.category(character) in ("Cc", "Zl", "Zp"):
        return True
    try:
        return not os.fsencode(character)
    except UnicodeEncodeError:
        return True
