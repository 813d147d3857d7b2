"""Another implementation's AutoencoderKL as ours: recognised by its weights, which are used where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .attention import FusedAttnProcessor2_0
from .autoencoder_kl import AutoencoderKL
from .checkpoints.key_map import FUSED, OPTIONAL
from .checkpoints.memory import plan_tensors
from .checkpoints.shapes import check_shapes
from .config import CLASS_NAME, FLUX2_CLASS_NAME, NORM_EPS, AutoencoderKLConfig, is_field
from .errors import CheckpointError, in_one_line
from .graft import join, processor_like, runs_its_own
from .layers import without_values
from .likeness import diffusers_class
from .patched import defined_in, is_replaced
from .streaming import internals
from .wrappers import wrapped_at

_WRAPPED = "module"  # a part in what wraps it, whose own computation is not known
_PATCHABLE = ("encode", "decode", *internals.COMPUTING)
# Packages whose parts compute what their weights say: those of hosts, and what these are made of. A model may have
# parts of its own package as well.
_IMPLEMENTATIONS = frozenset({"comfy", "diffusers", "ldm", "sgm", __name__.partition(".")[0]})
_CONVOLUTIONS = ("quant_conv", "post_quant_conv")  # models are without them, too
# The methods by which diffusers' class computes.
_METHODS = (
    *("encode", "decode", "_encode", "_decode", "tiled_encode", "tiled_decode", "_tiled_encode", "_tiled_decode"),
    *("blend_v", "blend_h", *internals.COMPUTING),
)
_QUANTISED = ("torch.ao.", "torch.nn.quantized")  # modules that have such classes
_LEFT_OUT = ("original_attn_processors", "_gradient_checkpointing_func")
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
    return {name: tensor for name, tensor in found.items() if FUSED not in name}


def find_patch(module: nn.Module) -> str | None:
    """What is patched in a module, in words: its own methods compute something else then.

    That is also a part, with whatever weights, that is neither of the model's own package nor of a known one, and a
    class of which some methods are of another package than the others, because it or a subclass was patched.
    """
    known = _IMPLEMENTATIONS | _packages_of(module)
    for name, part in module.named_modules():
        where = name or type(module).__name__
        packages = _packages_of(part)
        if len(packages) > 1 or not packages <= known:
            return f"{where} is of the class {type(part).__name__}, which computes in its own way"
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
        if type(part).__module__.startswith(_QUANTISED):
            return f"{where} is quantised ({type(part).__name__})"
        if hasattr(part, "base_layer"):
            return f"{where} has a LoRA or another adapter"
        if isinstance(part, nn.Conv2d) and part.padding_mode != "zeros":
            return f"{where} has padding mode {part.padding_mode}"
    return None


def _packages_of(part: nn.Module) -> set[str]:
    """The packages that define how a module computes, beside torch."""
    return {defined_in(type(part), method) for method in _PATCHABLE} - {"torch", ""}


def from_diffusers(vae: nn.Module) -> AutoencoderKL:
    """The VAE of a diffusers pipeline as ours, around the very same weights: no copy, no further memory.

    `pipe.vae = vae_core.from_diffusers(pipe.vae)` gives a pipeline exact tiling (`pipe.vae.enable_tiling()`), a budget
    for its memory (`pipe.vae.memory_budget`), and everything else that takes our model. The layers are shared and keep
    what is on them: LoRA and other adapters, casting, offloading, hooks. Kept as well are the config, the mode
    (training or not), slicing and tiling with their sizes, attention processors, fused projections, gradient
    checkpointing, which weights take gradients, hooks on the blocks and the model, its other attributes, and that a
    half was removed.

    Changed layers run by the reference path, and by the engine again once the change is undone. A block that was
    compiled, patched or exchanged, or that has a hook of diffusers' on itself (as group offloading puts there), stays
    diffusers' own and always runs so.

    Args:
        vae: an AutoencoderKL or an AutoencoderKLFlux2 of diffusers; one of ours is returned as it is.

    Raises:
        CheckpointError: another model, one whose own methods (`encode`, `decode`, ...) were replaced, or one with
            quantised weights or with other sizes than its config says; says what to do.
    """
    if isinstance(vae, AutoencoderKL):
        return vae
    name = type(vae).__name__
    base = _checked_class(vae)
    given: dict[str, Any] = dict(vae.config)  # type: ignore[arg-type]
    try:
        fields = {field: value for field, value in given.items() if is_field(field)}
        config = AutoencoderKLConfig.from_dict({"_class_name": base.__name__, **fields})
    except ValueError as error:
        raise CheckpointError(f"this {name} cannot be taken over: {in_one_line(error)}") from None
    with without_values():
        model = AutoencoderKL(**config.without_extras())
    join(vae, model, "")
    model.register_to_config(**{field: value for field, value in given.items() if not is_field(field)})
    _keep(vae, model)
    return model


def _checked_class(vae: Any) -> type:
    """Which class of diffusers' a model is of, itself or by a subclass that computes the same.

    Raises:
        CheckpointError: none that our model could take the place of; says why.
    """
    name = type(vae).__name__
    if not isinstance(vae, nn.Module):
        remedy = "Pass the VAE in it: from_diffusers(pipe.vae)." if hasattr(vae, "vae") else "Pass pipe.vae."
        raise CheckpointError(
            f"from_diffusers takes the VAE of a diffusers pipeline, and not an object of the type {name}. {remedy}"
        )
    classes = [cls for cls in (diffusers_class(CLASS_NAME), diffusers_class(FLUX2_CLASS_NAME)) if cls is not None]
    base = next((cls for cls in type(vae).__mro__ if cls in classes), None)
    if base is None:
        held = wrapped_at(vae)
        if held:
            raise CheckpointError(
                f"this {name} is wrapped around a model. Pass the model itself: from_diffusers(vae.{held})."
            )
        raise CheckpointError(
            f"from_diffusers takes an AutoencoderKL or an AutoencoderKLFlux2 of diffusers, and this model is of "
            f"the class {name}. Use it as it is."
        )
    own = type(vae).__mro__[: type(vae).__mro__.index(base)]  # what a subclass adds
    for method in _METHODS:
        is_patched = defined_in(base, method) not in ("", "torch", base.__module__.partition(".")[0])
        if is_patched or any(method in vars(cls) for cls in own) or _is_set(vae, method):
            raise CheckpointError(
                f"this {name} computes by another `{method}` than diffusers' {base.__name__}, and our model would not "
                f"call it. Call from_diffusers on a model without it, and then set `{method}` on the result."
            )
    quantised = next(
        (where for where, part in vae.named_modules() if type(part).__module__.startswith(_QUANTISED)), None
    )
    if quantised is not None:
        raise CheckpointError(f"this {name} cannot be taken over: {quantised} is quantised. Load it without that.")
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors_of(vae).values()):
        raise CheckpointError(f"the weights of {name} are quantised or of a type of their own. Load it without that.")
    return base


def _is_set(vae: nn.Module, method: str) -> bool:
    """Whether a method was set on the model itself, by others than the hooks that are taken over."""
    if method != "forward":
        return is_replaced(vae, method)
    registry = getattr(vae, "_diffusers_hook", None)
    return not runs_its_own(vae) and not (registry is not None and registry.hooks)


def _keep(theirs: Any, ours: Any) -> None:
    """Give our model the state of theirs as a whole, beside its parts."""
    for name in _KEPT:
        value = getattr(theirs, name, None)
        if value is not None:
            setattr(ours, name, value[0] if isinstance(value, list | tuple) else value)
    before = getattr(theirs, "original_attn_processors", None)
    if before and any(isinstance(each, FusedAttnProcessor2_0) for each in ours.attn_processors.values()):
        ours._unfused_processors = {name: processor_like(each) for name, each in before.items()}
    for name, value in vars(theirs).items():  # what diffusers, peft, accelerate and others keep there
        is_method = hasattr(getattr(type(ours), name, None), "__get__")  # such as accelerate's warning in `to`
        if name not in vars(ours) and name not in _LEFT_OUT and not is_method and not hasattr(nn.Module, name):
            vars(ours)[name] = value
