"""A model of diffusers' as ours: its containers are exchanged for ours, and the layers in them stay the very same.

So whatever is on a layer stays there: weights, hooks, adapters, casting, offloading. A container that computes in its
own way (it is compiled, patched, of another class, or has a hook of diffusers') stays whole, as a part of our model.

What is private in torch here: a module's `_modules`, `_parameters`, `_buffers`, `_non_persistent_buffers_set` and its
dictionaries of hooks; in accelerate and diffusers: `_hf_hook`, `_old_forward`, `_diffusers_hook`. `tests/test_graft.py`
would notice if one got another name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .attention import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from .blocks import DownBlock, Downsample, Level, ResnetBlock, UNetMidBlock2D, UpBlock, Upsample
from .decoder import Decoder
from .encoder import Encoder
from .errors import CheckpointError
from .optional import optional_import
from .patched import defined_in, is_replaced
from .streaming import internals

# The classes of diffusers' that compute what one of ours does.
_SAME: dict[type[nn.Module], tuple[str, ...]] = {
    Encoder: ("Encoder",),
    Decoder: ("Decoder",),
    DownBlock: ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    UpBlock: ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
    UNetMidBlock2D: ("UNetMidBlock2D",),
    ResnetBlock: ("ResnetBlock2D",),
    Attention: ("Attention",),
    Upsample: ("Upsample2D",),
    Downsample: ("Downsample2D",),
}
# Processors whose numbers are those of ours, by the name of their class.
_PROCESSORS = {"AttnProcessor2_0": AttnProcessor2_0, "FusedAttnProcessor2_0": FusedAttnProcessor2_0}
_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
_COMPUTING = tuple(name for name in internals.COMPUTING if name != "forward")


def join(part: nn.Module, ours: nn.Module, name: str) -> None:
    """Give a container of ours what one of diffusers' has: its layers, hooks and state.

    Args:
        ours: newly made by the same config, with layers to be exchanged.
        name: of the container in its model, for messages.

    Raises:
        CheckpointError: a layer is of another size than the config says.
    """
    for child in [*ours._modules, *(each for each in part._modules if each not in ours._modules)]:
        theirs = getattr(part, child, None)
        twin = ours._modules.get(child)
        if theirs is None:
            if twin is not None:
                setattr(ours, child, None)
        elif twin is not None:
            setattr(ours, child, _joined(theirs, twin, f"{name}.{child}".lstrip(".")))
        elif not _does_nothing(theirs):  # more than the model has, such as fused projections
            setattr(ours, child, theirs)
    ours._parameters.update(part._parameters)
    ours._buffers.update(part._buffers)
    ours._non_persistent_buffers_set.update(part._non_persistent_buffers_set)
    _take_hooks(part, ours)
    _take_state(part, ours)


def processor_like(processor: Any) -> Any:
    """Our attention processor of the same numbers as one of diffusers'; any other one is kept as it is."""
    name = type(processor).__name__
    known = type(processor).__module__.startswith("diffusers.") and name in _PROCESSORS
    return _PROCESSORS[name]() if known else processor


def runs_its_own(module: nn.Module) -> bool:
    """Whether `forward` of a module is what its class says, but for a hook of accelerate's around it."""
    if "_hf_hook" in vars(module):
        method = vars(module).get("_old_forward")
        return method is None or getattr(method, "__func__", None) is type(module).forward
    return not is_replaced(module, "forward")


def _joined(part: nn.Module, twin: nn.Module, name: str) -> nn.Module:
    """What takes the place of a part of theirs: `twin`, a container of ours with its layers, or the part itself."""
    if not _is_same(part, twin):
        _check_size(part, twin, name)
        return part
    join(part, twin, name)
    if isinstance(twin, Level | UNetMidBlock2D) and any(type(each) is not ResnetBlock for each in twin.resnets):
        return part  # diffusers' resnet block wants an argument that its own container alone gives
    return twin


def _is_same(part: nn.Module, twin: nn.Module) -> bool:
    """Whether a part is a container of diffusers' that computes what ours does."""
    cls = type(part)
    if type(twin) is nn.ModuleList:
        known = cls is nn.ModuleList and sum(each is not None for each in part.children()) == len(twin)
    else:  # the method is elsewhere if the class is patched
        packages = {cls.__module__.partition(".")[0], *(defined_in(cls, name) for name in internals.COMPUTING)}
        is_theirs = packages <= {"diffusers", "torch", ""}
        known = is_theirs and cls.__name__ in _SAME.get(type(twin), ())
    if not known:
        return False
    if internals.is_compiled(part) or not runs_its_own(part) or any(is_replaced(part, name) for name in _COMPUTING):
        return False
    dropout = part._modules.get("dropout")
    return dropout is None or _does_nothing(dropout)


def _does_nothing(module: nn.Module) -> bool:
    return (
        type(module) is nn.Dropout
        and module.p == 0
        and not internals.has_hooks(module)
        and not is_replaced(module, "forward")
    )


def _check_size(part: nn.Module, twin: nn.Module, name: str) -> None:
    if type(part) is not type(twin):
        return
    for key, weight in twin.named_parameters(recurse=False):
        found = part._parameters.get(key)
        if found is not None and found.shape != weight.shape:
            raise CheckpointError(
                f"{name}.{key} has the shape {tuple(found.shape)}, and the model's config says {tuple(weight.shape)}. "
                f"Use the model as it is, or load it with the config that it has now."
            )
    if not isinstance(part, nn.GroupNorm) or not isinstance(twin, nn.GroupNorm):
        return
    if (part.num_groups, part.eps) != (twin.num_groups, twin.eps):
        raise CheckpointError(
            f"{name} has {part.num_groups} groups and eps {part.eps}, and an AutoencoderKL of this config "
            f"{twin.num_groups} and {twin.eps}. Use the model as it is."
        )


def _take_hooks(part: nn.Module, ours: nn.Module) -> None:
    """Share torch's dictionaries of hooks, from which their handles remove them; and put accelerate's hook on."""
    for name in _HOOKS:
        if name in vars(part):
            ours.__dict__[name] = vars(part)[name]
    hook = vars(part).get("_hf_hook")
    if hook is not None:
        theirs = optional_import("accelerate.hooks", "A hook of accelerate's", None)
        theirs.add_hook_to_module(ours, theirs.ModelHook())  # the hook itself would move the weights when it is added
        ours._hf_hook = hook


def _take_state(part: Any, ours: Any) -> None:
    ours.training = part.training
    if getattr(part, "gradient_checkpointing", False):
        ours.gradient_checkpointing = True
        ours._gradient_checkpointing_func = part._gradient_checkpointing_func
    if isinstance(ours, Attention):
        ours.fused_projections = part.fused_projections
        ours.processor = processor_like(part.processor)
