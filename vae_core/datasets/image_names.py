"""Which names are those of images that are opened."""

from __future__ import annotations

from pathlib import PurePosixPath

from PIL import Image

from ..image_formats import FORMATS, load_formats


def is_image(name: str) -> bool:
    """Whether a file's ending is that of an image that is opened."""
    load_formats()
    form = Image.EXTENSION.get(PurePosixPath(name.lower()).suffix)
    return form in FORMATS and form in Image.OPEN
