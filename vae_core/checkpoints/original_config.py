"""What LDM's own configuration says of a checkpoint: the scale of its latents, which no tensor shows, and its shapes.

diffusers makes a whole config of it (`create_vae_diffusers_config_from_ldm` in `loaders/single_file_utils.py`). Here
the tensors give the shapes, and a configuration that contradicts them is an error, as it is there. Where it has no
scale, the scale is that of the file's family; diffusers takes 0.18215 for SDXL's, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import AutoencoderKLConfig
from ..config_values import has_order, is_count
from ..errors import CheckpointError, ConfigError, brief, in_one_line
from ..optional import optional_import
from ..regular_files import read_regular
from .generation import A_GUESS
from .json_file import MAX_BYTES

NORM_GROUPS = 32  # LDM's, always (`Normalize` in ldm/modules/diffusionmodules/model.py)
SAMPLE_SIZE = 512  # where the file is of no known family, as in diffusers
_SHAPES = {
    "in_channels": "in_channels",
    "out_channels": "out_ch",
    "latent_channels": "z_channels",
    "layers_per_block": "num_res_blocks",
}


@dataclass(frozen=True)
class OriginalConfig:
    """A configuration of LDM's.

    Attributes:
        scale: `model.params.scale_factor`; None if there is none.
        shapes: those config fields that it gives and that the weights show.
    """

    scale: Any = None
    shapes: Mapping[str, Any] = field(default_factory=dict)

    def fields_for(self, config: AutoencoderKLConfig, origins: Mapping[str, str]) -> dict[str, Any]:
        """The config fields that it gives to a file.

        Args:
            config: the file's without it.
            origins: config field -> where its value comes from; see `CheckpointPlan`.

        Raises:
            ConfigError: it is of another model.
        """
        for name, value in self.shapes.items():
            if config[name] != value:
                raise ConfigError(
                    f"original_config has {name} {brief(value)}, and the weights have {brief(config[name])}: it is of "
                    f"another model. Give the one that belongs to these weights, or leave it out."
                )
        fields: dict[str, Any] = {}
        if self.scale is not None and config.latents_mean is None:  # which go with a scale of their own
            fields["scaling_factor"] = self.scale
        if origins["sample_size"] == "default":
            fields["sample_size"] = SAMPLE_SIZE
        widths = (*config.block_out_channels, *config.decoder_widths)
        if origins["norm_num_groups"].endswith(A_GUESS) and not any(width % NORM_GROUPS for width in widths):
            fields["norm_num_groups"] = NORM_GROUPS
        return fields


def original_config(
    config: Mapping[str, Any] | str | os.PathLike[str], fetch: Callable[[str, int], bytes]
) -> OriginalConfig:
    """Read a configuration of LDM's, of a whole model or of an autoencoder alone.

    Args:
        config: its content, or the path or address of a YAML file.
        fetch: gives the content of an address, of at most so many bytes, or raises CheckpointError.

    Raises:
        ConfigError: it cannot be read, or is not one of LDM's.
        MissingDependencyError: PyYAML is not installed.
    """
    what = "original_config"
    if not isinstance(config, Mapping):
        what = f"original_config {config}"
        config = _read(config, fetch)
    params = _inside(config, "model", "params")
    if params is None:
        remedy = "Pass it as config." if "block_out_channels" in config else "Pass scaling_factor in its place."
        raise ConfigError(f"{what} is not a configuration of LDM: it has no model.params. {remedy}")
    scale = params.get("scale_factor")
    if isinstance(scale, str):  # YAML takes 1e-1 for a text
        try:
            scale = float(scale)
        except ValueError:
            raise ConfigError(
                f"original_config has scale_factor {brief(scale)}, which is not a number. Pass scaling_factor."
            ) from None
    layers = _inside(params, "first_stage_config", "params", "ddconfig") or _inside(params, "ddconfig") or {}
    return OriginalConfig(scale, _shapes(layers))


def _inside(values: Any, *names: str) -> Mapping[str, Any] | None:
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else None


def _shapes(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields of LDM's `ddconfig`; what is not a number there is passed over."""
    found: dict[str, Any] = {name: layers[theirs] for name, theirs in _SHAPES.items() if is_count(layers.get(theirs))}
    width = layers.get("ch", 0)
    factors = layers.get("ch_mult", ())
    if is_count(width) and has_order(factors) and all(map(is_count, factors)):
        found["block_out_channels"] = tuple(width * factor for factor in factors)
    return found


def _read(place: str | os.PathLike[str], fetch: Callable[[str, int], bytes]) -> Mapping[str, Any]:
    yaml = optional_import("yaml", "Configurations of LDM", "hub")
    try:
        is_remote = re.match(r"https?:/", str(place)) is not None
        content = fetch(str(place), MAX_BYTES) if is_remote else read_regular(place, MAX_BYTES)
        found = yaml.safe_load(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, CheckpointError) as error:
        raise ConfigError(
            f"original_config {place} cannot be read: {in_one_line(error)}. Pass scaling_factor in its place."
        ) from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"original_config {place} is not a configuration of LDM. Pass scaling_factor in its place.")
    return found
