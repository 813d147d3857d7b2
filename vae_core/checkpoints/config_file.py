"""`config.json`: the hyper-parameters beside a model's weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, ConfigError
from .generation import MAX_BYTES, guessed_in, sources
from .open_file import check_link

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class ConfigFile:
    """What a `config.json` says.

    Attributes:
        given: the names of the fields that it has; the others are defaults.
        guessed: the names of those that it calls guesses.
        remarks: on what of it was passed over.
    """

    config: AutoencoderKLConfig
    given: frozenset[str]
    guessed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def origins(self, source: str) -> dict[str, str]:
        """Field -> where its value comes from, where the file is called `source`."""
        return dict.fromkeys(self.config, "default") | sources(self.given & self.config.keys(), source, self.guessed)


def read_config_file(file: Path) -> ConfigFile:
    """Read a `config.json`.

    Fields that no AutoencoderKL has are passed over with a remark: trainers leave some there, such as `decay` of a
    moving average. Whether the weights fit decides.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    values = _read_json(file)
    own = frozenset(AutoencoderKLConfig.__dataclass_fields__)
    others = sorted(name for name in values if not name.startswith("_") and name not in own)
    fields = {name: value for name, value in values.items() if name.startswith("_") or name in own}
    try:
        config = AutoencoderKLConfig.from_dict(fields)
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    given, guessed = own & values.keys(), guessed_in(values)
    if not others:
        return ConfigFile(config, given, guessed)
    shown = ", ".join(name[:40] for name in others[:5]) + (", ..." if len(others) > 5 else "")
    remark = f"passed over {shown} in {CONFIG_NAME}: an AutoencoderKL has no such fields."
    return ConfigFile(config, given, guessed, (remark,))


def _read_json(file: Path) -> dict[str, Any]:
    check_link(file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist. Give the path of a folder or of a config.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. Download or copy it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is a {type(values).__name__}, not the fields of a config. Download it again.")
    return values
