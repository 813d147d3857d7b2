"""Starts a ComfyUI checkout: `python launch.py CHECKOUT ARGUMENTS`. Where its optional parts cannot be imported on
this machine, stand-ins take their place: no test here needs images' operators or sound.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import runpy
import sys
import types
from pathlib import Path

import torch


def declare_operators() -> None:
    """torchvision registers shapes for operators of its compiled part, which may be built for another torch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(signature)
    declare_operators.library = library  # type: ignore[attr-defined]  # else they go with it


class StandIn(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        child = StandIn(f"{self.__name__}.{name}")
        child.__path__ = []
        sys.modules[child.__name__] = child
        setattr(self, name, child)
        return child


def stand_in(name: str) -> None:
    for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        del sys.modules[loaded]
    module = StandIn(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    for part in ("transforms", "functional"):
        getattr(module, part)


def main() -> None:
    checkout = Path(sys.argv[1]).resolve()
    sys.path[0] = str(checkout)
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError):
        for loaded in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
        declare_operators()
        importlib.import_module("torchvision")
    try:
        importlib.import_module("torchaudio")
    except (ImportError, RuntimeError, OSError):
        stand_in("torchaudio")
    sys.argv = [str(checkout / "main.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
