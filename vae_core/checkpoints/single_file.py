"""One file that holds an AutoencoderKL: what it is, and writing one with LDM keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, ConfigError
from .detect import Layout, fields_from_shapes, find_layout, find_prefixes
from .families import Family, family_of_config, match_family
from .key_map import is_attention_projection, ldm_names
from .plan import Plan, inner_tensors, match_keys, not_an_autoencoder
from .tensor_file import TensorFile
from .write import safetensors, write_weights

CONFIG_KEY = "seamless_vae.config"  # in a safetensors header: every field of the config, as JSON


def plan_single_file(
    source: TensorFile, overrides: Mapping[str, Any] | None = None, config: AutoencoderKLConfig | None = None
) -> Plan:
    """How to load the autoencoder in a file.

    A config comes from, in this order: the caller, the file's own metadata, the tensor shapes and the defaults of
    the family. Overrides win over all of them.

    Raises:
        CheckpointError: there is no whole AutoencoderKL in the file, or more than one.
        ConfigError: an override that no AutoencoderKL has.
    """
    prefixes = find_prefixes(source.tensors)
    if not prefixes:
        raise not_an_autoencoder(source)
    prefix = prefixes[0]
    if len(prefixes) > 1 and prefix not in ("", "first_stage_model.", "vae."):
        raise CheckpointError(f"{source.path.name} holds several autoencoders, under {', '.join(prefixes)}. Give one.")
    tensors = inner_tensors(source, prefix)
    layout = find_layout(tensors)
    if layout is None:
        raise not_an_autoencoder(source, prefix)

    overrides = dict(overrides or {})
    remarks: list[str] = []
    is_guess = False
    if config is not None:
        told_by = dict.fromkeys(config, "the given config")
    elif (config := config_in_metadata(source)) is not None:
        told_by = dict.fromkeys(config, "metadata")
    else:
        config, told_by, is_guess, remarks = _detect(source, prefix, layout, overrides)
    try:
        config = config.replace(**overrides)
    except ConfigError as error:
        raise ConfigError(f"{source.path.name}: {error}") from None
    told_by.update(dict.fromkeys(overrides, "override"))
    family = family_of_config(config)
    keys = match_keys(source, config, prefix)
    return Plan(
        source, config, keys, layout.name, prefix, family.name if family else None, is_guess, told_by, tuple(remarks)
    )


def _detect(
    source: TensorFile, prefix: str, layout: Layout, overrides: Mapping[str, Any]
) -> tuple[AutoencoderKLConfig, dict[str, str], bool, list[str]]:
    """A config from shapes, then from what the family says of the fields that shapes do not show."""
    tensors = inner_tensors(source, prefix)
    try:
        fields, remarks = fields_from_shapes(tensors, layout)
        if "norm_num_groups" in overrides:
            fields["norm_num_groups"], remarks = overrides["norm_num_groups"], []
        shown = AutoencoderKLConfig(**fields)
    except (CheckpointError, ConfigError) as error:
        raise not_an_autoencoder(source, prefix, because=str(error)) from None
    told_by = dict.fromkeys(shown, "default") | dict.fromkeys(fields, "tensor shapes")
    siblings = [name for name in source.tensors if not (prefix and name.startswith(prefix))]
    match = match_family(shown, siblings, source.metadata)
    if match.family is None:
        remarks.append(
            f"no known family has {shown.latent_channels} latent channels at 1/{shown.spatial_ratio} size and such "
            f"layers, so scaling_factor {shown.scaling_factor} is only a default. Pass scaling_factor if you know it."
        )
        return shown, told_by, False, remarks
    fields = match.family.fields
    told_by.update(dict.fromkeys(fields, match.told_by))
    if match.others and "scaling_factor" not in overrides:
        others = ", ".join(f"{other.name} ({_scaling(other)})" for other in match.others)
        remarks.append(
            f"taken for {match.family.name} ({_scaling(match.family)}); nothing in the file tells it from {others}. "
            f"Images are the same; only scaled latents differ. Pass scaling_factor and shift_factor if it is another."
        )
    return shown.replace(**fields), told_by, bool(match.others) and "scaling_factor" not in overrides, remarks


def _scaling(family: Family) -> str:
    shift = family.fields.get("shift_factor")
    return f"scaling_factor {family.fields['scaling_factor']}" + (f", shift_factor {shift}" if shift else "")


def config_in_metadata(source: TensorFile) -> AutoencoderKLConfig | None:
    """The config that `save_single_file` wrote into the header, if there is one.

    Raises:
        CheckpointError: there is one that cannot be read.
    """
    text = source.metadata.get(CONFIG_KEY)
    if text is None:
        return None
    try:
        return AutoencoderKLConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source.path.name} has a broken {CONFIG_KEY} in its metadata: {error}") from None


def ldm_state_dict(weights: Mapping[str, Tensor], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Weights by diffusers keys -> the same by LDM keys, attention projections as 1x1 convolutions [C, C, 1, 1]."""
    names = ldm_names(config)
    return {
        names[key]: weight[:, :, None, None] if is_attention_projection(key) else weight
        for key, weight in weights.items()
    }


def single_file_metadata(config: AutoencoderKLConfig) -> dict[str, str]:
    """What a single file's header tells: the whole config, and the architecture as the modelspec convention has it."""
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(dict(config))}
    family = family_of_config(config)
    if family is not None:
        metadata["modelspec.sai_model_spec"] = "1.0.0"
        metadata["modelspec.architecture"] = f"{family.architectures[0]}/vae"
        metadata["modelspec.title"] = f"{family.name} VAE"
    return metadata


def write_single_file(
    path: Path,
    weights: Mapping[str, Tensor],
    config: AutoencoderKLConfig,
    *,
    overwrite: bool = True,
    release: Callable[[], None] | None = None,
) -> None:
    """Write weights (by diffusers keys) as one safetensors file with LDM keys. See `write_weights`."""
    writer = safetensors(ldm_state_dict(weights, config), single_file_metadata(config))
    write_weights(path, writer, overwrite=overwrite, release=release)
