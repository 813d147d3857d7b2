"""diffusers' methods on a model's configuration: read, registered, saved."""

from __future__ import annotations

import inspect
import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from torch import nn

from .checkpoints.build import accepted, own_arguments
from .checkpoints.config_file import read_json
from .checkpoints.generation import guesses_of, marked
from .checkpoints.pretrained import snapshot
from .checkpoints.write import checked_path, text, write_in_folder, write_whole
from .config import SETTABLE_FIELDS, AutoencoderKLConfig, is_field
from .errors import CheckpointError, ConfigError, brief
from .hub import HubOptions, commit_of, on_disk
from .hub_push import push_after_saving

logger = logging.getLogger("seamless_vae")

PathLike = str | os.PathLike[str]
Self = TypeVar("Self", bound="ConfigMixin")


class ConfigMixin:
    """The configuration of a model, with the interface of diffusers' class of that name."""

    config_name: ClassVar[str] = "config.json"
    ignore_for_config: ClassVar[list[str]] = []
    has_compatibles: ClassVar[bool] = False
    _automatically_saved_args: ClassVar[list[str]] = ["_diffusers_version", "_class_name", "_name_or_path"]
    _auto_class: ClassVar[str | None] = None
    _deprecated_kwargs: ClassVar[list[str]] = []

    _config: AutoencoderKLConfig

    @property
    def config(self) -> AutoencoderKLConfig:
        """Every argument of the model, as attributes and as a mapping. `register_to_config` changes it."""
        return self._config

    @config.setter
    def config(self, values: Mapping[str, Any]) -> None:
        self.register_to_config(**values)

    # The name under which diffusers keeps it, which training scripts read and assign.
    _internal_dict = config

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("_config")
        if config is not None and name in config:
            message = f"model.{name} is deprecated, as in diffusers: use model.config.{name}."
            warnings.warn(message, FutureWarning, stacklevel=2)
            return config[name]
        return nn.Module.__getattr__(cast(nn.Module, self), name)

    def register_to_config(self, /, **kwargs: Any) -> None:
        """Change fields of the config, or add values to it that are not fields, which are saved with it.

        Raises:
            ConfigError: a value out of its range, or another value for a field that the weights are shaped by.
        """
        fields = {name: value for name, value in kwargs.items() if is_field(name)}
        extras = {name: value for name, value in kwargs.items() if not is_field(name) and name != "kwargs"}
        if "_config" not in self.__dict__:  # diffusers' decorator of that name calls it before the constructor
            self.__dict__["_early"] = {**self.__dict__.get("_early", {}), **extras}
            return
        config = self._config.replace(**fields)
        fixed = sorted(name for name in fields if name not in SETTABLE_FIELDS and config[name] != self._config[name])
        if fixed:
            name = fixed[0]
            raise ConfigError(
                f"{name} is {brief(self._config[name])} in this model, and its weights are shaped by it: it cannot "
                f"become {brief(config[name])}. Make another model with "
                f"AutoencoderKL.from_config(vae.config, {name}=...)."
            )
        self._config = config.with_extras(**extras)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Have `save_config` write how diffusers' AutoModel finds this class (`auto_map`), for a subclass of yours.

        Raises:
            ConfigError: another auto class.
        """
        if auto_class != "AutoModel":
            raise ConfigError(f"the auto class is {brief(auto_class)}; only AutoModel exists.")
        cls._auto_class = auto_class

    # Reading.

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: PathLike,
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The fields of a `config.json`, as a dictionary: of a file, of a folder or of a repository on the Hub.

        Args:
            return_unused_kwargs: return a tuple of it and of those `kwargs` that are not about where it is.
            return_commit_hash: add the commit of the repository to that tuple; None for a folder of yours.
            kwargs: `subfolder`, `revision`, `cache_dir`, `token`, `force_download`, `local_files_only`, `local_dir`,
                `proxies`, as of `from_pretrained`.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        options, unused = HubOptions.split(kwargs)
        path = on_disk(pretrained_model_name_or_path, options, config_only=True)
        if path.is_dir():
            path = snapshot(path) / cls.config_name
        values = cls._dict_from_json_file(path)
        found: tuple[Any, ...] = (values,)
        if return_unused_kwargs:
            found += (unused,)
        if return_commit_hash:
            found += (commit_of(path),)
        return found if len(found) > 1 else values

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """The older name of `load_config`."""
        warnings.warn("get_config_dict is deprecated: use load_config.", FutureWarning, stacklevel=2)
        return cls.load_config(*args, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: PathLike) -> dict[str, Any]:
        return read_json(Path(json_file))

    @classmethod
    def from_config(
        cls: type[Self],
        config: AutoencoderKLConfig | Mapping[str, Any] | PathLike | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A model with fresh weights.

        Args:
            config: a config, the content of a `config.json`, or the path of one or of its folder.
            return_unused_kwargs: return a tuple of the model and of everything given that is not a field of it.
            kwargs: fields that win over those of `config`.

        Raises:
            ConfigError: a value out of its range, or an argument that is not a field.
        """
        config = kwargs.pop("pretrained_model_name_or_path", config)  # diffusers' older name of it
        if config is None:
            raise ConfigError("from_config needs a config: an AutoencoderKLConfig, its fields, or a config.json.")
        is_file = isinstance(config, str | os.PathLike)
        if is_file:
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        assert isinstance(config, Mapping)
        fields, unused, hidden = cls.extract_init_dict(config, **kwargs)
        as_saved = is_file or "_class_name" in config or isinstance(config, AutoencoderKLConfig)
        arguments = [name for name in unused if name in kwargs or not as_saved]
        if arguments and not return_unused_kwargs:
            AutoencoderKLConfig.from_dict(dict.fromkeys(arguments))  # says that they are not fields
        if hidden and not return_unused_kwargs and set(unused) - set(arguments):
            logger.warning("the config has %s, which no AutoencoderKL has: passed over.", ", ".join(unused))
        model = cls(**accepted(cls, fields))
        if "_class_name" in hidden:
            hidden["_class_name"] = type(model).__name__
        model.register_to_config(**{name: value for name, value in hidden.items() if name not in fields})
        return (model, {**unused, **hidden}) if return_unused_kwargs else model

    @classmethod
    def extract_init_dict(
        cls, config_dict: Mapping[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sort the content of a `config.json` and some overrides.

        Returns:
            The arguments of the constructor that are given; what is neither one of them nor private; and everything in
            `config_dict` that is not an argument.

        Raises:
            ConfigError: the config is another class's, or a value is out of its range.
        """
        given = dict(config_dict)
        own = own_arguments(cls)
        known = {name: value for name, value in {**given, **kwargs}.items() if is_field(name)}
        config = AutoencoderKLConfig.from_dict({"_class_name": given.get("_class_name", "AutoencoderKL"), **known})
        defaults = AutoencoderKLConfig()  # a class of diffusers' may have others
        fields = {name: value for name, value in config.items() if name in known or value != defaults[name]}
        fields |= {name: value for name, value in {**given, **kwargs}.items() if name in own}
        hidden = {name: value for name, value in given.items() if not is_field(name) and name not in own}
        unused = {
            name: value
            for name, value in {**hidden, **kwargs}.items()
            if not (is_field(name) or name in own or name.startswith("_") or name == "quantization_config")
        }
        return fields, unused, hidden

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        return set(inspect.signature(input_class.__init__).parameters)

    # Writing.

    def to_json_string(self) -> str:
        """The config as the text of a `config.json`; fields that are guesses are named in it as such."""
        return json.dumps(marked(self._config_to_save().to_dict(), guesses_of(self)), indent=2, sort_keys=True) + "\n"

    def _config_to_save(self) -> AutoencoderKLConfig:
        if self._auto_class is None:
            return self._config
        module = type(self).__module__.split(".")[-1]
        name = type(self).__name__
        auto_map = self._config.extras.get("auto_map", {})
        return self._config.with_extras(auto_map={**auto_map, self._auto_class: f"{module}.{name}"})

    def to_json_file(self, json_file_path: PathLike) -> None:
        """Write the config to a file of that name, whole or not at all; folders in it are made if need be.

        Raises:
            CheckpointError: it cannot be written.
        """
        write_whole(checked_path(json_file_path), text(self.to_json_string()))

    def save_config(self, save_directory: PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` into a folder, which is made if need be.

        Args:
            push_to_hub: also push it to the Hub; `kwargs` are then those of `push_to_hub`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        folder = checked_path(save_directory)
        if os.path.isfile(folder):  # False for a name that no file can have, which writing then says
            raise CheckpointError(f"{folder} is a file. Give a folder.")
        write_in_folder(folder, {self.config_name: text(self.to_json_string())})
        if push_to_hub:
            push_after_saving(folder, kwargs, [])
