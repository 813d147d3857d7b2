"""VAEs in the Hugging Face Hub's cache on this disk, by the names that they have there. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..vae_core.checkpoints.pretrained import those_of_main

STEM = "diffusion_pytorch_model"
ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it has downloaded, by the environment as that library reads it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def names() -> list[str]:
    """`org/name` of each repository with a VAE's folder, `org/name/file` of each VAE's file in one without."""
    found = []
    for repository in _entries(cache_folder()):
        kind, *parts = repository.name.split("--")
        snapshot = _snapshot(repository) if kind == "models" and parts else None
        if snapshot is None:
            continue
        name = "/".join(parts)
        if _is_vae(snapshot) or _is_vae(snapshot / "vae"):
            found.append(name)
        else:
            found += [f"{name}/{file}" for file in _files(snapshot)]
    return sorted(found)


def path_of(name: str) -> Path | None:
    """The folder or the file of one of `names`, as it is on this disk; None if it is not there.

    Args:
        name: relative, and without a way upwards.
    """
    parts = name.replace("\\", "/").split("/")
    for count in (2, 1):
        repository = cache_folder() / "--".join(["models", *parts[:count]])
        snapshot = _snapshot(repository) if len(parts) >= count and repository.is_dir() else None
        if snapshot is not None:
            path = snapshot.joinpath(*parts[count:])
            return path if os.path.exists(path) else None
    return None


def _snapshot(repository: Path) -> Path | None:
    """Of a repository the snapshot of `main`, or the newest; None where there is none."""
    snapshots = [path for path in _entries(repository / "snapshots") if os.path.isdir(path)]
    return max(those_of_main(repository, snapshots), key=os.path.getmtime, default=None)


def _is_vae(folder: Path) -> bool:
    """Whether a folder has a config and whole weights: links into the cache can lead to nothing."""
    if not os.path.isfile(folder / "config.json"):
        return False
    return any(path.name.startswith(STEM) and path.suffix in ENDINGS and path.is_file() for path in _entries(folder))


def _files(snapshot: Path) -> Iterator[str]:
    """Files of weights at the top, unless it is another model's folder, and in folders that are called vae."""
    places = [Path("vae"), Path("split_files/vae"), Path("VAE")]
    if not any(os.path.isfile(snapshot / name) for name in ("config.json", "model_index.json")):
        places.insert(0, Path())
    seen = set()
    for place in places:
        for path in _entries(snapshot / place):
            if path.suffix in ENDINGS and path.is_file() and os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                yield (place / path.name).as_posix()


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is not there or may not be entered."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
