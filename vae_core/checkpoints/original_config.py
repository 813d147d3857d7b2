"""What LDM's own configuration says of a checkpoint: the scale of its latents, which no tensor shows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, brief
from ..optional import optional_import
from .json_file import MAX_BYTES


def original_scale(config: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any]:
    """The `scaling_factor` that a configuration of LDM's gives (`model.params.scale_factor`), if it gives one.

    Args:
        config: its content, or the path of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is an address, which is not fetched.
        MissingDependencyError: PyYAML is not installed.
    """
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        if re.match(r"https?:/", str(config)):
            raise ConfigError(
                f"original_config {config} is an address, which is not fetched. Download the file and give its path, "
                f"or pass scaling_factor in its place."
            )
        config = _read(Path(config))
    inner = config.get("model", {})
    inner = inner.get("params", {}) if isinstance(inner, Mapping) else {}
    scale = inner.get("scale_factor") if isinstance(inner, Mapping) else None
    if isinstance(scale, str):  # YAML takes 1e-1 for a text
        try:
            scale = float(scale)
        except ValueError:
            raise ConfigError(
                f"original_config has scale_factor {brief(scale)}, which is not a number. Pass scaling_factor."
            ) from None
    return {} if scale is None else {"scaling_factor": scale}


def _read(path: Path) -> Mapping[str, Any]:
    yaml = optional_import("yaml", "Configurations of LDM", "hub")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"original_config {path} cannot be read: {reason}. Pass scaling_factor in its place."
        ) from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"original_config {path} is not a configuration of LDM. Pass scaling_factor in its place.")
    return found
