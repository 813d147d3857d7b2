"""Everything that is asked of the host: the only file that imports comfy, folder_paths and server.

Each access is made when it is needed and by what is there, so that the pack loads in old and new hosts, in forks, and
without any.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from ..vae_core.errors import CheckpointError
from ..vae_core.streaming.memory import available_bytes

logger = logging.getLogger("seamless_vae")

DEMO_NAME = "demo"
DEMO_PATH = Path(__file__).resolve().parents[1] / "vae_core" / "demo"
# What follows the names of vae_names that are no files of models/vae.
FOLDER_MARK, DIFFUSERS_MARK, CHECKPOINT_MARK = " [folder]", " [diffusers]", " [checkpoint]"
_DIFFUSERS_DEPTH = 3


def module(name: str) -> Any:
    """A module of the host, or None where there is no such thing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _management(name: str) -> Any:
    return getattr(module("comfy.model_management"), name, None)


# Names and paths.


def vae_names() -> list[str]:
    """The VAEs that can be loaded: `demo`, files of models/vae, then folders and checkpoints, marked as such."""
    folders = [f"{name}{FOLDER_MARK}" for name in _diffusers_folders("vae")]
    pipelines = [f"{name}{DIFFUSERS_MARK}" for name in _diffusers_folders("diffusers")]
    checkpoints = [f"{name}{CHECKPOINT_MARK}" for name in _files("checkpoints")]
    inside = [f"{PurePosixPath(PurePath(name).as_posix())}/" for name in _diffusers_folders("vae")]
    files = [name for name in _files("vae") if not PurePath(name).as_posix().startswith(tuple(inside))]
    return [DEMO_NAME, *files, *folders, *pipelines, *checkpoints]


def vae_path(name: str) -> Path:
    """The file or folder of a name of `vae_names`, which may come from anywhere: only registered folders are looked in.

    Raises:
        CheckpointError: no such VAE, or a name that points out of those folders.
    """
    if name == DEMO_NAME:
        return DEMO_PATH
    kinds = {FOLDER_MARK: "vae", DIFFUSERS_MARK: "diffusers", CHECKPOINT_MARK: "checkpoints"}
    mark = next((mark for mark in kinds if name.endswith(mark)), "")
    kind, inner = kinds.get(mark, "vae"), name.removesuffix(mark)
    if not inner or "\0" in inner or not _stays_inside(inner):
        raise CheckpointError(
            f"{name!r} is no name of a VAE: it points out of the models' folders. Choose one from the list."
        )
    roots = folder_paths(kind)
    for root in roots:
        path = root / inner
        if path.is_dir() if mark in (FOLDER_MARK, DIFFUSERS_MARK) else path.is_file():
            return path
    places = " or ".join(str(root) for root in roots) or f"the host's {kind} folder, which is not registered"
    raise CheckpointError(
        f"there is no VAE named {name!r} in {places}. Put it there, refresh the page, and choose it again."
    )


def _stays_inside(name: str) -> bool:
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            return False
    return True


def folder_paths(kind: str) -> list[Path]:
    """The folders that are registered for a kind of model."""
    try:
        return [Path(path) for path in module("folder_paths").get_folder_paths(kind)]
    except (AttributeError, KeyError):
        return []


def _files(kind: str) -> list[str]:
    try:
        return list(module("folder_paths").get_filename_list(kind))
    except (AttributeError, KeyError):
        return []


def _diffusers_folders(kind: str) -> list[str]:
    """Folders below the registered ones that hold a VAE or a pipeline with one, by their names there."""
    found = set()
    for root in folder_paths(kind):
        for depth in range(1, _DIFFUSERS_DEPTH + 1):
            for path in root.glob("/".join(["*"] * depth)):
                if (path / "vae" / "config.json").is_file() or _is_vae_folder(path):
                    found.add(str(path.relative_to(root)))
    # The `vae` folder of a pipeline that is listed itself is no other VAE.
    return sorted(name for name in found if not (PurePath(name).name == "vae" and str(PurePath(name).parent) in found))


def _is_vae_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("diffusion_pytorch_model*"))


# Devices and memory.


def accelerators() -> list[str]:
    """Devices other than the CPU that torch can use, such as cuda:0."""
    found = []
    for kind in ("cuda", "xpu", "npu", "mlu"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_available():
            found += [f"{kind}:{index}" for index in range(backend.device_count())]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that are free on a device; None where nobody knows."""
    device = torch.device(device)
    ask = _management("get_free_memory")
    return int(ask(device)) if ask is not None else available_bytes(device)


# The web server.


def prompt_server() -> Any:
    """The host's web server; None where there is none."""
    return getattr(getattr(module("server"), "PromptServer", None), "instance", None)
