"""One file with an AutoencoderKL in it: what it is, and writing one with LDM keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, ConfigError, in_one_line
from .config_file import CONFIG_NAME, read_config_file
from .detect import (
    DIFFUSERS,
    KNOWN_PREFIXES,
    SHOWN_FIELDS,
    fields_from_shapes,
    find_layout,
    find_prefixes,
    norm_groups,
    only_without_average,
)
from .families import Family, FamilyMatch, family_of_config, match_family
from .generation import differences, guessed_in, marked, sources
from .key_map import is_attention_projection, ldm_names
from .original_config import OriginalConfig
from .plan import CheckpointPlan, Inner, check_readable, inner, match_keys, not_an_autoencoder, plain_names
from .tensor_file import TensorFile
from .write import safetensors, write_whole

CONFIG_KEY = "seamless_vae.config"  # in a safetensors header: every field of the config, as JSON


def plan_single_file(
    source: TensorFile,
    overrides: Mapping[str, Any] | None = None,
    config: AutoencoderKLConfig | None = None,
    original: OriginalConfig | None = None,
) -> CheckpointPlan:
    """How to load the autoencoder in a file.

    A config comes from, in this order: the caller, the file's own metadata, a `config.json` beside the file (if the
    tensors have the shapes that it says), the tensor shapes and the defaults of the family. LDM's original config wins
    over these where it says something of the scale, and overrides win over all of them.

    Raises:
        CheckpointError: there is no whole AutoencoderKL in the file, or more than one.
        ConfigError: an override that no AutoencoderKL has, or an original configuration of another model.
    """
    overrides = overrides or {}
    plain = plain_names(source)
    prefixes = find_prefixes(plain)
    if not prefixes:
        raise not_an_autoencoder(source)
    remarks = list(source.remarks)
    if len(prefixes) > 1:
        if prefixes[0] not in KNOWN_PREFIXES:
            chosen = only_without_average(prefixes)
            if chosen is None:
                raise CheckpointError(
                    f"{source.path.name} has several autoencoders, under {', '.join(prefixes[:4]).rstrip('.')}. Give a "
                    f"file with one."
                )
            prefixes = [chosen, *(prefix for prefix in prefixes if prefix != chosen)]
        others = ", ".join(prefix or "no prefix" for prefix in prefixes[1:4]).rstrip(".")
        remarks.append(f"there are several copies of the autoencoder; took {_under(prefixes[0])}, not {others}.")
    part = inner(source, prefixes[0], plain)
    check_readable(part)
    layout = find_layout(part.names)
    if layout is None:
        raise not_an_autoencoder(source, part.prefix)

    found = _given(part, layout, config) or _detect(part, overrides)
    try:
        config = found.config.replace(**overrides)
        if original is not None:
            overrides = {**original.fields_for(config, found.origins), **overrides}
            config = found.config.replace(**overrides)
    except ConfigError as error:
        raise ConfigError(f"{source.path.name}: {error}") from None
    family = family_of_config(config)
    matched = match_keys(part, config)
    return CheckpointPlan(
        source=part.source,
        config=config,
        keys=matched.keys,
        layout=layout,
        prefix=part.prefix,
        family=family.name if family else None,
        family_is_guess=found.family_is_guess and "scaling_factor" not in overrides,
        origins={**found.origins, **dict.fromkeys(overrides, "override")},
        remarks=(*remarks, *found.remarks_beside(overrides), *matched.remarks),
        scales=matched.scales,
        beside=matched.beside,
    )


def _under(prefix: str) -> str:
    return f"the one under {prefix}" if prefix else "the one without a prefix"


@dataclass(frozen=True)
class _Found:
    """A config, where each field comes from, and what of it was guessed.

    Attributes:
        guesses: config field -> the remark that it is a guess.
    """

    config: AutoencoderKLConfig
    origins: Mapping[str, str]
    family_is_guess: bool = False
    remarks: tuple[str, ...] = ()
    guesses: Mapping[str, str] = field(default_factory=dict)

    def remarks_beside(self, overrides: Collection[str]) -> tuple[str, ...]:
        """All remarks but those on fields that are overridden."""
        return (*self.remarks, *(remark for name, remark in self.guesses.items() if name not in overrides))


def _given(part: Inner, layout: str, config: AutoencoderKLConfig | None) -> _Found | None:
    """The config that the caller or the file itself gives, if one of them does.

    A file with diffusers' names is a folder's: there its config.json wins over what the weights were saved with, here
    as where the folder is loaded.
    """
    if config is not None:
        return _Found(config, dict.fromkeys(config.without_extras(), "the given config"))
    saved = config_in_metadata(part.source)
    if saved is None:
        return None
    if layout == DIFFUSERS:
        beside, _ = _beside(part.source, _shown_by(saved))
        if beside is not None:
            changed = differences(beside.config, saved)
            return replace(beside, remarks=(*beside.remarks, changed)) if changed else beside
    guessed = guessed_in(json.loads(part.source.metadata[CONFIG_KEY]))
    return _Found(saved, sources(saved, "metadata", guessed), "scaling_factor" in guessed)


def _shown_by(config: AutoencoderKLConfig) -> dict[str, Any]:
    """Those fields of a config that the shapes of its weights show."""
    shown = {name: config[name] for name in SHOWN_FIELDS}
    return shown | ({"decoder_block_out_channels": None} if config.decoder_widths == config.block_out_channels else {})


def _detect(part: Inner, overrides: Mapping[str, Any]) -> _Found:
    """A config from shapes, then from what is beside the file or the family says of what shapes do not show."""
    source = part.source
    tensors = part.tensors
    try:
        fields = fields_from_shapes(tensors)
        widths = (*fields["block_out_channels"], *fields.get("decoder_block_out_channels", ()))
        groups = overrides.get("norm_num_groups", norm_groups(widths))
        shown = AutoencoderKLConfig(**fields, norm_num_groups=groups)
    except (CheckpointError, ConfigError) as error:
        raise not_an_autoencoder(source, part.prefix, because=str(error)) from None
    siblings = [name for name in source.tensors if not (part.prefix and name.startswith(part.prefix))]
    match = match_family(shown, siblings, source.metadata)
    beside, remarks = _beside(source, fields, match)
    if beside is not None:
        return beside
    origins = dict.fromkeys(shown, "default") | dict.fromkeys(fields, "tensor shapes")
    groups_are_guessed = (
        f"norm_num_groups is not in the file; {groups} is a guess, and images depend on it. Pass norm_num_groups "
        f"or the config that belongs to these weights if you know better."
    )
    family = match.family
    are_known = family is not None and (match.is_certain or shown.block_out_channels == family.block_out_channels)
    origins["norm_num_groups"] = "family default" if are_known else "default (a guess)"
    guesses = {} if are_known else {"norm_num_groups": groups_are_guessed}
    if family is None:
        scale_is_default = (
            f"no known family has {shown.latent_channels} latent channels at 1/{shown.downscale_factor} size and such "
            f"layers, so scaling_factor {shown.scaling_factor} is only a default. Pass scaling_factor if you know it."
        )
        return _Found(shown, origins, False, tuple(remarks), {"scaling_factor": scale_is_default, **guesses})
    origins.update(dict.fromkeys(family.fields, match.origin))
    if match.others:
        others = ", ".join(f"{other.name} ({_scaling(other)})" for other in match.others)
        scale_is_guessed = (
            f"taken for {family.name} ({_scaling(family)}); nothing in the file distinguishes it from {others}. "
            f"The scale of latents depends on this, decoded images do not. Pass scaling_factor and shift_factor if it "
            f"is another."
        )
        guesses = {"scaling_factor": scale_is_guessed, **guesses}
    return _Found(shown.replace(**family.fields), origins, bool(match.others), tuple(remarks), guesses)


def _beside(
    source: TensorFile, fields: Mapping[str, Any], match: FamilyMatch | None = None
) -> tuple[_Found | None, list[str]]:
    """The config of the `config.json` in the file's folder, if it is of the file's shapes; else remarks on why not.

    What the file itself says of its family wins over a neighbour that scales latents in another way.
    """
    if source.container == "memory":
        return None, []
    try:
        found = read_config_file(source.path.parent / CONFIG_NAME)
    except CheckpointError:  # there is none, or it is another model's
        return None, []
    config = found.config
    if config.decoder_widths == config.block_out_channels:
        config = config.replace(decoder_block_out_channels=None)
    shown = {"decoder_block_out_channels": None, "patch_size": None, **fields}
    if any(config[name] != value for name, value in shown.items()):
        return None, [f"the {CONFIG_NAME} beside the file is for a model of other shapes, so it was not used."]
    if match is not None and match.family is not None and match.is_certain and not match.family.has_scaling_of(config):
        return None, [
            f"the {CONFIG_NAME} beside the file has scaling_factor {config.scaling_factor}, which is not that of "
            f"{match.family.name}, the family that the file itself names, so it was not used."
        ]
    origins = found.origins(f"{CONFIG_NAME} beside the file")
    return _Found(config, origins, "scaling_factor" in found.guessed, found.remarks), []


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
    except ConfigError as error:
        raise CheckpointError(f"{source.path.name} has a broken {CONFIG_KEY} in its metadata: {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source.path.name} has a broken {CONFIG_KEY} in its metadata: {in_one_line(error)}. Get another copy, or "
            f"save the model again."
        ) from None


def ldm_state_dict(weights: Mapping[str, Tensor], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Weights by diffusers keys -> the same by LDM keys, attention projections as 1x1 convolutions [C, C, 1, 1]."""
    names = ldm_names(config)
    return {
        names[key]: weight[:, :, None, None] if is_attention_projection(key) else weight
        for key, weight in weights.items()
    }


def single_file_metadata(config: AutoencoderKLConfig, guessed: Collection[str] = ()) -> dict[str, str]:
    """What a single file's header says: the whole config, and the architecture as the modelspec convention has it.

    Fields that are guesses are marked, and an architecture that hangs on one is left out.
    """
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(marked(config.without_extras(), guessed))}
    family = family_of_config(config)
    if family is not None and "scaling_factor" not in guessed:
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
    guessed: Collection[str] = (),
    release: Callable[[], None] | None = None,
) -> None:
    """Write weights (by diffusers keys) as one safetensors file with LDM keys. See `write_whole`."""
    writer = safetensors(ldm_state_dict(weights, config), single_file_metadata(config, guessed))
    write_whole(path, writer, overwrite=overwrite, release=release)
