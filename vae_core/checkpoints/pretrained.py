"""A diffusers folder: `config.json` and weights in one file or in shards. What it is, and writing one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import Writer, steady
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, ConfigError
from .detect import find_layout, find_prefixes
from .families import family_of_config
from .generation import SAVE_KEY, differences, fingerprint, other_model
from .plan import Plan, inner_tensors, match_keys
from .single_file import CONFIG_KEY, config_in_metadata
from .tensor_file import open_tensor_file
from .write import pickled, safetensors, text, write_in_folder

CONFIG_NAME = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def find_folder(folder: Path, subfolder: str | None = None) -> Path:
    """The folder that holds the autoencoder: this one, its subfolder, or a pipeline's `vae`.

    Raises:
        CheckpointError: there is no `config.json`.
    """
    if subfolder:
        folder = folder / subfolder
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}. Nothing is downloaded: give the path of a folder on disk.")
    if (folder / CONFIG_NAME).is_file():
        return folder
    if (folder / "vae" / CONFIG_NAME).is_file():
        return folder / "vae"
    weights = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"))
    remedy = f"Give one of its files: {', '.join(weights[:3])}." if weights else "Give a VAE's or a pipeline's folder."
    raise CheckpointError(f"{folder} has no {CONFIG_NAME}, neither itself nor in a `vae` folder. {remedy}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While a checkpoint is read: no save changes its folder, and one that was interrupted is completed first.

    Raises:
        CheckpointError: an interrupted save cannot be completed.
    """
    folders = [path, path / "vae"] if path.is_dir() else [path.parent]
    with ExitStack() as stack:
        try:
            for folder in folders:
                stack.enter_context(steady(folder))
        except OSError as error:
            raise CheckpointError(
                f"a save into {path} was interrupted: its files are whole, but not all are in their places, and they "
                f"cannot be put there: {error.strerror} ({error.filename}). Load it once where you may write, or save "
                f"the model again."
            ) from error
        yield


def read_config(path: Path) -> AutoencoderKLConfig:
    """The config of a folder, or of a `config.json` itself.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        file = find_folder(path) / CONFIG_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}. Nothing is downloaded: give a folder or a config.json.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. Download or copy it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds a {type(values).__name__}, not the fields of a config. Download it again.")
    try:
        return AutoencoderKLConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def find_weights(
    folder: Path, variant: str | None = None, use_safetensors: bool | None = None
) -> tuple[Path, str | None]:
    """The file, or the index of shards, that holds a folder's weights, and the variant it is.

    safetensors come before pickles. Without a `variant`, a folder that has a single one and no plain weights gives it.

    Raises:
        CheckpointError: there are no such weights.
    """
    extensions = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}[use_safetensors]
    for extension in extensions:
        for name in _weight_names(variant, extension):
            if (folder / name).is_file():
                return folder / name, variant
    present = sorted(path.name for path in folder.iterdir() if path.name.startswith(WEIGHTS_STEM))
    variants = sorted({found for name in present if (found := _variant_of(name)) is not None})
    if variant is None and len(variants) == 1:
        return find_weights(folder, variants[0], use_safetensors)
    wanted = f"variant {variant!r} of the weights" if variant else f"{_weight_names(None, extensions[0])[0]}"
    if any(path.suffix == ".msgpack" for path in folder.iterdir()) and not present:
        raise CheckpointError(f"{folder} has Flax weights only. Save it once with PyTorch weights.")
    found = f"it has {', '.join(present[:4])}" if present else "it has no weights at all"
    remedy = f"Pass variant={variants[0]!r}." if variants else "Download the folder again."
    raise CheckpointError(f"{folder} has no {wanted} ({found}). {remedy}")


def _weight_names(variant: str | None, extension: str) -> tuple[str, ...]:
    """The names that diffusers has used for one file of weights and for an index of shards."""
    if variant is None:
        return (f"{WEIGHTS_STEM}.{extension}", f"{WEIGHTS_STEM}.{extension}.index.json")
    return (
        f"{WEIGHTS_STEM}.{variant}.{extension}",
        f"{WEIGHTS_STEM}.{extension}.index.{variant}.json",
        f"{WEIGHTS_STEM}.{variant}.{extension}.index.json",
    )


def _variant_of(name: str) -> str | None:
    match = re.fullmatch(rf"{WEIGHTS_STEM}\.(?:(?:safetensors|bin)\.index\.)?([\w-]+?)\.(?:safetensors|bin|json)", name)
    return match[1] if match and match[1] not in ("safetensors", "bin", "index") else None


def plan_folder(
    folder: Path,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    use_safetensors: bool | None = None,
) -> Plan:
    """How to load the autoencoder of a diffusers folder.

    Raises:
        CheckpointError: there is no whole AutoencoderKL in it.
        ConfigError: an override that no AutoencoderKL has.
    """
    config = read_config(folder)
    weights, found_variant = find_weights(folder, variant, use_safetensors)
    source = open_tensor_file(weights)
    saved = config_in_metadata(source)
    mixture = None if saved is None else differences(config, saved)
    told_by = dict.fromkeys(config, CONFIG_NAME) | dict.fromkeys(overrides or {}, "override")
    config = config.replace(**(overrides or {}))
    prefix = next(iter(find_prefixes(source.tensors)), "")
    keys = match_keys(source, config, prefix)
    layout = find_layout(inner_tensors(source, prefix))
    family = family_of_config(config)
    remarks = () if found_variant == variant else (f"the folder has only the variant {found_variant!r}; took that.",)
    name = layout.name if layout else "diffusers"
    remarks += () if mixture is None else (mixture,)
    return Plan(source, config, keys, name, prefix, family.name if family else None, False, told_by, remarks)


def parse_size(size: int | str) -> int:
    """Bytes of "10GB", "500MiB", "123" or a number. Raises CheckpointError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(size).upper())
    unit = match[2] if match else "?"
    value = int(float(match[1]) * UNITS[unit]) if match and unit in UNITS else 0
    if value < 1:
        raise CheckpointError(f"max_shard_size is {size!r}; give a size such as '10GB' or '500MB', or bytes.")
    return value


def split_into_shards(weights: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Weights in their order, in groups of at most `max_bytes`; no weight is ever split."""
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, weight in weights.items():
        size = weight.numel() * weight.element_size()
        if shards[-1] and used + size > max_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = weight
        used += size
    return shards


def write_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: AutoencoderKLConfig,
    *,
    safe_serialization: bool = True,
    max_shard_size: int | str = "10GB",
    variant: str | None = None,
    overwrite: bool = True,
    others: Mapping[str, Writer] | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Write `config.json` and the weights, all of them or none; see `atomic.write_together`.

    Shards or a single file that an earlier save of the same variant and format left are removed.

    Args:
        overwrite: False raises where a file would be replaced or removed.
        others: names of more files that belong to this save, and what writes them.

    Raises:
        CheckpointError: the folder is another model's, has files without being asked to `overwrite` them, or cannot
            be written.
    """
    if variant is not None and not re.fullmatch(r"[\w-]+", variant):
        raise CheckpointError(f"variant is {variant!r}; use letters, digits, - and _ alone, such as 'fp16'.")
    kind = other_model(folder)
    if kind is not None:
        raise CheckpointError(f"{folder} is the folder of {kind}, which would be overwritten. Give another folder.")
    extension = "safetensors" if safe_serialization else "bin"
    stem = WEIGHTS_STEM if variant is None else f"{WEIGHTS_STEM}.{variant}"
    shards = split_into_shards(weights, parse_size(max_shard_size))
    single, index, *_ = _weight_names(variant, extension)
    writers: dict[str, Writer] = {CONFIG_NAME: text(_json(config.to_dict()))}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(dict(config))}
    if len(shards) == 1:
        files = {single: shards[0]}
    else:
        names = [f"{stem}-{i:05d}-of-{len(shards):05d}.{extension}" for i in range(1, len(shards) + 1)]
        files = dict(zip(names, shards, strict=True))
        total = sum(weight.numel() * weight.element_size() for weight in weights.values())
        weight_map = {key: name for name, shard in files.items() for key in shard}
        metadata[SAVE_KEY] = fingerprint(weights)
        writers[index] = text(_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
    for name, tensors in files.items():
        writers[name] = safetensors(tensors, metadata) if safe_serialization else pickled(tensors)
    writers |= others or {}

    leftover = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.{extension}|{re.escape(single)}|{re.escape(index)}")

    def leftovers() -> list[str]:
        return sorted(path.name for path in folder.iterdir() if leftover.fullmatch(path.name))

    write_in_folder(folder, writers, leftovers=leftovers, overwrite=overwrite, release=release)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
