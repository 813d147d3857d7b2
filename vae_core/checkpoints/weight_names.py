"""The names that diffusers has used for a pipeline and for the weights in a folder, on a disk and on the Hub."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable

PIPELINE_NAME = "model_index.json"  # of a pipeline's folder, which has its models in folders
WEIGHTS_STEM = "diffusion_pytorch_model"
FLAX_WEIGHTS = "diffusion_flax_model.msgpack"
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
WEIGHT_SUFFIXES = (*SAFETENSORS_SUFFIXES, ".ckpt", ".pt", ".pth", ".bin")
EXTENSIONS = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}  # by `use_safetensors`


def weight_names(variant: str | None, extension: str) -> tuple[str, ...]:
    """Of one file of weights and of an index of shards, the likeliest first."""
    if variant is None:
        return (f"{WEIGHTS_STEM}.{extension}", f"{WEIGHTS_STEM}.{extension}.index.json")
    return (
        f"{WEIGHTS_STEM}.{variant}.{extension}",
        f"{WEIGHTS_STEM}.{extension}.index.{variant}.json",
        f"{WEIGHTS_STEM}.{variant}.{extension}.index.json",
    )


def globs_of_a_save(variant: str | None) -> list[str]:
    """The names of the weights that saves of one variant leave in a folder, in any format, alone or in shards: as
    patterns of a shell."""
    stem = WEIGHTS_STEM if variant is None else f"{WEIGHTS_STEM}.{variant}"
    shards = [f"{glob.escape(stem)}-{'[0-9]' * 5}-of-{'[0-9]' * 5}.{extension}" for extension in EXTENSIONS[None]]
    names = [glob.escape(name) for extension in EXTENSIONS[None] for name in weight_names(variant, extension)]
    return [*shards, *names, *([FLAX_WEIGHTS] if variant is None else [])]


def names_of_a_save(variant: str | None) -> re.Pattern[str]:
    """The same names as one expression."""
    return re.compile("|".join(map(fnmatch.translate, globs_of_a_save(variant))))


def variants_in(names: Iterable[str]) -> list[str]:
    """The variants, such as fp16, of the weights in a folder with files of these names."""
    return sorted({variant for name in names if (variant := _variant_of(name)) is not None})


def _variant_of(name: str) -> str | None:
    shard = r"(?:-\d{5}-of-\d{5})?"
    match = re.fullmatch(
        rf"{WEIGHTS_STEM}\.(?:(?:safetensors|bin)\.index\.)?([\w-]+?){shard}\.(?:safetensors|bin|json)", name
    )
    return match[1] if match and match[1] not in ("safetensors", "bin", "index") else None


def weights_among(names: Iterable[str], use_safetensors: bool | None = None) -> list[str]:
    """Those names that are files of weights by their ending: of safetensors if there are any, else of pickles."""
    found = sorted(name for name in names if name.endswith(WEIGHT_SUFFIXES))
    safe = [name for name in found if name.endswith(SAFETENSORS_SUFFIXES)]
    return {None: safe or found, True: safe, False: [name for name in found if name not in safe]}[use_safetensors]
