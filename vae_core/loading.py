"""Checkpoints to AutoencoderKL and back: one function for every format."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .autoencoder_kl import AutoencoderKL
from .checkpoints.build import build_model, check_weights, dtype_of, parse_dtype
from .checkpoints.config_file import CONFIG_NAME
from .checkpoints.generation import guesses_of
from .checkpoints.identify import identify
from .checkpoints.open_file import open_tensor_file
from .checkpoints.plain import extra_weights
from .checkpoints.plan import CheckpointPlan, plain_names
from .checkpoints.pretrained import Folder, find_folder, only_weights, open_folder, reading, snapshot
from .checkpoints.single_file import plan_single_file, write_single_file
from .checkpoints.tensor_file import TensorFile
from .checkpoints.weight_names import PIPELINE_NAME
from .checkpoints.write import checked_path
from .config import AutoencoderKLConfig
from .errors import CheckpointError, ConfigError
from .halves import unwrapped
from .hub import HubOptions, header_on_disk, on_disk
from .hub_names import hub_name
from .pretrained_mixin import GivenConfig, given_config
from .temporary import temporary_folder

logger = logging.getLogger("seamless_vae")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class VAEInfo:
    """What a checkpoint is, from its header.

    Attributes:
        path: the file, or the folder's weights (an index, if they are in shards).
        container: "safetensors" or "pickle"; None if it cannot be read as either.
        layout: whose key names it has, "LDM" or "diffusers"; None if it is not an AutoencoderKL.
        prefix: what its keys begin with in a full checkpoint, such as "first_stage_model.".
        file_size: bytes, of all shards together; None of a folder that cannot be read.
        parameters: number of weights of the VAE.
        dtype: number type of the weights.
        config: every hyper-parameter. `scaling_factor` and `shift_factor` are repeated beside it.
        family: its published family; None if its shapes or its scaling are not those of a known one.
        family_is_guess: whether other families have the same shapes and nothing in the file decided.
        origins: config field -> where its value comes from ("config.json", "metadata", "tensor shapes",
            "config.json beside the file", "the rest of the checkpoint", "family default", "family default (a guess)",
            "default", "default (a guess)", "override").
        seems_to_be: what it is if it is not an AutoencoderKL that can be loaded; None if it is one, and of what cannot
            be read.
        problem: why it cannot be loaded, as `load_vae` would say; None if it can.
        remarks: sentences on what was guessed.
    """

    path: Path
    container: str | None = None
    file_size: int | None = None
    layout: str | None = None
    prefix: str = ""
    parameters: int = 0
    dtype: torch.dtype | None = None
    config: AutoencoderKLConfig | None = None
    family: str | None = None
    family_is_guess: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    seems_to_be: str | None = None
    problem: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def scaling_factor(self) -> float | None:
        return self.config.scaling_factor if self.config else None

    @property
    def shift_factor(self) -> float | None:
        return self.config.shift_factor if self.config else None


def load_vae(
    path: PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    variant: str | None = None,
    config: GivenConfig = None,
    disable_mmap: bool = False,
    **overrides: Any,
) -> AutoencoderKL:
    """Load an AutoencoderKL from any checkpoint, in eval mode.

    Weights stay in a private memory map of the file: nothing is read before it is used, and training does not
    change the file. While the model is in use the file must stay as it is: the system ends a process (SIGBUS) that
    uses a map of a file that was cut short, and a file that is written over in place changes the model. (Files that
    are replaced, as this package saves them, do neither.) A program that must not depend on that passes
    `disable_mmap=True`, as the nodes for ComfyUI do.

    Args:
        path: a diffusers folder, a pipeline's folder with `vae/`, a single file (safetensors or pickle, LDM's or
            diffusers' keys, a VAE alone or a full checkpoint), or an index of shards. What is not a path on this disk
            is a name or an address on the Hugging Face Hub: "org/name", "org/name/file.safetensors", "https://...".
        dtype: a floating-point type or its name; None and "auto" keep the file's. (8-bit floats become bfloat16,
            which has them exactly, or with scales the type of the other weights.)
        variant: of a folder's weights, such as "fp16".
        config: for a single file: an AutoencoderKLConfig, its fields, a `config.json` or the folder of one. Without
            it, a `config.json` beside the file is used if the file has the shapes that it says.
        disable_mmap: copy the weights into memory, all of them at once.
        overrides: config fields that win over what the checkpoint says, such as scaling_factor; and for the Hub
            `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Raises:
        CheckpointError: no whole AutoencoderKL there; says what it seems to be and what to do.
        UnsafeCheckpointError: a pickle that asks for code to be run.
        ConfigError: an override or a config that no AutoencoderKL has.
    """
    parse_dtype(dtype)  # before any work
    options, overrides = HubOptions.split(overrides)
    path = on_disk(path, options, variant=variant)
    with reading(path):
        plan = plan_checkpoint(path, variant, config, overrides)
        return build_model(AutoencoderKL, plan, dtype, device, mapped=not disable_mmap)


def inspect_vae(
    path: PathLike,
    *,
    variant: str | None = None,
    config: GivenConfig = None,
    **overrides: Any,
) -> VAEInfo:
    """Say what a checkpoint is from its header and its biases, a thousandth of it. Takes what `load_vae` takes.

    Of a safetensors file on the Hub the header alone is fetched, and its biases are not looked at.

    What cannot be loaded is not an error: `VAEInfo.problem` is what `load_vae` says of it, whatever is wrong with it.

    Raises:
        CheckpointError: there is nothing at the path, or on the Hub under the name. `load_vae` says the same.
        ConfigError: an override that no AutoencoderKL has.
    """
    options, overrides = HubOptions.split(overrides)
    name = hub_name(path)
    if name is None:
        return _inspect(on_disk(path, options), variant, config, overrides)
    with temporary_folder("the header of the weights") as folder:
        info = _inspect(header_on_disk(path, Path(folder), options, variant), variant, config, overrides)
    return dataclasses.replace(info, path=Path(str(name)))


def _inspect(path: Path, variant: str | None, config: GivenConfig, overrides: Mapping[str, Any]) -> VAEInfo:
    try:
        with reading(path):
            return _inspected(find_checkpoint(path, variant, config), overrides)
    except CheckpointError as error:
        if not os.path.lexists(path):
            raise
        return VAEInfo(path, file_size=path.stat().st_size if os.path.isfile(path) else None, problem=str(error))


def _inspected(found: Folder | SingleFile, overrides: Mapping[str, Any]) -> VAEInfo:
    source = found.source
    try:
        plan = found.plan(overrides)
        check_weights(plan)
    except (CheckpointError, ConfigError) as error:
        if isinstance(error, ConfigError) and overrides:
            raise
        identity = identify({plain: source.tensors[real] for plain, real in plain_names(source).items()})
        what = identity.what if identity else "a model of a kind that is not known here, or a damaged AutoencoderKL"
        return VAEInfo(source.path, source.container, source.file_size, seems_to_be=what, problem=str(error))
    return VAEInfo(
        path=source.path,
        container=source.container,
        file_size=source.file_size,
        layout=plan.layout,
        prefix=plan.prefix,
        parameters=sum(plan.info(key).elements for key in plan.keys if not key.startswith("bn.")),
        dtype=dtype_of(plan),
        config=plan.config,
        family=plan.family,
        family_is_guess=plan.family_is_guess,
        origins=plan.origins,
        remarks=plan.remarks,
    )


def save_single_file(
    vae: AutoencoderKL, path: PathLike, *, dtype: torch.dtype | str | None = None, overwrite: bool = True
) -> None:
    """Write one safetensors file with LDM keys, which ComfyUI, A1111 and diffusers read, the config in its header.

    The file is written beside its place and renamed, so that a failure leaves what was there; it may be the very
    file that the model was loaded from.

    Args:
        dtype: type of the floating-point weights in the file; None and "auto" keep the model's.
        overwrite: False raises if the path exists, even if it was made meanwhile.

    Raises:
        CheckpointError: the file cannot be written.
        ConfigError: not a model of this package.
    """
    wanted = parse_dtype(dtype)
    vae = unwrapped(vae)
    weights = vae.weights_to_save()
    extra = extra_weights(vae)
    if extra:
        logger.warning("left out %s, ...: a single file has the autoencoder alone.", ", ".join([*extra][:3]))
    if wanted is not None:
        weights = {key: w.to(wanted) if w.is_floating_point() else w for key, w in weights.items()}
    write_single_file(
        checked_path(path),
        weights,
        vae.config,
        overwrite=overwrite,
        guessed=guesses_of(vae),
        release=vae.release_files,
    )


@dataclass(frozen=True)
class SingleFile:
    """A file of tensors that was found, not yet matched."""

    source: TensorFile
    config: AutoencoderKLConfig | None = None

    def plan(self, overrides: Mapping[str, Any]) -> CheckpointPlan:
        return plan_single_file(self.source, overrides, self.config)


def find_checkpoint(path: Path, variant: str | None, config: GivenConfig = None) -> Folder | SingleFile:
    """The checkpoint at a path, whatever its format: opened, and not yet looked at for an autoencoder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if path.name == CONFIG_NAME and config is None:
        return open_folder(path.parent, variant)
    if path.name == PIPELINE_NAME and config is None and path.is_file():
        return open_folder(find_folder(path.parent), variant)
    if not path.is_dir():
        return SingleFile(open_tensor_file(path), given_config(config))
    if config is not None:
        raise CheckpointError(f"{path} is a folder, which has its own config. Pass single fields as overrides.")
    folder = snapshot(path)
    weights = only_weights(folder)
    if len(weights) == 1 and not any(os.path.lexists(each / CONFIG_NAME) for each in (folder, folder / "vae")):
        return SingleFile(open_tensor_file(weights[0]))
    return open_folder(find_folder(folder), variant)


def plan_checkpoint(
    path: PathLike, variant: str | None, config: GivenConfig, overrides: Mapping[str, Any]
) -> CheckpointPlan:
    """How to load the autoencoder at a path, whatever its format."""
    return find_checkpoint(Path(path), variant, config).plan(overrides)
