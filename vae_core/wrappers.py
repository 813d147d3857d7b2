"""What others put around modules and weights: how to look through it, to names and values that people know.

torch.compile, DataParallel, FSDP, peft and the like put a module of their own in the place of a part, with the part as
its child; weight norm, pruning and parametrizations put other weights in the place of one, which is made of them.

What is private in torch here: a module's `_modules`, `_parameters`, `_buffers` and `_forward_pre_hooks`, `_orig_mod` of
a compiled one, and `_tensor_name` of pruning. `tests/checkpoints/test_plain.py` would notice if one got another name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# The child that a wrapper computes by: of torch.compile, DataParallel and averaged models, DeepSpeed, FSDP, activation
# checkpointing, and a layer with an adapter.
_HOLDERS = (
    *("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"),
)
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.\w+$")  # a weight's parts, and its name


class PlaceInModel(NamedTuple):
    """Where something is in a model, without what wrappers put into its name.

    Attributes:
        name: such as "decoder.conv_in.weight".
        beside: the wrapper that has it beside what it wraps, as a layer has its LoRA; None for a part of the model.
    """

    name: str
    beside: nn.Module | None = None


def place_in_model(model: nn.Module, name: str) -> PlaceInModel:
    """Where a module or a weight is, by the name that `named_modules`, `named_parameters` or `state_dict` gives it."""
    module = model
    plain = []
    parts = name.split(".")
    while parts and module is not None:
        held = _held(module) if plain else ()
        if not held:
            plain.append(parts.pop(0))
            module = module._modules.get(plain[-1]) if _is_open(module) else None
        elif tuple(parts[: len(held)]) == held:
            module = module.get_submodule(".".join(held))
            parts = parts[len(held) :]
        elif any(parts[0] in own for own in (module._modules, module._parameters, module._buffers)):
            return PlaceInModel(".".join([*plain, *parts]), module)
        else:  # its state dict leaves the wrapper out
            module = module.get_submodule(".".join(held))
    return PlaceInModel(_PARAMETRIZED.sub(r"\1", ".".join([*plain, *parts])))


def plain_name(model: nn.Module, name: str) -> str:
    """The name of a module or a weight without what wrappers put into it."""
    return place_in_model(model, name).name


def look_through(module: nn.Module) -> nn.Module:
    """The part itself, in all that is known to be wrapped around it."""
    while held := _held(module):
        module = module.get_submodule(".".join(held))
    return module


def wrapped_at(module: nn.Module) -> str:
    """Under which of its names a wrapper has what it is around; empty for a module that is not known to be one."""
    return ".".join(_held(module))


def _held(module: nn.Module) -> tuple[str, ...]:
    """The path of the module that a wrapper computes by; empty for a module that is not known to be a wrapper."""
    if not _is_open(module):
        return ()
    children = module._modules
    for name in _HOLDERS:
        if children.get(name) is not None:
            return (name,)
    if type(module) is nn.Sequential and len(children) == 1:
        return (next(iter(children)),)
    if type(module).__module__.startswith("peft."):
        if "modules_to_save" in children:  # copies that are trained in the place of the part
            active = () if getattr(module, "disable_adapters", False) else getattr(module, "active_adapters", ())
            return ("modules_to_save", active[0]) if active else ("original_module",)
        return next(((name,) for name in ("base_model", "model") if name in children), ())
    return ()


def _is_open(module: nn.Module) -> bool:
    """Whether the children of a module can be looked up: not those of torch.jit's."""
    return isinstance(module._modules, dict)


class Computed(NamedTuple):
    """A weight that a module makes of others when it runs.

    Attributes:
        name: its own name, among the names of the model's weights as they are.
        value: as it is in eval mode.
        parts: what the names of those that it is made of begin with.
    """

    name: str
    value: Tensor
    parts: tuple[str, ...]


@torch.no_grad()
def computed_weights(model: nn.Module) -> Iterator[Computed]:
    """The weights that torch's own tools make of others: parametrizations, weight and spectral norm, pruning."""
    for prefix, module in model.named_modules():
        stem = f"{prefix}." if prefix else ""
        if parametrize.is_parametrized(module):
            for name, made in module.parametrizations.items():  # type: ignore[union-attr,operator]
                yield Computed(stem + name, _in_eval_mode(made), (f"{stem}parametrizations.{name}.",))
        for hook in module._forward_pre_hooks.values():
            made = _made_by_hook(hook, module)
            if made is not None:
                name, value = made
                parts = tuple(f"{stem}{name}_{end}" for end in ("g", "v", "u", "orig", "mask"))
                yield Computed(stem + name, value, parts)


def _in_eval_mode(made: Any) -> Tensor:
    training = made.training
    made.eval()  # spectral norm changes its vectors in training mode
    try:
        return made().detach()
    finally:
        made.train(training)


def _made_by_hook(hook: Any, module: nn.Module) -> tuple[str, Tensor] | None:
    """The name and the value of a weight that one of torch's older tools makes before each run."""
    if isinstance(hook, WeightNorm):
        return hook.name, hook.compute_weight(module).detach()
    if isinstance(hook, SpectralNorm):
        return hook.name, hook.compute_weight(module, do_power_iteration=False).detach()
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name, hook.apply_mask(module).detach()
    return None
