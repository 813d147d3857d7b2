"""Which key of a file becomes which weight of the model. Every key is used, beside the model, or an error."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError, brief
from ..tensor_kinds import Obstacle, obstacle
from .detect import fields_from_shapes
from .generation import A_GUESS
from .identify import Identity, gives_posterior, identify
from .key_map import OPTIONAL, count_at_least, plain_name, spellings
from .layouts import (
    BESIDE_SCALES,
    DIRECTIONS,
    LENGTHS,
    SCALED,
    SCALES,
    channels_first,
    check_every_scale,
    check_scale,
    is_length,
    is_wide,
    type_name,
    unfused,
    why_not,
)
from .rebuild import UnreadTensor
from .tensor_file import KeptPart, TensorFile, TensorInfo

# What an AutoencoderKL's own weights begin with. Whatever else is beside them cannot change what it computes, if all
# of its own are there; what is under these names and not known makes it another model.
OWN = frozenset({"encoder", "decoder", "quant_conv", "post_quant_conv", "bn"})

# Beside a VAE, and not worth a remark: its training loss, its moving average, the other models of a full checkpoint.
USUAL = re.compile(
    r"(loss|model_ema|ema|discriminator|model\.diffusion_model|cond_stage_model|conditioner|text_encoders?|"
    r"low_scale_model|control_model|lora_\w+)\..*|"
    r"(posterior_|alphas_|betas|sqrt_|log_one_minus|edm_)\w*|model_ema_\w+|logvar|global_step|scale_factor|"
    r"scaled_fp8|denoiser\..*|epoch|__index_timestep_zero__|initted|step"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")  # in the name of a file
LORA = re.compile(r".*[._]lora_(A|B|down|up|embedding|magnitude)\w*[._].*")


@dataclass(frozen=True)
class CheckpointPlan:
    """Everything that is known about loading one checkpoint, from its header alone.

    Attributes:
        keys: diffusers key of a weight -> the key it has in the file.
        origins: config field -> where its value comes from.
        remarks: sentences on what was guessed or passed over.
        scales: diffusers key of an 8-bit weight -> the file's key of the number or numbers that it is multiplied by;
            of a weight with weight norm, that of its lengths.
        mismatched: diffusers key -> shape in the file, for weights that the model does not take from it, because their
            shapes differ: see `shapes.without_mismatched`.
        beside: name without prefix -> the file's name, of what is passed over beside the autoencoder with a remark.
    """

    source: TensorFile
    config: AutoencoderKLConfig
    keys: Mapping[str, str]
    layout: str
    prefix: str
    family: str | None
    family_is_guess: bool
    origins: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    scales: Mapping[str, str] = field(default_factory=dict)
    mismatched: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def guesses(self) -> dict[str, Any]:
        """The config fields whose values are guesses. A scale that is only a default is one."""
        no_scale = self.origins.get("scaling_factor") == "default"
        scale = ("scaling_factor", "shift_factor")
        return {
            name: self.config[name]
            for name, source in self.origins.items()
            if source.endswith(A_GUESS) or (no_scale and name in scale and source == "default")
        }

    def info(self, key: str) -> TensorInfo:
        """What the file says of the weight with this diffusers key."""
        return self.source.tensors[self.keys[key]]


@dataclass(frozen=True)
class Inner:
    """The part of a file under a prefix, by names without it and without what wrappers of modules put into them.

    Attributes:
        source: the file, its kernels channels first.
        names: plain name -> the file's name.
    """

    source: TensorFile
    prefix: str
    names: Mapping[str, str]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: self.source.tensors[real] for name, real in self.names.items()}


@dataclass(frozen=True)
class Matched:
    """What `match_keys` finds: see `CheckpointPlan`."""

    keys: Mapping[str, str]
    scales: Mapping[str, str]
    beside: Mapping[str, str]

    @property
    def remarks(self) -> tuple[str, ...]:
        return beside_remark(self.beside)


def plain_names(source: TensorFile) -> dict[str, str]:
    """Name without wrappers -> the file's name. Where two become one, both keep what they are called in the file."""
    names: dict[str, str] = {}
    for real in source.tensors:
        plain = plain_name(real)
        names[real if plain in names or (plain != real and plain in source.tensors) else plain] = real
    return names


def inner(source: TensorFile, prefix: str, plain: Mapping[str, str] | None = None) -> Inner:
    """The part of a file under a prefix of its plain names (see `plain_names`)."""
    plain = plain_names(source) if plain is None else plain
    names = {name.removeprefix(prefix): real for name, real in plain.items() if name.startswith(prefix)}
    source, names = unfused(source, names)
    part = channels_first({name: source.tensors[real] for name, real in names.items()})
    tensors = {**source.tensors, **{real: part[name] for name, real in names.items()}}
    return Inner(replace(source, tensors=tensors), prefix, names)


def check_readable(part: Inner) -> None:
    """Raise CheckpointError if weights have no numbers that can be read: none at all, sparse, of a class of their own.

    The first thing that is said of a file: what else is wrong with it may come from that.
    """
    found = {name: _obstacle(part.source.values.get(real)) for name, real in part.names.items()}
    unread = {name: why for name, why in found.items() if why is not None and name.partition(".")[0] in OWN}
    if unread:
        first, why = next(iter(unread.items()))
        count = sum(other.what == why.what for other in unread.values())
        raise CheckpointError(
            f"{part.source.path.name} has {count} weights, such as {part.names[first]}, that {why.what}. {why.remedy}"
        )


def _obstacle(value: Any) -> Obstacle | None:
    value = value.whole if isinstance(value, KeptPart) else value
    if isinstance(value, UnreadTensor):
        return value.why
    return obstacle(value) if isinstance(value, Tensor) else None


def match_keys(part: Inner, config: AutoencoderKLConfig) -> Matched:
    """Which weight of a model of this config is which tensor of a file.

    Raises:
        CheckpointError: weights are missing or given twice, or the model's halves have weights that are not known.
    """
    source = part.source
    if count_at_least(config) > len(source.tensors):
        raise CheckpointError(
            f"{source.path.name} has {len(source.tensors)} tensors, too few for its config: layers_per_block "
            f"{config.layers_per_block} in {len(config.block_out_channels)} levels. Use the config that belongs to "
            f"these weights."
        )
    table = spellings(config)
    keys: dict[str, str] = {}
    scales: dict[str, str] = {}
    unknown: list[str] = []
    beside: dict[str, str] = {}
    for name, real in part.names.items():
        key = table.get(name)
        if key is not None:
            if key in keys:
                raise CheckpointError(
                    f"{source.path.name} has {key} twice, as {keys[key]} and as {real}, and nothing shows which one "
                    f"is meant. Get another copy, or save the model again."
                )
            keys[key] = real
        elif (scaled := _scaled_weight(name, table)) is not None:
            if name.endswith((*SCALES, *LENGTHS)):
                if scaled in scales:
                    raise CheckpointError(
                        f"{source.path.name} has two scales of {scaled}, {scales[scaled]} and {real}, and nothing "
                        f"shows which one is meant. Get another copy, or save the model again."
                    )
                scales[scaled] = real
        elif name.partition(".")[0] in OWN:
            unknown.append(real)
        elif not USUAL.fullmatch(name):
            beside[name] = real
    unknown += [
        real for key, real in keys.items() if real.endswith(DIRECTIONS) and not is_length(scales.get(key, ""))
    ]  # directions without their lengths
    needed = set(table.values())
    missing = sorted(needed - OPTIONAL - set(keys))
    if missing or unknown:
        raise mismatch(part, missing, sorted(unknown), config)
    check_posterior(part)
    for key, real in scales.items():
        check_scale(source.path.name, real, source.tensors[keys[key]], source.tensors[real])
    infos = {key: source.tensors[real] for key, real in keys.items()}
    check_every_scale(source.path.name, infos, scales, SCALED in part.names)
    return Matched(keys, scales, beside)


def beside_remark(beside: Mapping[str, str]) -> tuple[str, ...]:
    """What is said of tensors beside the autoencoder that are passed over; nothing where there are none."""
    if not beside:
        return ()
    return (
        f"passed over {len(beside)} tensors beside the autoencoder ({_some(sorted(beside.values()))}): all of its own "
        f"weights are there, and these cannot change it.",
    )


def with_extra(plan: CheckpointPlan, taken: Collection[str]) -> CheckpointPlan:
    """The plan without the remark on tensors beside the autoencoder that a class of one's own takes."""
    others = {name: real for name, real in plan.beside.items() if name not in taken}
    said = beside_remark(plan.beside)
    remarks = (*(each for each in plan.remarks if each not in said), *beside_remark(others))
    return replace(plan, beside=others, remarks=remarks)


def _scaled_weight(name: str, table: Mapping[str, str]) -> str | None:
    """diffusers key of the weight that a scale, or what is beside one, belongs to."""
    for ending in (*SCALES, *BESIDE_SCALES, *LENGTHS):
        if name.endswith(ending):
            return table.get(f"{name.removesuffix(ending)}.weight")
    return None


def check_posterior(part: Inner) -> None:
    """Raise CheckpointError for an encoder that gives latents themselves, as one number for each of their channels."""
    if gives_posterior(part.tensors) is False:
        given = part.tensors["encoder.conv_out.weight"].shape[0]
        latent = part.tensors["decoder.conv_in.weight"].shape[1]
        what = what_it_is(part, "Give an AutoencoderKL.")
        raise CheckpointError(
            f"{part.source.path.name} has an encoder that gives {given} channels for latents of {latent}; that of an "
            f"AutoencoderKL gives a mean and a variance for each, {2 * latent}. {what}"
        )


def mismatch(part: Inner, missing: list[str], unknown: list[str], config: AutoencoderKLConfig) -> CheckpointError:
    """The error for a file whose keys are not those of a model of this config."""
    contradicted = _contradicted(part, config)
    needed = len(set(spellings(config).values()) - OPTIONAL)
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} of the {needed} weights of its AutoencoderKL ({_some(missing)})")
    if unknown:
        whose = "its config says nothing of" if contradicted else "no AutoencoderKL has"
        parts.append(f"has {len(unknown)} weights that {whose} ({_some(unknown)})")
    lora = unknown and not missing and all(LORA.fullmatch(name) for name in unknown)
    remedy = _quantised(part, unknown) or contradicted or _remedy(missing, unknown, bool(lora))
    what = remedy if lora else what_it_is(part, remedy)
    return CheckpointError(f"{part.source.path.name} {' and '.join(parts)}. {what}")


def _contradicted(part: Inner, config: AutoencoderKLConfig) -> str | None:
    """What to say if the tensors are those of a model of another config; None if they show the same or none."""
    try:
        shown = fields_from_shapes(part.tensors)
    except CheckpointError:
        return None
    shown.setdefault("patch_size", None)
    shown.setdefault("decoder_block_out_channels", None)
    if config.decoder_widths == config.block_out_channels:
        config = config.replace(decoder_block_out_channels=None)
    others = [
        f"{name} {brief(config[name])} and not {brief(shown[name])}" for name in shown if config[name] != shown[name]
    ]
    if not others:
        return None
    return (
        f"Its config has {', '.join(others[:3])}, which its tensors show. Use the config that belongs to these "
        f"weights, or leave out the overrides that contradict them; if the config is right, get the whole file again."
    )


def _quantised(part: Inner, unknown: list[str]) -> str | None:
    """What to say if an unknown tensor stands beside a weight that is not made of wide floats."""
    others = set(unknown)
    tensors = part.tensors
    for name, real in part.names.items():
        if real not in others:
            continue
        base = name.rpartition(".")[0].removesuffix(".weight")
        weight = tensors.get(f"{base}.weight")
        if weight is not None and not is_wide(weight.dtype):
            return (
                f"They stand beside weights of {type_name(weight.dtype)} ({base}.weight): those are quantised in a way "
                f"that is not known here. Get the VAE in float16, bfloat16 or float32."
            )
    return None


def _remedy(missing: list[str], unknown: list[str], lora: bool) -> str:
    if lora:
        return "They are a LoRA that is not merged: merge it (fuse_lora, or peft's merge_and_unload) and save the VAE."
    if missing and not unknown:
        return "The file is incomplete: download it again, or save the whole VAE again."
    if unknown and not missing:
        return (
            "They are inside the model, so they change what it computes: it is another model, or its config is not "
            "the one given. Open it with the loader that it was made for."
        )
    return "It is a model of another kind, or renamed: give an AutoencoderKL with diffusers' or LDM's names."


def not_an_autoencoder(source: TensorFile, prefix: str = "", because: str = "") -> CheckpointError:
    """The error for a file in which no AutoencoderKL is found."""
    if not source.tensors:
        return CheckpointError(
            f"{source.path.name} has no tensors that belong to a model. Give the file of a VAE, or save one."
        )
    reason = because.rstrip(".") or f"found {len(source.tensors)} tensors, such as {_some(list(source.tensors))}"
    what = what_it_is(
        inner(source, prefix), "Give a VAE with LDM's or diffusers' names, or a full checkpoint that contains one."
    )
    return CheckpointError(f"{source.path.name} has no AutoencoderKL in it ({reason}). {what}")


def what_it_is(part: Inner, otherwise: str) -> str:
    """What a file is that does not load, and what to do, as sentences."""
    name = part.source.path.name
    if _SHARD.search(name):
        return "It is one of several shards of a model: give their folder, or the index beside them (*.index.json)."
    identity = identify(part.tensors)
    return why_not(part.tensors) or (_it_seems(identity) if identity else otherwise)


def _it_seems(identity: Identity) -> str:
    return f"It seems to be {identity.what}. {identity.remedy}"


def _some(names: list[str], count: int = 2) -> str:
    shown = [name if len(name) <= 100 else f"{name[:96]}..." for name in names[:count]]
    return ", ".join(shown) + (", ..." if len(names) > count else "")
