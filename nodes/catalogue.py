"""What can be chosen from: VAEs by name, families of latents, devices, folders of latents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import torch

from ..vae_core.checkpoints.families import FAMILIES
from ..vae_core.datasets.folders import has_latents
from ..vae_core.errors import CheckpointError, ConfigError, DatasetError, brief, check_choice
from . import host, hub_cache
from .checks import stays_inside

AUTO = "auto"
DEMO_NAME = "demo"
DEMO_PATH = Path(__file__).resolve().parents[1] / "vae_core" / "demo"
# What follows the names of VAEs that are not files of models/vae.
FOLDER_MARK = " [folder]"
DIFFUSERS_MARK = " [diffusers]"
CHECKPOINT_MARK = " [checkpoint]"
HUB_MARK = " [Hugging Face]"
_KIND_OF_MARK = {FOLDER_MARK: "vae", DIFFUSERS_MARK: "diffusers", CHECKPOINT_MARK: "checkpoints"}
_DIFFUSERS_DEPTH = 3
# Folders of latents: the host's own, and what extra_model_paths.yaml registers under the last name.
DEMO_LATENTS = DEMO_PATH / "latents"
_LATENT_ROOTS = ("input", "output", "latents")
_LATENT_DEPTH = 3


def vae_names() -> list[str]:
    """The VAEs that can be loaded: `demo`, files of models/vae, then what is marked as such.

    That is folders, checkpoints, and what other programs have downloaded from the Hugging Face Hub.
    """
    inner_folders = _diffusers_folders("vae")
    folders = [f"{name}{FOLDER_MARK}" for name in inner_folders]
    pipelines = [f"{name}{DIFFUSERS_MARK}" for name in _diffusers_folders("diffusers")]
    checkpoints = [f"{name}{CHECKPOINT_MARK}" for name in host.filenames("checkpoints")]
    inside = tuple(f"{PurePath(name).as_posix()}/" for name in inner_folders)
    files = [name for name in host.filenames("vae") if not PurePath(name).as_posix().startswith(inside)]
    downloaded = [f"{name}{HUB_MARK}" for name in hub_cache.names()]
    return [DEMO_NAME, *files, *folders, *pipelines, *checkpoints, *downloaded]


def vae_path(name: str) -> Path:
    """The file or folder of a name of `vae_names`.

    The name may come from anywhere, such as a downloaded workflow: only registered folders are searched.

    Raises:
        CheckpointError: no such VAE, or a name that points out of those folders.
    """
    if name == DEMO_NAME:
        return DEMO_PATH
    if not isinstance(name, str):
        raise CheckpointError(f"{brief(name)} is not the name of a VAE. Choose one from the list.")
    mark = next((mark for mark in (*_KIND_OF_MARK, HUB_MARK) if name.endswith(mark)), "")
    kind = _KIND_OF_MARK.get(mark, "vae")
    inner = name.removesuffix(mark)
    if not inner or not stays_inside(inner):
        raise CheckpointError(
            f"{brief(name)} is not the name of a VAE: it points outside the models folders. Choose one from the list."
        )
    if mark == HUB_MARK:
        found = hub_cache.path_of(inner)
        if found is None:
            raise CheckpointError(
                f"cannot find {inner} in the Hugging Face cache ({hub_cache.cache_folder()}). Nodes download nothing: "
                f"download it with `hf download {inner}`, refresh the page, and choose it again."
            )
        return found
    roots = host.folder_paths(kind)
    exists = os.path.isdir if mark in (FOLDER_MARK, DIFFUSERS_MARK) else os.path.isfile
    for root in roots:
        for path in (root / inner, root / inner.replace("\\", "/")):  # as workflows made on Windows name them
            if exists(path):
                return path
    places = " or ".join(str(root) for root in roots) or f"ComfyUI's {kind} folder, which is not registered"
    raise CheckpointError(
        f"cannot find a VAE named {brief(name)} in {places}. Put it there, refresh the page, and choose it again."
    )


def _diffusers_folders(kind: str) -> list[str]:
    """Folders below the registered ones that contain a VAE or a pipeline with one, by their names there."""
    found = set()
    for root in host.folder_paths(kind):
        for depth in range(1, _DIFFUSERS_DEPTH + 1):
            for path in root.glob("/".join(["*"] * depth)):
                if os.path.isfile(path / "vae" / "config.json") or _is_vae_folder(path):
                    found.add(str(path.relative_to(root)))
    # The `vae` folder of a pipeline that is listed itself is not another VAE.
    return sorted(name for name in found if not (PurePath(name).name == "vae" and str(PurePath(name).parent) in found))


def _is_vae_folder(path: Path) -> bool:
    # os.path answers False for a folder that may not be entered, such as lost+found.
    return os.path.isfile(path / "config.json") and any(path.glob("diffusion_pytorch_model*"))


def latent_folders() -> list[str]:
    """The folders that have latents, `demo` first; each marked with where it is, such as `photos [output]`."""
    found = [DEMO_NAME]
    for kind in _LATENT_ROOTS:
        names = {name for root in _latent_roots(kind) for name in _latent_folders(root, PurePath(), _LATENT_DEPTH)}
        found += [f"{name} [{kind}]" for name in sorted(names)]
    return found


def latent_folder(name: str) -> Path:
    """The folder of a name of `latent_folders`, which may come from anywhere.

    Raises:
        DatasetError: no such folder, or a name that points out of the host's folders.
    """
    if name == DEMO_NAME:
        return DEMO_LATENTS
    kind = next((kind for kind in _LATENT_ROOTS if isinstance(name, str) and name.endswith(f" [{kind}]")), None)
    inner = name.removesuffix(f" [{kind}]") if kind else ""
    if kind is None or not inner or not stays_inside(inner):
        raise DatasetError(f"{brief(name)} is not the name of a folder of latents. Choose one from the list.")
    roots = _latent_roots(kind)
    for root in roots:
        for path in (root / inner, root / inner.replace("\\", "/")):  # as workflows made on Windows name them
            if os.path.isdir(path):
                return path
    places = " or ".join(str(root) for root in roots) or f"a {kind} folder, which does not exist"
    raise DatasetError(
        f"cannot find a folder named {brief(inner)} in {places}. Refresh the page, and choose another one."
    )


def _latent_roots(kind: str) -> list[Path]:
    roots = host.folder_paths(kind) if kind == "latents" else [host.directory(kind)]
    return [root for root in roots if os.path.isdir(root)]


def _latent_folders(root: Path, inner: PurePath, depth: int) -> Iterator[str]:
    """The folders with latents in one that is so many levels from the deepest, by their names below the root."""
    try:
        with os.scandir(root / inner) as entries:
            kinds = {entry.name: entry.is_dir() for entry in entries}
    except OSError:  # one that may not be entered
        return
    if has_latents(root / inner, [name for name, is_folder in kinds.items() if not is_folder]):
        yield inner.as_posix()
        return
    if depth:
        for name in sorted(name for name, is_folder in kinds.items() if is_folder and not name.startswith(".")):
            yield from _latent_folders(root, inner / name, depth - 1)


def family_names() -> list[str]:
    """The families that scale their latents by numbers of their own; FLUX.2 has its statistics in the file."""
    return [family.name for family in FAMILIES if not family.batch_norm]


def family_fields(name: str) -> dict[str, Any]:
    """The config fields by which a family scales its latents.

    Raises:
        ConfigError: no such family.
    """
    check_choice("latent_scale", name, [AUTO, *family_names()])
    return next(family.scaling for family in FAMILIES if family.name == name)


def device_names() -> list[str]:
    return ["cpu", *host.accelerators()]


def device_of(name: str) -> torch.device:
    """The device of a name; of `auto`, ComfyUI's VAE device.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == AUTO:
        return host.vae_device()
    if name not in device_names():
        there = ", ".join(device_names())
        raise ConfigError(f"device {name} is not available, only {there}. Choose one of these, or auto.")
    return torch.device(name)
