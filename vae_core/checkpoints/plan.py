"""Which key of a file becomes which weight of the model. Every key is used, ignorable by a rule, or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..config import AutoencoderKLConfig
from ..errors import CheckpointError
from .identify import identify
from .key_map import OPTIONAL, is_attention_projection, spellings
from .tensor_file import TensorFile, TensorInfo

# Beside a VAE: its training loss, its moving average, and the other models of a full checkpoint.
IGNORABLE = re.compile(
    r"(loss|model_ema|ema|discriminator|model\.diffusion_model|cond_stage_model|conditioner|text_encoders?|"
    r"low_scale_model|control_model|lora_\w+)\..*|"
    r"(posterior_|alphas_|betas|sqrt_|log_one_minus|edm_)\w*|model_ema_\w+|logvar|global_step|scale_factor|"
    r"scaled_fp8|denoiser\..*|epoch|__index_timestep_zero__"
)


@dataclass(frozen=True)
class Plan:
    """Everything that is known about loading one checkpoint, from its header alone.

    Attributes:
        keys: diffusers key of a weight -> the key it has in the file.
        told_by: config field -> where its value comes from.
        remarks: sentences on what was guessed or passed over.
    """

    source: TensorFile
    config: AutoencoderKLConfig
    keys: Mapping[str, str]
    layout: str
    prefix: str
    family: str | None
    family_is_guess: bool
    told_by: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def info(self, key: str) -> TensorInfo:
        """What the file says of the weight with this diffusers key."""
        return self.source.tensors[self.keys[key]]


def match_keys(source: TensorFile, config: AutoencoderKLConfig, prefix: str) -> dict[str, str]:
    """diffusers key -> key in the file, for all weights of a model of this config.

    Raises:
        CheckpointError: weights are missing or given twice, or keys are neither used nor ignorable.
    """
    table = spellings(config)
    keys: dict[str, str] = {}
    unknown: list[str] = []
    for name in source.tensors:
        if not name.startswith(prefix):
            continue  # the rest of a full checkpoint
        key = table.get(name.removeprefix(prefix))
        if key is None:
            if not IGNORABLE.fullmatch(name.removeprefix(prefix)):
                unknown.append(name)
        elif key in keys:
            raise CheckpointError(
                f"{source.path.name} has {key} twice, as {keys[key]} and as {name}. Remove one of them from the file."
            )
        else:
            keys[key] = name
    needed = set(table.values())
    missing = sorted(needed - OPTIONAL - set(keys))
    if missing or unknown:
        raise mismatch(source, missing, sorted(unknown), len(needed - OPTIONAL), prefix)
    return keys


def mismatch(source: TensorFile, missing: list[str], unknown: list[str], needed: int, prefix: str) -> CheckpointError:
    """The error for a file whose keys are not those of its model."""
    identity = identify(inner_tensors(source, prefix))
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} of the {needed} weights of its AutoencoderKL ({_some(missing)})")
    if unknown:
        parts.append(f"has {len(unknown)} weights that no AutoencoderKL has ({_some(unknown)})")
    what = f"It seems to be {identity.what}. {identity.remedy}" if identity else _remedy(missing, unknown)
    return CheckpointError(f"{source.path.name} {' and '.join(parts)}. {what}")


def _remedy(missing: list[str], unknown: list[str]) -> str:
    if missing and not unknown:
        return "The file is incomplete: download it again, or save the whole VAE anew."
    if unknown and not missing:
        return "If they do not matter, remove them from the file; otherwise the model needs another loader."
    return "It is a model of another kind, or renamed: give an AutoencoderKL with diffusers' or LDM's names."


def check_shapes(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError where a weight of the file has not the shape that the model needs.

    Attention projections may be matrices or 1x1 convolutions.
    """
    wrong = []
    for key, name in plan.keys.items():
        found, expected = plan.source.tensors[name].shape, shapes[key]
        if found != expected and not (is_attention_projection(key) and found == (*expected, 1, 1)):
            wrong.append(f"{name} is {_size(found)} where {_size(expected)} is needed")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        identity = identify(inner_tensors(plan.source, plan.prefix))
        what = (
            f"It seems to be {identity.what}. {identity.remedy}"
            if identity
            else ("Use the config that belongs to these weights, or drop the overrides that contradict them.")
        )
        raise CheckpointError(f"{plan.source.path.name}: {'; '.join(wrong[:3])}{more}. {what}")


def inner_tensors(source: TensorFile, prefix: str) -> dict[str, TensorInfo]:
    """The tensors under a prefix, by their names without it."""
    return {name.removeprefix(prefix): info for name, info in source.tensors.items() if name.startswith(prefix)}


def not_an_autoencoder(source: TensorFile, prefix: str = "", because: str = "") -> CheckpointError:
    """The error for a file in which no AutoencoderKL is found."""
    if not source.tensors:
        return CheckpointError(f"{source.path.name} holds no tensors. Download or copy it again.")
    identity = identify(inner_tensors(source, prefix))
    reason = because.rstrip(".") or f"found {len(source.tensors)} tensors, such as {_some(list(source.tensors))}"
    what = (
        f"It seems to be {identity.what}. {identity.remedy}"
        if identity
        else "Give a VAE with LDM's or diffusers' names, or a full checkpoint that contains one."
    )
    return CheckpointError(f"{source.path.name} holds no AutoencoderKL ({reason}). {what}")


def _some(names: list[str], count: int = 2) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
