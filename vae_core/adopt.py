"""Another implementation's AutoencoderKL as ours: recognised by its weights, which are used where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .attention import NORM_EPS
from .autoencoder_kl import AutoencoderKL
from .checkpoints.key_map import OPTIONAL
from .checkpoints.memory import build_around, plan_tensors, planned_weights
from .checkpoints.shapes import check_shapes
from .config import OUR_CLASSES, AutoencoderKLConfig, is_field
from .errors import CheckpointError, in_one_line
from .layers import without_values
from .patched import is_replaced
from .streaming import internals

_WRAPPED = "module"  # a part in what wraps it, whose own computation is not known
_PATCHABLE = ("encode", "decode", *internals.COMPUTING)
_CONVOLUTIONS = ("quant_conv", "post_quant_conv")  # models are without them, too
# Processors whose numbers are those of our default, by the name of their class.
_DEFAULT_PROCESSORS = ("AttnProcessor2_0", "FusedAttnProcessor2_0")
_KEPT = ("use_slicing", "use_tiling", "tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor")


@dataclass(frozen=True)
class Recognised:
    """A module that has the weights of an AutoencoderKL.

    Attributes:
        config: as far as the weights and `known` tell.
        keys: diffusers key -> the module's name of that weight.
        guesses: config fields that are guessed; see `CheckpointPlan`.
    """

    config: AutoencoderKLConfig
    keys: Mapping[str, str]
    guesses: Mapping[str, Any]


def recognise(module: nn.Module, known: Mapping[str, Any] | None = None) -> Recognised:
    """Which AutoencoderKL a module is, by the names and shapes of its weights: diffusers' or LDM's.

    Args:
        known: config fields that are known of it.

    Raises:
        CheckpointError: it is not one, or its weights are quantised; says which.
    """
    name = type(module).__name__
    tensors = tensors_of(module)
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors.values()):
        raise CheckpointError(f"the weights of {name} are quantised or of a type of their own. Load it without that.")
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    if not norms or any(norm.eps != NORM_EPS or norm.num_groups != norms[0].num_groups for norm in norms):
        raise CheckpointError(f"{name} is not an AutoencoderKL. Use it as it is.")
    plan = plan_tensors(tensors, name, {"norm_num_groups": norms[0].num_groups, **(known or {})})
    with without_values():
        model = AutoencoderKL(**plan.config.without_extras())
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    check_shapes(plan, shapes)
    if set(shapes) - OPTIONAL != set(plan.keys) - OPTIONAL or len(plan.keys) != len(tensors):
        raise CheckpointError(f"{name} has other weights than an AutoencoderKL. Use it as it is.")
    return Recognised(plan.config, plan.keys, plan.guesses)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and lasting buffers by their names, without what hooks of `state_dict` make of them.

    Fused attention projections, which repeat the three that they were made of, are left out.
    """
    found: dict[str, Tensor] = dict(module.named_parameters())
    for prefix, child in module.named_modules():
        for name, buffer in internals.lasting_buffers(child).items():
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return {name: tensor for name, tensor in found.items() if ".to_qkv." not in name}


def find_patch(module: nn.Module) -> str | None:
    """What is patched in a module, in words: its own methods compute something else then."""
    for name, part in module.named_modules():
        where = name or type(module).__name__
        if internals.is_compiled(part):
            return f"{where} has been compiled"
        if internals.has_hooks(part):
            return f"{where} has a hook"
        owner, _, last = name.rpartition(".")
        if last == _WRAPPED or (name in _CONVOLUTIONS and not isinstance(part, nn.Conv2d | nn.Identity)):
            changed = module.get_submodule(owner) if last == _WRAPPED else part
            return f"{owner or where} is of the class {type(changed).__name__}"
        if hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook"):
            return f"{where} has a hook for offloading or casting"
        if any(is_replaced(part, method) for method in _PATCHABLE):
            return f"{where} has a patched method"
        if type(part).__module__.startswith(("torch.ao.", "torch.nn.quantized")):
            return f"{where} is quantised ({type(part).__name__})"
        if hasattr(part, "base_layer"):
            return f"{where} has a LoRA or another adapter"
        if isinstance(part, nn.Conv2d) and part.padding_mode != "zeros":
            return f"{where} has padding mode {part.padding_mode}"
    return None


def from_diffusers(vae: nn.Module) -> AutoencoderKL:
    """The VAE of a diffusers pipeline as ours, around the very same weights: no copy, no further memory.

    `pipe.vae = vae_core.from_diffusers(pipe.vae)` gives a pipeline exact tiling (`pipe.vae.enable_tiling()`), a budget
    for its memory (`pipe.vae.memory_budget`), and everything else that takes our model. Kept are the config, the mode
    (training or not), slicing and tiling with their sizes, attention processors, fused projections, gradient
    checkpointing, and which weights take gradients.

    Args:
        vae: an AutoencoderKL or an AutoencoderKLFlux2 of diffusers; one of ours is returned as it is.

    Raises:
        CheckpointError: another model, or one with hooks, adapters, patches or quantised weights; says what to do.
    """
    if isinstance(vae, AutoencoderKL):
        return vae
    name = type(vae).__name__
    if not isinstance(vae, nn.Module):
        remedy = "Pass the VAE in it: from_diffusers(pipe.vae)." if hasattr(vae, "vae") else "Pass pipe.vae."
        raise CheckpointError(
            f"from_diffusers takes the VAE of a diffusers pipeline, and not an object of the type {name}. {remedy}"
        )
    if isinstance(getattr(vae, "module", None), nn.Module) and not hasattr(vae, "config"):
        raise CheckpointError(
            f"this {name} is wrapped around a model. Pass the model itself: from_diffusers(vae.module)."
        )
    patch = find_patch(vae)
    if patch is not None:
        raise CheckpointError(
            f"this {name} has been changed since it was loaded: {patch}. Call from_diffusers right after "
            f"loading, and then do the same to our model."
        )
    given = dict(getattr(vae, "config", {}))
    try:
        fields = {name: value for name, value in given.items() if is_field(name)}
        config = AutoencoderKLConfig.from_dict({"_class_name": type(vae).__name__, **fields})
    except ValueError as error:
        if name not in OUR_CLASSES:
            raise CheckpointError(
                f"from_diffusers takes an AutoencoderKL or an AutoencoderKLFlux2 of diffusers, and this model is of "
                f"the class {name}. Use it as it is."
            ) from None
        raise CheckpointError(f"this {name} cannot be taken over: {in_one_line(error)}") from None
    recognised = recognise(vae, config)
    model = build_around(AutoencoderKL, config, planned_weights(recognised.keys, tensors_of(vae)))
    model.register_to_config(**{name: value for name, value in given.items() if not is_field(name)})
    _keep(vae, model)
    return model


def _keep(theirs: Any, ours: AutoencoderKL) -> None:
    """Give our model the state of theirs beside its weights."""
    for name in _KEPT:
        value = getattr(theirs, name, None)
        if value is not None:
            setattr(ours, name, value[0] if isinstance(value, list | tuple) else value)
    parts = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        part = parts.get(name)
        if part is None:
            continue
        module.training = part.training
        if getattr(part, "gradient_checkpointing", False):
            module.gradient_checkpointing = True  # type: ignore[assignment]
            module._gradient_checkpointing_func = part._gradient_checkpointing_func  # type: ignore[assignment]
    processors = theirs.attn_processors
    if any(getattr(part, "fused_projections", False) for part in parts.values()):
        ours.fuse_qkv_projections()
    custom = {name: each for name, each in processors.items() if type(each).__name__ not in _DEFAULT_PROCESSORS}
    if custom:
        ours.set_attn_processor({**ours.attn_processors, **custom})
