"""`config.json`: the hyper-parameters beside a model's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import OUR_CLASSES, AutoencoderKLConfig
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
        return dict.fromkeys(self.config, "default") | sources(self.given & self.config.keys(), source, self.guessed)


def read_config_file(file: Path) -> ConfigFile:
    """Read a `config.json`.

    Fields that no AutoencoderKL has are passed over with a remark: trainers leave some there, such as `decay` of a
    moving average. As in diffusers they stay in the config, beside its fields (`AutoencoderKLConfig.extras`), but for
    how weights were quantised, which is not done here. Passed over as well is the name of another class, if the fields
    are an AutoencoderKL's: trainers derive their own from it. Whether the weights fit decides.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    values = read_json(file)
    class_name = values.get("_class_name")
    if class_name is not None and class_name not in OUR_CLASSES:
        return _of_another_class(file, values)
    own = frozenset(AutoencoderKLConfig.__dataclass_fields__)
    others = sorted(name for name in values if not name.startswith("_") and name not in own)
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
    given, guessed = own & values.keys(), guessed_in(values)
    config = config.with_extras(**{name: values[name] for name in others if name != QUANTISED}) if others else config
    return ConfigFile(config, given, guessed, passed_over(others))


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
    return ConfigFile(config, own & values.keys(), guessed_in(values), (remark,), refusal)


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
