"""Libraries that only some methods need: imported when such a method is called, never before."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import OPEN_FILES, MissingDependencyError, in_one_line


def optional_import(module: str, purpose: str, extra: str | None) -> ModuleType:
    """The module of that name.

    Args:
        purpose: what it is needed for, as the start of a sentence: "LoRA adapters".
        extra: the extra of this package that installs it; None for one that fits a kind of device, which none does.

    Raises:
        MissingDependencyError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".")[0]
        reason = f"{library} is not installed" if getattr(error, "name", None) == library else in_one_line(error)
        wanted = library.replace("_", "-") if extra is None else f'"seamless-vae[{extra}]"'
        for_device = ", in the release that fits this torch and device" if extra is None else ""
        raise MissingDependencyError(
            f"{purpose}: the package {library} is needed ({reason}). Install it with: pip install {wanted}{for_device}"
        ) from error
    except OSError as error:  # its files are there and cannot be opened
        raise MissingDependencyError(
            f"{purpose}: the package {module.split('.')[0]} cannot be imported: {in_one_line(error)}. {OPEN_FILES}"
        ) from error
