"""diffusers' methods for loading and saving Flax models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax.numpy as jnp

from ..checkpoints.plan import CheckpointPlan
from ..checkpoints.pretrained import find_folder, plan_folder, read_config
from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from ..hub import HubOptions
from ..loading import plan_checkpoint
from ..pretrained_mixin import IGNORED_ARGUMENTS, given_config
from . import files
from .convert import cast, check_params

Self = TypeVar("Self", bound="FlaxPretrainedMixin")
PathLike = str | os.PathLike[str]
Params = dict[str, Any]


class FlaxPretrainedMixin:
    """from_pretrained, from_single_file, save_pretrained and the casts of parameters. Nothing is downloaded."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...

        @property
        def config(self) -> AutoencoderKLConfig: ...

    @classmethod
    def from_config(
        cls: type[Self],
        config: AutoencoderKLConfig | Mapping[str, Any] | PathLike,
        dtype: Any = jnp.float32,
        **overrides: Any,
    ) -> Self:
        """A model of a config, its fields, a `config.json` or its folder; some fields replaced."""
        found = given_config(config)
        assert found is not None
        return cls(**found.replace(**overrides).without_extras(), dtype=dtype)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: PathLike,
        dtype: Any = jnp.float32,
        *,
        from_pt: bool | None = None,
        subfolder: str | None = None,
        param_dtype: Any = jnp.float32,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Self, Params]:
        """Load a diffusers folder: the module and its parameters.

        Args:
            pretrained_model_name_or_path: a folder with a `config.json`, or a pipeline's folder with `vae/`.
            dtype: of the computation.
            from_pt: True for PyTorch's weights (safetensors or `.bin`), False for Flax's
                (`diffusion_flax_model.msgpack`), None for PyTorch's if they are there or chosen by one of the next
                two, else Flax's.
            param_dtype: of the parameters; None keeps the file's.
            variant, use_safetensors: which of PyTorch's weights, as for AutoencoderKL.
            kwargs: config fields to override. Arguments that only concern downloads are ignored.

        Raises:
            CheckpointError: no folder of a whole AutoencoderKL there, or not with such weights.
            ConfigError: an override that no AutoencoderKL has, or a dtype that is not a floating-point type.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            raise CheckpointError(f"{path} is a file, not a folder. Use from_single_file or load_vae.")
        folder = find_folder(path, subfolder)
        file = folder / files.FLAX_WEIGHTS
        overrides = _overrides(kwargs)
        if from_pt is None:
            chosen = variant is not None or use_safetensors is not None
            from_pt = chosen or files.has_torch_weights(folder) or not file.is_file()
        if from_pt:
            if file.is_file() and not files.has_torch_weights(folder):
                raise CheckpointError(
                    f"{folder} has Flax's weights alone ({file.name}). Pass from_pt=False, and neither variant nor "
                    f"use_safetensors, which choose among PyTorch's."
                )
            return cls.load_plan(plan_folder(folder, variant, overrides, use_safetensors), dtype, param_dtype)
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {files.FLAX_WEIGHTS}. Pass from_pt=True for PyTorch's weights.")
        return cls._load_msgpack(file, read_config(folder), overrides, dtype, param_dtype)

    @classmethod
    def from_single_file(
        cls: type[Self],
        pretrained_model_link_or_path: PathLike,
        dtype: Any = jnp.float32,
        *,
        config: AutoencoderKLConfig | Mapping[str, Any] | PathLike | None = None,
        subfolder: str | None = None,
        param_dtype: Any = jnp.float32,
        **kwargs: Any,
    ) -> tuple[Self, Params]:
        """Load a VAE file or a full checkpoint (safetensors, pickle, Flax's msgpack): the module and its parameters.

        Args:
            dtype, param_dtype, kwargs: as for `from_pretrained`.
            config: an AutoencoderKLConfig, its fields, a `config.json` or the folder of one (`subfolder` below it).
                Without it the config comes from the file's metadata, its tensor shapes and its family; that of a
                msgpack, which does not contain it, from the `config.json` beside it.

        Raises:
            CheckpointError: no whole AutoencoderKL there; says what it seems to be and what to do.
            UnsafeCheckpointError: a pickle that asks for code to be run.
            ConfigError: an override that no AutoencoderKL has, or a dtype that is not a floating-point type.
        """
        path = Path(pretrained_model_link_or_path)
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file. Use from_pretrained or load_vae.")
        if subfolder and isinstance(config, str | os.PathLike):
            config = Path(config) / subfolder
        overrides = _overrides(kwargs)
        if path.suffix == ".msgpack":
            found = given_config(config)
            if found is None and not (path.parent / "config.json").is_file() and path.is_file():
                raise CheckpointError(
                    f"{path} has no config.json beside it, and a msgpack does not say which model it belongs to. Pass "
                    f"config."
                )
            return cls._load_msgpack(path, found or read_config(path.parent), overrides, dtype, param_dtype)
        return cls.load_plan(plan_checkpoint(path, None, config, overrides), dtype, param_dtype)

    @classmethod
    def _load_msgpack(
        cls: type[Self],
        file: Path,
        config: AutoencoderKLConfig,
        overrides: Mapping[str, Any],
        dtype: Any,
        param_dtype: Any,
    ) -> tuple[Self, Params]:
        model = cls.from_config(config, dtype, **overrides)
        return model, files.read_msgpack(file, model.config, param_dtype)

    @classmethod
    def load_plan(cls: type[Self], plan: CheckpointPlan, dtype: Any, param_dtype: Any) -> tuple[Self, Params]:
        """The module and the parameters of what a loader of `checkpoints` has found."""
        model = cls.from_config(plan.config, dtype)
        return model, files.params_of_plan(plan, param_dtype)

    def save_pretrained(
        self,
        save_directory: PathLike,
        params: Mapping[str, Any],
        is_main_process: bool = True,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a diffusers folder: `config.json` and the parameters.

        A folder that has weights in the other format gets new ones in both, so that they never say different things.
        Everything is written beside its place and renamed at the end.

        Args:
            is_main_process: False writes nothing, for all but one process of a distributed run.
            safe_serialization: True for safetensors in PyTorch's layout, which AutoencoderKL, diffusers and this
                class read; False for `diffusion_flax_model.msgpack`, which this class and diffusers' Flax read.
            max_shard_size, variant: of the safetensors, as for AutoencoderKL.

        Raises:
            CheckpointError: the folder cannot be written, or `params` are not this model's.
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file. Give a folder.")
        check_params(params, self.config)
        files.write_params(
            folder,
            params,
            self.config,
            torch_weights=safe_serialization or (folder.is_dir() and files.has_torch_weights(folder)),
            flax_weights=not safe_serialization or (folder / files.FLAX_WEIGHTS).is_file(),
            max_shard_size=max_shard_size,
            variant=variant,
        )

    # As diffusers' Flax models had them.

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """A copy of the parameters in bfloat16; where `mask`, a tree of booleans, is False they stay as they are."""
        return cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """A copy of the parameters in float16. See `to_bf16`."""
        return cast(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """A copy of the parameters in float32. See `to_bf16`."""
        return cast(params, jnp.float32, mask)


def _overrides(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields among arguments; those that concern downloads are passed over, because nothing is downloaded."""
    _, others = HubOptions.split(kwargs)
    return {name: value for name, value in others.items() if name not in IGNORED_ARGUMENTS}
