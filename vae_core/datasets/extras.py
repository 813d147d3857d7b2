"""Packages that only extras install: imported when they are used, and otherwise a sentence that names the extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import MissingDependencyError, in_one_line


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module, or say which extra installs it.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{purpose} needs {package}, which cannot be imported ({in_one_line(error)}). Install it with: "
            f'pip install "seamless-vae[{extra}]"'
        ) from None
