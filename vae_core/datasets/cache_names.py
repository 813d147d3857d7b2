"""Names of kohya's cache files, `NAME_WWWWxHHHH_sdxl.npz`, after those of the images, and which there cannot be."""

from __future__ import annotations

import os
from pathlib import PurePosixPath, PureWindowsPath

from ..errors import ImageError

SUFFIX = ".npz"
_MOST_BYTES = 255  # of a file's name, nearly everywhere


def file_name(key: str, size: tuple[int, int], family: str) -> str:
    """The cache file of an image by its key and its (width, height)."""
    return f"{os.path.splitext(key)[0]}_{size[0]:04d}x{size[1]:04d}_{family}{SUFFIX}"


def check_file_name(key: str, size: tuple[int, int], family: str) -> None:
    """Raise ImageError for an image whose cache file would have a name that is too long, or leads elsewhere."""
    name = file_name(key, size, family)
    length = len(os.fsencode(os.path.basename(name)))
    if length > _MOST_BYTES:
        raise ImageError(
            f"the name of its cache file would have {length} bytes; file systems allow up to {_MOST_BYTES}. Rename it, "
            f"or choose the layout shards."
        )
    if leads_out(name):
        raise ImageError(
            f"the name of its cache file, {name}, is that of another place on some systems. Rename it, or choose the "
            f"layout shards."
        )


def leads_out(path: str) -> bool:
    """Whether a path may lead out of the folder that it is in, on any system."""
    parts = PurePosixPath(path).parts
    windows = PureWindowsPath(path)
    return bool(not parts or path.startswith("/") or ".." in (*parts, *windows.parts) or windows.anchor or "\0" in path)
