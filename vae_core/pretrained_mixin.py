"""diffusers' methods for loading and saving, on top of `checkpoints`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .checkpoints.build import build_model, parse_dtype
from .checkpoints.pretrained import find_folder, plan_folder, read_config, reading, write_folder
from .checkpoints.single_file import plan_single_file
from .checkpoints.tensor_file import open_tensor_file
from .checkpoints.write import checked_path
from .config import AutoencoderKLConfig
from .errors import CheckpointError

Self = TypeVar("Self", bound="PretrainedMixin")
PathLike = str | os.PathLike[str]

# What callers of diffusers pass that has no meaning for a file on this disk, read through a memory map.
IGNORED_ARGUMENTS = frozenset(
    (
        *("cache_dir", "force_download", "resume_download", "proxies", "local_files_only", "token", "use_auth_token"),
        *("revision", "mirror", "user_agent", "low_cpu_mem_usage", "disable_mmap", "from_flax", "dduf_entries"),
        *("ignore_mismatched_sizes", "offload_folder", "offload_state_dict", "max_memory", "keep_in_fp32_modules"),
        *("quantization_config", "original_config", "original_config_file", "image_size"),
    )
)


def given_config(
    config: AutoencoderKLConfig | Mapping[str, Any] | PathLike | None,
) -> AutoencoderKLConfig | None:
    """A config from itself, from its fields, or from a path: a `config.json`, its folder, or a pipeline's folder."""
    if config is None or isinstance(config, AutoencoderKLConfig):
        return config
    return AutoencoderKLConfig.from_dict(config) if isinstance(config, Mapping) else read_config(Path(config))


class PretrainedMixin:
    """from_pretrained, save_pretrained and from_single_file, with diffusers' arguments. Nothing is downloaded."""

    config: AutoencoderKLConfig

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: PathLike,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Load a diffusers folder, in eval mode; weights stay mapped from the file (see `load_vae`).

        Args:
            pretrained_model_name_or_path: a folder with a `config.json`, or a pipeline's folder with `vae/`.
            torch_dtype, dtype: a floating-point type or its name; "auto" keeps the file's. None is float32, as in
                diffusers.
            variant: such as "fp16" for `diffusion_pytorch_model.fp16.safetensors`.
            use_safetensors: True for safetensors alone, False for `.bin` alone, None for what is there.
            device_map: a device for the whole model.
            kwargs: config fields to override. Arguments that only concern downloads are passed over.

        Raises:
            CheckpointError: no folder of a whole AutoencoderKL there.
            ConfigError: an override that no AutoencoderKL has.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            raise CheckpointError(f"{path} is a file, not a folder. Use from_single_file or load_vae.")
        with reading(path / (subfolder or "")):
            plan = plan_folder(find_folder(path, subfolder), variant, _overrides(kwargs), use_safetensors)
            return build_model(cls, plan, _one_dtype(torch_dtype, dtype), _one_device(device_map))  # type: ignore[type-var]

    @classmethod
    def from_single_file(
        cls: type[Self],
        pretrained_model_link_or_path_or_dict: PathLike,
        *,
        config: AutoencoderKLConfig | Mapping[str, Any] | PathLike | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a VAE file or a full checkpoint, in eval mode; weights stay mapped from the file (see `load_vae`).

        Args:
            config: an AutoencoderKLConfig, its fields, a `config.json` or the folder of one (`subfolder` below it).
                Without it the config comes from the file's metadata, its tensor shapes and its family.
            torch_dtype, dtype: a floating-point type or its name; "auto" keeps the file's. None is float32, as in
                diffusers.
            kwargs: config fields to override. Arguments that only concern downloads are passed over.

        Raises:
            CheckpointError: no whole AutoencoderKL there; says what it seems to be and what to do.
            UnsafeCheckpointError: a pickle that asks for code to be run.
            ConfigError: an override that no AutoencoderKL has.
        """
        if subfolder and isinstance(config, str | os.PathLike):
            config = Path(config) / subfolder
        path = Path(pretrained_model_link_or_path_or_dict)
        with reading(path):
            plan = plan_single_file(open_tensor_file(path), _overrides(kwargs), given_config(config))
            return build_model(cls, plan, _one_dtype(torch_dtype, dtype), device)  # type: ignore[type-var]

    def save_pretrained(
        self,
        save_directory: PathLike,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a diffusers folder: `config.json` and weights, in shards if they are larger than `max_shard_size`.

        Everything is written beside its place and renamed at the end. Fused attention projections are not
        written; the three that they were made of are.

        Args:
            is_main_process: False writes nothing, for all but one process of a distributed run.
            safe_serialization: safetensors; False for a pickle (`.bin`).
            max_shard_size: "10GB", "500MB", or bytes.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not is_main_process:
            return
        folder = checked_path(save_directory)
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file. Give a folder, or use save_single_file.")
        write_folder(
            folder,
            self.weights_to_save(),
            self.config,
            safe_serialization=safe_serialization,
            max_shard_size=max_shard_size,
            variant=variant,
            release=self.release_files,
        )

    def weights_to_save(self) -> dict[str, Tensor]:
        """The state dict without what `fuse_qkv_projections` added.

        Raises:
            CheckpointError: some weights are elsewhere (accelerate's offloading leaves them on the meta device).
        """
        assert isinstance(self, nn.Module)
        weights = {key: weight for key, weight in self.state_dict().items() if ".to_qkv." not in key}
        absent = [key for key, weight in weights.items() if weight.is_meta]
        if absent:
            raise CheckpointError(
                f"{len(absent)} weights, such as {absent[0]}, have no values here: they are offloaded, or were never "
                f"loaded. Bring the model onto a device first."
            )
        return weights

    @torch.no_grad()
    def release_files(self) -> None:
        """Copy the weights into memory, so that no file is kept open for them."""
        assert isinstance(self, nn.Module)
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = tensor.data.clone()


def _overrides(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in IGNORED_ARGUMENTS}


def _one_dtype(torch_dtype: torch.dtype | str | None, dtype: torch.dtype | str | None) -> torch.dtype | None:
    given = torch_dtype if dtype is None else dtype
    return torch.float32 if given is None else parse_dtype(given)


def _one_device(device_map: Any) -> torch.device | str | None:
    whole = device_map.get("") if isinstance(device_map, Mapping) and len(device_map) == 1 else device_map
    if whole is None or whole in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None  # one small model: nothing to distribute
    if isinstance(whole, Mapping):
        raise CheckpointError("device_map splits the model; a VAE is loaded onto one device. Pass its name, or None.")
    return f"cuda:{whole}" if isinstance(whole, int) else whole
