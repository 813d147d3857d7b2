"""Files that nodes write: images to show, and numbered paths in the output folder."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..vae_core.errors import CheckpointError, VAEError, brief, in_one_line
from ..vae_core.image import to_model_range, to_pil, write_image
from . import host
from .checks import stays_inside

MOST_SHOWN = 16  # images of a batch


def images(batch: Tensor, name: str) -> list[dict[str, str]]:
    """Write images [B, H, W, C] in [0, 1] to the host's folder for temporary images; gives what `ui` wants."""
    folder = host.directory("temp")
    shown = []
    for image in to_pil(to_model_range(batch[:MOST_SHOWN].movedim(-1, 1).float())):
        file = f"seamless_{name}_{uuid.uuid4().hex[:12]}.png"
        write_image(image, folder / file)
        shown.append({"filename": file, "subfolder": "", "type": "temp"})
    return shown


def save_numbered(prefix: str, ending: str, write: Callable[[Path], object]) -> Path:
    """Write to a free numbered path; to the next one where another process has taken it meanwhile.

    Args:
        write: writes a path that must not exist, and raises with a FileExistsError as its cause if it does.
    """
    while True:
        path = numbered_path(prefix, ending)
        try:
            write(path)
            return path
        except VAEError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise


def numbered_path(prefix: str, ending: str) -> Path:
    """A free path in the output folder: the prefix, a number, the ending.

    %year%, %month%, %day%, %hour%, %minute% and %second% in the prefix are replaced, as by the host.

    Raises:
        CheckpointError: a prefix that is empty or leads out of the folder, or one that cannot be a name there.
    """
    now = time.localtime()
    parts = zip(("year", "month", "day", "hour", "minute", "second"), now[:6], strict=True)
    for part, value in parts:
        prefix = prefix.replace(f"%{part}%", f"{value:02d}")
    name = prefix.replace("\\", "/")
    if not name.strip("/. ") or not stays_inside(name):
        raise CheckpointError(
            f"the name {brief(prefix)} is empty or points outside the output folder. Use a name such as vae/seamless."
        )
    path = host.directory("output") / name
    taken = re.compile(rf"{re.escape(path.name)}_(\d+)_?(\..*)?")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[1]) for each in path.parent.iterdir() if (match := taken.fullmatch(each.name))]
        found = path.with_name(f"{path.name}_{max(numbers, default=0) + 1:05d}{ending}")
        with contextlib.suppress(FileNotFoundError):
            found.lstat()  # refuses a name that is too long
    except OSError as error:
        raise CheckpointError(
            f"cannot save as {str(path)!r}: {in_one_line(error)}. Use another name, or check the folder."
        ) from None
    return found
