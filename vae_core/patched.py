"""Whether a module still computes what its class says, so that the engine may compute it in its own way."""

from __future__ import annotations

from torch import nn

from .attention import STOCK_PROCESSORS, Attention
from .blocks import DownBlock, Downsample, ResnetBlock, UNetMidBlock2D, UpBlock, Upsample
from .decoder import Decoder
from .encoder import Encoder
from .streaming import internals
from .tensor_kinds import foreign_class

_CLASSES = (
    Encoder, Decoder, DownBlock, UpBlock, UNetMidBlock2D, ResnetBlock, Attention, Downsample, Upsample,
    nn.ModuleList, nn.Conv2d, nn.Linear, nn.GroupNorm, nn.Dropout, nn.SiLU, nn.Mish, nn.GELU, nn.ReLU,
)  # fmt: skip
# As they were when this package was imported: a class can be patched, too.
_FORWARDS = {cls: cls.forward for cls in _CLASSES if cls is not nn.ModuleList}


def find_patch(module: nn.Module, called: str = "") -> str | None:
    """The first thing under `module` that is patched, in words; None if it is unmodified.

    Looked for: hooks, also global ones; another class, a parametrization, a patched or a compiled method; a
    convolution with another padding; a custom attention processor; weights that compute in their own way.

    Args:
        called: its name in the model, for the words; without one, that of its class.
    """
    if internals.has_global_hooks():
        return "a forward hook on all modules"
    for name, child in module.named_modules():
        patch = _patch_of(child)
        if patch is not None:
            return f"{'.'.join(filter(None, (called, name))) or type(module).__name__} has {patch}"
    return None


def is_replaced(module: nn.Module, name: str) -> bool:
    """Whether a method was set on an instance. Its own method, as it is put back after a patch, counts as none."""
    found = module.__dict__.get(name)
    if found is None:
        return False
    return getattr(found, "__self__", None) is not module or found.__func__ is not getattr(type(module), name, None)


def defined_in(cls: type, method: str) -> str:
    """The package whose code a method of a class is, whatever it calls itself; empty for none and for built-in ones."""
    function = getattr(cls, method, None)
    module = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", None)
    return (module or "").partition(".")[0]


def _patch_of(module: nn.Module) -> str | None:
    if internals.is_compiled(module):
        return "been compiled"
    cls = type(module)
    if cls not in _CLASSES:
        return f"the class {cls.__name__}"
    if cls in _FORWARDS and cls.forward is not _FORWARDS[cls]:
        return f"a patched {cls.__name__}.forward"
    if internals.has_hooks(module):
        return "a hook"
    if any(is_replaced(module, name) for name in internals.COMPUTING):
        return "a patched method"
    for weight in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        foreign = foreign_class(weight)
        if foreign is not None:
            return f"weights of the class {foreign}"
    if isinstance(module, nn.Conv2d):
        return _patch_of_convolution(module)
    if isinstance(module, Attention) and type(module.processor) not in STOCK_PROCESSORS:
        return f"the attention processor {type(module.processor).__name__}"
    if isinstance(module, nn.GroupNorm) and module.weight is None:
        return "no weights"
    return None


def _patch_of_convolution(conv: nn.Conv2d) -> str | None:
    if internals.convolves_otherwise():
        return "a patched Conv2d._conv_forward"
    if conv.padding_mode != "zeros":
        return f"padding mode {conv.padding_mode}"
    if conv.groups != 1 or conv.dilation != (1, 1) or conv.bias is None:
        return "an unusual convolution"
    known = {((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (0, 0)), ((1, 1), (1, 1), (0, 0))}
    if (conv.kernel_size, conv.stride, conv.padding) not in known:
        return f"a convolution of kernel {conv.kernel_size}, stride {conv.stride}, padding {conv.padding}"
    return None
