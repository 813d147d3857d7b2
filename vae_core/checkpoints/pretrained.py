"""A diffusers folder: `config.json` and weights in one file or in shards. What it is, and writing one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import COMMITTED, Writer, steady
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, VAEError, brief, in_one_line
from ..regular_files import read_regular
from ..units import GIB, MIB
from .config_file import CONFIG_NAME, ConfigFile, read_config_file
from .detect import DIFFUSERS, find_layout, find_prefixes
from .families import family_of_config
from .generation import SAVE_KEY, differences, fingerprint, marked, other_model, warn_of_pickles
from .key_map import weight_shapes
from .open_file import check_link, open_tensor_file
from .plan import CheckpointPlan, check_readable, inner, match_keys, plain_names
from .shapes import check_shapes
from .single_file import CONFIG_KEY, config_in_metadata
from .tensor_file import TensorFile
from .weight_names import (
    EXTENSIONS,
    SAFETENSORS_SUFFIXES,
    WEIGHT_SUFFIXES,
    WEIGHTS_STEM,
    names_of_a_save,
    variants_in,
    weight_names,
    weights_among,
)
from .write import pickled, safetensors, text, write_in_folder

_MOST_OF_A_NAME = 4096  # bytes of a file that says one
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": MIB, "GIB": GIB, "TIB": 2**40}


def find_folder(folder: Path, subfolder: str | None = None) -> Path:
    """The folder of the autoencoder: this one, its subfolder, or a pipeline's `vae`; in the Hub's cache, a snapshot's.

    Raises:
        CheckpointError: there is no `config.json`.
    """
    folder = snapshot(folder)
    if subfolder:
        folder = folder / subfolder
    if not folder.is_dir():
        raise CheckpointError(
            f"the folder {folder} does not exist. Give a folder on this disk, or ORG/NAME on the Hub."
        )
    for each in (folder, folder / "vae"):
        check_link(each / CONFIG_NAME)
        if (each / CONFIG_NAME).is_file():
            return each
    weights = weight_files(folder)
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    models = [path for path in below if (path / CONFIG_NAME).is_file() and other_model(path) is None]
    deeper = [file for path in below for file in weight_files(path)]
    remedy = f"Give one of its files: {_listed(weights)}." if weights else "Give a VAE's or a pipeline's folder."
    if models:
        remedy = f"Give the folder {models[0]}."
    elif deeper and not weights:
        remedy = f"Give one of the files below it: {', '.join(str(file.relative_to(folder)) for file in deeper[:3])}."
    if any(path.suffix == ".distcp" for path in folder.iterdir()):
        remedy = (
            "It has a distributed checkpoint (.distcp): make one file of it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and give that."
        )
    raise CheckpointError(f"{folder} has no {CONFIG_NAME}, neither itself nor in a `vae` folder. {remedy}")


def those_of_main(repository: Path, snapshots: list[Path]) -> list[Path]:
    """Of a repository's snapshots in the Hub's cache the one that its `refs/main` names; all if it names none."""
    with suppress(OSError, ValueError):
        name = read_regular(repository / "refs" / "main", _MOST_OF_A_NAME).decode(errors="replace").strip()
        return [path for path in snapshots if path.name == name] or snapshots
    return snapshots


def snapshot(folder: Path) -> Path:
    """A folder itself, or of a repository in the Hub's cache (`models--ORG--NAME`) the snapshot that is in use.

    Raises:
        CheckpointError: a repository of the cache without a snapshot that is in use.
    """
    if not (folder.name.startswith("models--") and (folder / "snapshots").is_dir()):
        return folder
    found = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    found = those_of_main(folder, found)
    if len(found) == 1:
        return found[0]
    what = "several snapshots and no refs/main" if found else "no snapshots"
    raise CheckpointError(f"{folder}, in the Hub's cache, has {what}. Give the path of a folder in `snapshots`.")


def weight_files(folder: Path) -> list[Path]:
    """Every file of weights in a folder by its ending, safetensors first."""
    files = [path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    return sorted(files, key=lambda path: (path.suffix not in SAFETENSORS_SUFFIXES, path.name))


def only_weights(folder: Path) -> list[Path]:
    """The files of a folder that may be its weights: safetensors if there are any, else pickles."""
    return [folder / name for name in weights_among(path.name for path in folder.iterdir())]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While a checkpoint is read: no save changes its folder, and one that was interrupted is completed first.

    Raises:
        CheckpointError: an interrupted save cannot be completed, or what is there cannot be read.
    """
    folders = [path, path / "vae"] if os.path.isdir(path) else [path.parent]
    with ExitStack() as stack:
        try:
            for folder in folders:
                stack.enter_context(steady(folder))
        except OSError as error:
            if not any(os.path.lexists(folder / COMMITTED) for folder in folders):
                raise _unreadable(path, error) from error
            raise CheckpointError(
                f"a save into {path} was interrupted: its files are whole, but not all are in their places, and they "
                f"cannot be put there: {in_one_line(error)} ({error.filename}). Load it once where you may write, or "
                f"save the model again."
            ) from error
        try:
            yield
        except OSError as error:
            if isinstance(error, VAEError):
                raise
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{error.filename or path} cannot be read: {in_one_line(error)}. Check the path and its permissions."
    )


def read_config(path: Path) -> AutoencoderKLConfig:
    """The config of a folder, or of a `config.json` itself.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    return read_config_file(find_folder(path) / CONFIG_NAME if path.is_dir() else path).config


def find_weights(
    folder: Path, variant: str | None = None, use_safetensors: bool | None = None
) -> tuple[Path, tuple[str, ...]]:
    """The file, or the index of shards, of a folder's weights; and remarks on how it was chosen.

    safetensors come before pickles. Without a `variant`, a folder with a single one and no plain weights gives it.
    Where no file has diffusers' name, the only file of weights is taken.

    Raises:
        CheckpointError: there are no such weights, or nothing says which.
    """
    extensions = EXTENSIONS[use_safetensors]
    for extension in extensions:
        for name in weight_names(variant, extension):
            check_link(folder / name)
            if (folder / name).is_file():
                return folder / name, ()
    present = sorted(path.name for path in folder.iterdir() if path.name.startswith(WEIGHTS_STEM))
    variants = variants_in(present)
    if variant is None and len(variants) == 1:
        weights, _ = find_weights(folder, variants[0], use_safetensors)
        return weights, (f"the folder has only the variant {variants[0]!r}; took that.",)
    first = [folder / name for name in weights_among((path.name for path in folder.iterdir()), use_safetensors)]
    if variant is None and not variants and len(first) == 1:
        check_link(first[0])
        return first[0], (f"the folder has no {WEIGHTS_STEM}.safetensors; took {first[0].name}.",)
    if variant is None and len(variants) > 1:
        choices = " or ".join(f"variant={name!r}" for name in variants[:4])
        raise CheckpointError(
            f"{folder} has its weights as the variants {', '.join(variants[:4])}, and nothing says which one to take. "
            f"Pass {choices}, or give the path of one of the files."
        )
    wanted = f"variant {variant!r} of the weights" if variant else f"{weight_names(None, extensions[0])[0]}"
    if any(path.suffix == ".msgpack" for path in folder.iterdir()) and not present:
        raise CheckpointError(f"{folder} has Flax weights only. Save it once with PyTorch weights.")
    listed = present or [path.name for path in first]
    found = f"it has {', '.join(listed[:4])}" if listed else "it has no weights at all"
    plain = {name for extension in EXTENSIONS[None] for name in weight_names(None, extension)}
    shards = [name for name in listed if re.search(r"-\d{5}-of-\d{5}\.", name)]
    if use_safetensors is not None and variant is None and plain & set(present):
        remedy = "Leave use_safetensors out."
    elif variant is not None and not variants and plain & set(present):
        remedy = "Leave variant out."
    elif shards and not any(name.endswith(".json") for name in present):
        remedy = "Those are shards: get the index that belongs to them as well (*.index.json)."
    elif variants:
        remedy = f"Pass variant={variants[0]!r}."
    elif len(first) > 1 and variant is None:
        remedy = f"Give the path of one of its files: {_listed(first)}."
    else:
        remedy = "Download the folder again."
    raise CheckpointError(f"{folder} has no {wanted} ({found}). {remedy}")


def _listed(files: list[Path]) -> str:
    return ", ".join(path.name for path in files[:3])


@dataclass(frozen=True)
class Folder:
    """A diffusers folder that was found: its config and the tensors of its weights, not yet matched."""

    config_file: ConfigFile
    source: TensorFile
    remarks: tuple[str, ...] = ()

    def plan(self, overrides: Mapping[str, Any] | None = None) -> CheckpointPlan:
        """How to load the autoencoder in it. Raises as `plan_folder`."""
        other_class = self.config_file.other_class
        if other_class is None:
            return self._plan(overrides or {})
        try:
            plan = self._plan(overrides or {})
            check_shapes(plan, weight_shapes(plan.config))
        except CheckpointError:
            raise CheckpointError(other_class) from None
        return plan

    def _plan(self, overrides: Mapping[str, Any]) -> CheckpointPlan:
        guessed = set(self.config_file.guessed)
        origins = self.config_file.origins(CONFIG_NAME) | dict.fromkeys(overrides, "override")
        config = self.config_file.config.replace(**overrides)
        plain = plain_names(self.source)
        part = inner(self.source, next(iter(find_prefixes(plain)), ""), plain)
        check_readable(part)
        matched = match_keys(part, config)
        family = family_of_config(config)
        saved = config_in_metadata(self.source)
        mixture = None if saved is None else differences(self.config_file.config, saved)
        return CheckpointPlan(
            source=part.source,
            config=config,
            keys=matched.keys,
            layout=find_layout(part.names) or DIFFUSERS,
            prefix=part.prefix,
            family=family.name if family else None,
            family_is_guess="scaling_factor" in guessed - set(overrides),
            origins=origins,
            remarks=(
                *self.remarks,
                *self.config_file.remarks,
                *self.source.remarks,
                *matched.remarks,
                *([mixture] if mixture else []),
            ),
            scales=matched.scales,
            beside=matched.beside,
        )


def open_folder(folder: Path, variant: str | None = None, use_safetensors: bool | None = None) -> Folder:
    """The config and the tensors of a diffusers folder.

    Raises:
        CheckpointError: one of them is missing or cannot be read.
    """
    config_file = read_config_file(folder / CONFIG_NAME)
    weights, remarks = find_weights(folder, variant, use_safetensors)
    return Folder(config_file, open_tensor_file(weights), remarks)


def plan_folder(
    folder: Path,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    use_safetensors: bool | None = None,
) -> CheckpointPlan:
    """How to load the autoencoder of a diffusers folder.

    Raises:
        CheckpointError: there is no whole AutoencoderKL in it.
        ConfigError: an override that no AutoencoderKL has.
    """
    return open_folder(folder, variant, use_safetensors).plan(overrides)


def parse_size(size: int | str) -> int:
    """Bytes of "10GB", "500MiB", "123" or a number. Raises CheckpointError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", str(size).upper())
    unit = match[2] if match else "?"
    value = int(float(match[1]) * UNITS[unit]) if match and unit in UNITS else 0
    if value < 1:
        raise CheckpointError(f"max_shard_size is {brief(size)}; give a size such as '10GB' or '500MB', or bytes.")
    return value


def split_into_shards(weights: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Weights in their order, in groups of at most `max_bytes`; no weight is ever split."""
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, weight in weights.items():
        size = weight.nbytes
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
    guessed: Collection[str] = (),
    release: Callable[[], None] | None = None,
) -> None:
    """Write `config.json` and the weights, all of them or none; see `atomic.write_together`.

    Weights that an earlier save of the same variant left, in this format or another one, are removed: with the new
    config they would be neither the old model nor the new one, and which format is loaded is up to who loads.

    Args:
        overwrite: False raises where a file would be replaced or removed.
        guessed: names of the config's fields that are guesses, and are marked as such.
        others: names of more files that belong to this save, and what writes them.

    Raises:
        CheckpointError: the folder is another model's, has weights without a config or files without being asked to
            `overwrite` them, or cannot be written.
    """
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise CheckpointError(f"variant is {brief(variant)}; use letters, digits, - and _ alone, such as 'fp16'.")
    kind = other_model(folder)
    if kind is not None:
        raise CheckpointError(f"{folder} is the folder of {kind}, which would be overwritten. Give another folder.")
    extension = "safetensors" if safe_serialization else "bin"
    stem = WEIGHTS_STEM if variant is None else f"{WEIGHTS_STEM}.{variant}"
    shards = split_into_shards(weights, parse_size(max_shard_size))
    single, index, *_ = weight_names(variant, extension)
    writers: dict[str, Writer] = {CONFIG_NAME: text(_json(marked(config.to_dict(), guessed)))}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(marked(config.without_extras(), guessed))}
    sign: dict[str, str] = {}
    if len(shards) == 1:
        files = {single: shards[0]}
    else:
        names = [f"{stem}-{i:05d}-of-{len(shards):05d}.{extension}" for i in range(1, len(shards) + 1)]
        files = dict(zip(names, shards, strict=True))
        total = sum(weight.nbytes for weight in weights.values())
        weight_map = {key: name for name, shard in files.items() for key in shard}
        sign[SAVE_KEY] = fingerprint(weights)
        writers[index] = text(_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
    for name, tensors in files.items():
        writers[name] = safetensors(tensors, metadata | sign) if safe_serialization else pickled(tensors, sign)
    writers |= others or {}

    warn_of_pickles(folder, config.to_dict(), names_of_a_save(variant))
    leftovers = partial(_earlier_save, folder, variant, writers)
    write_in_folder(folder, writers, leftovers=leftovers, overwrite=overwrite, release=release)


def _earlier_save(folder: Path, variant: str | None, names: Collection[str]) -> list[str]:
    """Weights of a folder that would not belong to its config any more once files of these names are written.

    Raises:
        CheckpointError: nothing says whose they are, for there is no config.
    """
    pattern = names_of_a_save(variant)
    found = sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name) and not path.is_dir())
    others = [name for name in found if name not in names]
    if others and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} has {others[0]} and no {CONFIG_NAME}, so nothing says whose weights these are, and beside the "
            f"new ones they could be loaded in their place. Give another folder, or move them away."
        )
    return others


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
