"""diffusers' methods for loading and saving, on top of `checkpoints`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .atomic import Writer
from .checkpoints.build import build_model, own_arguments, parse_dtype
from .checkpoints.generation import guesses_of
from .checkpoints.key_map import weight_shapes
from .checkpoints.memory import memory_tensors
from .checkpoints.open_file import open_tensor_file
from .checkpoints.original_config import original_config
from .checkpoints.plain import extra_weights, plain_weights
from .checkpoints.pretrained import WEIGHTS_STEM, find_folder, plan_folder, read_config, reading, write_folder
from .checkpoints.shapes import without_mismatched
from .checkpoints.single_file import plan_single_file
from .checkpoints.weight_names import globs_of_a_save
from .checkpoints.write import checked_path
from .config import AutoencoderKLConfig
from .config_mixin import ConfigMixin
from .errors import CheckpointError, ConfigError
from .file_names import text_of
from .hub import HubOptions, fetch_bytes, on_disk
from .hub_push import push_after_saving
from .streaming.devices import accelerators
from .temporary import temporary_file

Self = TypeVar("Self", bound="PretrainedMixin")
PathLike = str | os.PathLike[str]

# What callers of diffusers pass that says how a file is read, or, in the last lines, what its older releases asked of a
# whole checkpoint: which of its other models to take, and of which kind they are. Nothing of it is about the VAE.
IGNORED_ARGUMENTS = frozenset(
    (
        *("low_cpu_mem_usage", "from_flax", "dduf_entries", "config_revision"),
        *("offload_folder", "offload_state_dict", "max_memory", "keep_in_fp32_modules"),
        *("image_size", "local_dir_use_symlinks", "trust_remote_code"),
        *("extract_ema", "load_safety_checker", "safety_checker", "feature_extractor", "num_in_channels"),
        *("prediction_type", "scheduler_type", "model_type", "pipeline_class", "pipeline_class_name"),
        *("upcast_attention", "stable_unclip", "stable_unclip_prior", "clip_stats_path", "controlnet", "adapter"),
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler", "config_files"),
    )
)

# Those of diffusers' that would change what is loaded, and are not done here: said where one is not false.
REFUSED_ARGUMENTS = {
    "quantization_config": "this AutoencoderKL is not quantised when it is loaded",
    "ignore_mismatched_sizes": "only from_pretrained leaves out weights of other shapes than the config's",
    "use_flashpack": "weights are not read from FlashPack files",
    "flashpack_kwargs": "weights are not read from FlashPack files",
    "parallel_config": "this AutoencoderKL is not spread over several devices",
}
LOADING_INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


# A config as callers give it: itself, its fields, or where it is.
GivenConfig = AutoencoderKLConfig | Mapping[str, Any] | PathLike | None


def given_config(config: GivenConfig, revision: str | None = None) -> AutoencoderKLConfig | None:
    """A config from itself, from its fields, or from a path or a name on the Hub: a `config.json` or its folder."""
    if config is None or isinstance(config, AutoencoderKLConfig):
        return config
    if isinstance(config, Mapping):
        return AutoencoderKLConfig.from_dict(config)
    return read_config(on_disk(config, HubOptions(revision=revision), config_only=True))


class PretrainedMixin(ConfigMixin):
    """from_pretrained, save_pretrained and from_single_file, with diffusers' arguments.

    A name that is not a path on this disk is one on the Hugging Face Hub: see `hub.py`.
    """

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
        disable_mmap: bool = False,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a diffusers folder, in eval mode; weights stay mapped from the file (see `load_vae`).

        Args:
            pretrained_model_name_or_path: a folder with a `config.json`, or a pipeline's folder with `vae/`, or such a
                repository on the Hub ("org/name").
            torch_dtype, dtype: a floating-point type or its name; "auto" keeps the file's. None is float32, as in
                diffusers.
            variant: such as "fp16" for `diffusion_pytorch_model.fp16.safetensors`.
            use_safetensors: True for safetensors alone, False for `.bin` alone, None for what is there.
            device_map: a device for the whole model.
            disable_mmap: copy the weights into memory, so that the file may change; see `load_vae`.
            output_loading_info: return a tuple of the model and a dictionary of the keys that were missing, not
                expected or of other shapes: none but the last, because anything else is an error.
            ignore_mismatched_sizes: leave weights whose shapes are not those of the config (with its overrides) as a
                new model has them, and list them in a warning, in place of an error.
            kwargs: config fields to override; and for the Hub `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`, `local_dir`.

        Raises:
            CheckpointError: no folder of a whole AutoencoderKL there.
            ConfigError: an override that no AutoencoderKL has.
        """
        options, rest = HubOptions.split({**kwargs, "subfolder": subfolder})
        path = on_disk(pretrained_model_name_or_path, options, variant=variant, use_safetensors=use_safetensors)
        if path.is_file():
            raise CheckpointError(f"{path} is a file, not a folder. Use from_single_file or load_vae.")
        with reading(path):
            own = {name: rest.pop(name) for name in own_arguments(cls) if name in rest}
            plan = plan_folder(find_folder(path), variant, _overrides(rest), use_safetensors)
            plan = replace(plan, config=plan.config.with_extras(**own)) if own else plan
            _check_variant(plan.source.path, variant)
            shapes = weight_shapes(plan.config)
            if ignore_mismatched_sizes:
                plan = without_mismatched(plan, shapes)
            place = _one_device(device_map)
            mapped = not disable_mmap
            model = build_model(cls, plan, _one_dtype(torch_dtype, dtype), place, mapped)  # type: ignore[type-var]
        _keep_in_fp32(model, cls)
        model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        if output_loading_info:
            mismatched = [(key, found, shapes[key]) for key, found in plan.mismatched.items()]
            return model, {**{key: [] for key in LOADING_INFO}, "mismatched_keys": mismatched}
        return model

    @classmethod
    def from_single_file(
        cls: type[Self],
        pretrained_model_link_or_path_or_dict: PathLike | Mapping[str, Any] | None = None,
        *,
        config: GivenConfig = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: Any = None,
        use_safetensors: bool | None = None,
        disable_mmap: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a VAE file or a full checkpoint, in eval mode; weights stay mapped from the file (see `load_vae`).

        Args:
            pretrained_model_link_or_path_or_dict: the path of a file, its address or name on the Hub
                ("org/name/file.safetensors"), or a state dict.
            config: an AutoencoderKLConfig, its fields, a `config.json` or the folder of one (`subfolder` below it).
                Without it the config comes from the file's metadata, its tensor shapes and its family.
            torch_dtype, dtype: a floating-point type or its name; "auto" keeps the file's. None is float32, as in
                diffusers.
            device, device_map: a device for the whole model.
            use_safetensors: True refuses a pickle; otherwise the file says what it is.
            disable_mmap: copy the weights into memory, so that the file may change; see `load_vae`.
            kwargs: config fields to override; and for the Hub `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`, `local_dir`. `original_config`, LDM's own (its content, or the path or
                address of a YAML file), gives the scale: see `checkpoints.original_config`.

        Raises:
            CheckpointError: no whole AutoencoderKL there; says what it seems to be and what to do.
            UnsafeCheckpointError: a pickle that asks for code to be run.
            ConfigError: an override that no AutoencoderKL has.
        """
        options, rest = HubOptions.split(kwargs)
        old = rest.pop("original_config_file", None)  # diffusers' older name of it
        original = rest.pop("original_config", None) or old
        if original is not None and config is not None:
            raise ConfigError("config and original_config are both given, and each says what the other does. Pass one.")
        given = rest.pop("pretrained_model_link_or_path", pretrained_model_link_or_path_or_dict)
        if given is None:
            raise CheckpointError("from_single_file needs a path, a name on the Hub or a state dict; it got None.")
        if subfolder and (folder := text_of(config)):
            config = Path(folder) / subfolder
        path = Path("the state dict") if isinstance(given, Mapping) else on_disk(given, options)
        with reading(path):
            source = memory_tensors(given, path.name) if isinstance(given, Mapping) else open_tensor_file(path)
            if use_safetensors and source.container == "pickle":
                raise CheckpointError(f"{path.name} is a pickle, and use_safetensors=True allows none. Leave it out.")
            overrides = _overrides(rest)
            its_config = given_config(config, rest.get("config_revision"))
            read = None
            if original is not None:
                read = original_config(original, lambda address, most: fetch_bytes(address, most, options))
            plan = plan_single_file(source, overrides, its_config, read)
            place = _one_device(device_map) if device is None else device
            wanted = _one_dtype(torch_dtype, dtype)
            mapped = not disable_mmap
            model = build_model(cls, plan, wanted, place, mapped)  # type: ignore[type-var]
        _keep_in_fp32(model, cls)
        return model

    def save_pretrained(
        self,
        save_directory: PathLike,
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write a diffusers folder: `config.json` and weights, in shards if they are larger than `max_shard_size`.

        Everything is written beside its place and renamed at the end. Fused attention projections are not
        written; the three that they were made of are.

        Args:
            is_main_process: False writes nothing into the folder, for all but one process of a distributed run.
                diffusers' class writes the weights in every one of them.
            save_function: `f(weights, file)` in place of `torch.save`, for a pickle; a safetensors file is written as
                always, as in diffusers. It is called in every process, because it may wait for the others; what it
                writes into the file is kept in the main process alone.
            safe_serialization: safetensors; False for a pickle (`.bin`). Weights of the same variant that are in the
                folder are removed, whatever their format: the folder has this model afterwards, and no other.
            max_shard_size: "10GB", "500MB", or bytes.
            push_to_hub: also push the folder to the Hub; `kwargs` are then those of `push_to_hub`.
            use_flashpack: diffusers' third format, which is not written here.

        Raises:
            CheckpointError: the folder cannot be written, or pushed.
            ConfigError: an argument that does not exist.
        """
        if use_flashpack:
            raise ConfigError("weights are not written as FlashPack. Leave use_flashpack out, for safetensors.")
        if kwargs and not push_to_hub:
            raise ConfigError(f"save_pretrained has no argument {', '.join(kwargs)}, unless push_to_hub is True.")
        if not is_main_process:
            if save_function is not None and not safe_serialization:
                with temporary_file("what is left of the weights") as file:
                    save_function(self.weights_to_save(), file)
            return
        folder = checked_path(save_directory)
        if os.path.isfile(folder):  # False for a name that no file can have, which writing then says
            raise CheckpointError(f"{folder} is a file. Give a folder, or use save_single_file.")
        weights = {**self.weights_to_save(), **extra_weights(cast(nn.Module, self))}
        others: dict[str, Writer] = {}
        if save_function is not None and not safe_serialization:
            name = f"{WEIGHTS_STEM}.bin" if variant is None else f"{WEIGHTS_STEM}.{variant}.bin"
            others = {name: partial(save_function, weights)}
        write_folder(
            folder,
            weights,
            self._config_to_save(),
            safe_serialization=safe_serialization,
            max_shard_size=max_shard_size,
            variant=variant,
            others=others,
            guessed=guesses_of(self),
            release=self.release_files,
        )
        if push_to_hub:
            push_after_saving(folder, kwargs, globs_of_a_save(variant))

    def weights_to_save(self) -> dict[str, Tensor]:
        """The plain weights by diffusers' keys, whatever wraps the modules. See `checkpoints.plain.plain_weights`.

        Raises:
            CheckpointError: they cannot be saved as they are: a LoRA that is not merged, quantised weights, weights
                that are elsewhere. Says what to do.
        """
        assert isinstance(self, nn.Module)
        return plain_weights(self, self.config)

    @torch.no_grad()
    def release_files(self) -> None:
        """Copy the weights into memory, so that no file is kept open for them."""
        assert isinstance(self, nn.Module)
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = tensor.data.clone()


def _overrides(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The config's fields among arguments of diffusers'.

    Raises:
        ConfigError: one asks for something that is not done here.
    """
    for name, reason in REFUSED_ARGUMENTS.items():
        if kwargs.get(name):
            raise ConfigError(f"{reason}. Leave {name} out.")
    others = IGNORED_ARGUMENTS | REFUSED_ARGUMENTS.keys()
    return {name: value for name, value in kwargs.items() if name not in others}


def _check_variant(weights: Path, variant: str | None) -> None:
    """Raise CheckpointError for a variant that was taken unasked: diffusers' callers count on an error.

    It begins with diffusers' own words, which they look for.
    """
    plain = {f"{WEIGHTS_STEM}.{end}{index}" for end in ("safetensors", "bin") for index in ("", ".index.json")}
    if variant is None and weights.name.startswith(f"{WEIGHTS_STEM}.") and weights.name not in plain:
        raise CheckpointError(
            f"Error no file named {WEIGHTS_STEM}.bin found in directory {weights.parent}, and none in safetensors: it "
            f"has {weights.name}. Pass the variant, or use load_vae, which takes the only one."
        )


def _keep_in_fp32(model: nn.Module, cls: Any) -> None:
    """Widen what a subclass names in `_keep_in_fp32_modules`."""
    names = cls._keep_in_fp32_modules or ()
    names = {names} if isinstance(names, str) else set(names)
    for holder in (model.named_parameters(), model.named_buffers()):
        for name, tensor in holder:
            if names & set(name.split(".")) and tensor.is_floating_point():
                tensor.data = tensor.data.float()


def _one_dtype(torch_dtype: torch.dtype | str | None, dtype: torch.dtype | str | None) -> torch.dtype | None:
    given = torch_dtype if dtype is None else dtype
    return torch.float32 if given is None else parse_dtype(given)


def _one_device(device_map: Any) -> torch.device | str | int | None:
    """The device of the whole model, however a map says it."""
    places = list(device_map.values()) if isinstance(device_map, Mapping) else []
    whole = places[0] if places and all(place == places[0] for place in places) else device_map
    if whole in ("auto", "balanced", "balanced_low_0", "sequential"):  # one small model: nothing to distribute
        return next(iter(accelerators()), None)
    if isinstance(whole, Mapping):
        raise CheckpointError("device_map splits the model; a VAE is loaded onto one device. Pass its name, or None.")
    return whole
