"""`config.json`: the hyper-parameters beside a model's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import GUESSED_KEY, OUR_CLASSES, AutoencoderKLConfig
from ..errors import CheckpointError, ConfigError, in_one_line
from .generation import guessed_in, sources
from .json_file import json_object
from .open_file import check_link

CONFIG_NAME = "config.json"
QUANTISED = "quantization_config"


@dataclass(frozen=True)
class ConfigFile:
    """What a `config.json` says.

    Attributes:
        given: the names of the fields that it has; the others are defaults.
        guessed: the names of those that it calls guesses.
        remarks: on what of it was passed over.
        other_class: what to say if the weights are not those of an AutoencoderKL, because it is of another class,
            which may be derived from it; None if it is of a known one.
    """

    config: AutoencoderKLConfig
    given: frozenset[str]
    guessed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    other_class: str | None = None

    def origins(self, source: str) -> dict[str, str]:
        """Field -> where its value comes from, where the file is called `source`."""
        own = self.config.without_extras()
        return dict.fromkeys(own, "default") | sources(self.given & own.keys(), source, self.guessed)


def read_config_file(file: Path) -> ConfigFile:
    """Read a `config.json`.

    Fields that no AutoencoderKL has are passed over with a remark: trainers leave some there, such as `decay` of a
    moving average. As in diffusers they stay in the config, beside its fields (`AutoencoderKLConfig.extras`), as
    private ones do (`_diffusers_version`); not so how weights were quantised, which is not done here. Passed over as
    well is the name of another class, if the fields are an AutoencoderKL's: trainers derive their own from it. Whether
    the weights fit decides.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    values = read_json(file)
    class_name = values.get("_class_name")
    if class_name is not None and class_name not in OUR_CLASSES:
        return _of_another_class(file, values)
    own = frozenset(AutoencoderKLConfig.__dataclass_fields__)
    others = others_in(values)
    fields = {name: value for name, value in values.items() if name.startswith("_") or name in own}
    try:
        config = AutoencoderKLConfig.from_dict(fields)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{file} is not a config of an AutoencoderKL: {in_one_line(error)}. Correct it if you have changed it, or "
            f"get it again."
        ) from None
    given = own & values.keys()
    guessed = guessed_in(values)
    return ConfigFile(_with_others(config, values), given, guessed, passed_over(others))


def _with_others(config: AutoencoderKLConfig, values: Mapping[str, Any]) -> AutoencoderKLConfig:
    """A config with what a `config.json` has beside its fields. Which of them are guesses is kept elsewhere."""
    left_out = {*AutoencoderKLConfig.__dataclass_fields__, QUANTISED, GUESSED_KEY}
    return config.with_extras(**{name: value for name, value in values.items() if name not in left_out})


def others_in(values: Mapping[str, Any]) -> list[str]:
    """The names that are neither fields of an AutoencoderKL nor private, sorted."""
    own = AutoencoderKLConfig.__dataclass_fields__
    return sorted(name for name in values if not name.startswith("_") and name not in own)


def passed_over(names: Sequence[str]) -> tuple[str, ...]:
    """What is said of fields that no AutoencoderKL has, sorted; nothing where there are none."""
    if not names:
        return ()
    shown = ", ".join(name[:40] for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return (f"passed over {shown} in {CONFIG_NAME}: an AutoencoderKL has no such fields.",)


def _of_another_class(file: Path, values: Mapping[str, Any]) -> ConfigFile:
    """A config that names another class, as an AutoencoderKL's, if it has the fields of one."""
    name = str(values["_class_name"])[:80]
    refusal = (
        f"{file}: this config is for {name}, which is not an AutoencoderKL. Point to the folder of an AutoencoderKL, "
        f"often the `vae` folder of a pipeline."
    )
    own = frozenset(AutoencoderKLConfig.__dataclass_fields__)
    try:
        config = AutoencoderKLConfig(**{field: value for field, value in values.items() if field in own})
    except (ConfigError, TypeError, ValueError, OverflowError):
        raise CheckpointError(refusal) from None
    if "block_out_channels" not in values:
        raise CheckpointError(refusal)
    remark = f"{CONFIG_NAME} is of the class {name}; the weights are an AutoencoderKL's, so it was taken for one."
    remarks = (remark, *passed_over(others_in(values)))
    return ConfigFile(_with_others(config, values), own & values.keys(), guessed_in(values), remarks, refusal)


def read_json(file: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
        CheckpointError: it cannot be read.
    """
    check_link(file)
    try:
        return json_object(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist. Give the path of a folder or of a config.json.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as JSON: {in_one_line(error)}. Correct it if you have changed it, or get it again."
        ) from None
