"""What is used of torch (2.4 to 2.13) that it does not promise to keep: what to look at when upgrading it.

`torch.ops.mkldnn._reorder_convolution_weight`, `_convolution_pointwise`, `_convolution_pointwise_`: oneDNN's packed
convolutions, which `torch.compile` is built on (`torch/_inductor/mkldnn_ir.py` shows how they are called, and
`aten/src/ATen/native/mkldnn/Conv.cpp` what they take). Where one is missing, `products_available` is False, and the
direct kernels run. That the last of them adds to what is in its output, in the caller's memory, is not
documented: `tests/streaming/test_kernels.py` would notice.

`torch.autograd.forward_ad._current_level`, `torch._C._functorch.peek_interpreter_stack`: whether a transformation
of functions is at work, which strips must not be part of; `torch._C._len_torch_dispatch_stack`,
`torch._ops._len_torch_dispatch_stack_pre_dispatch`: whether a mode looks at each operation of this thread, as tracers
and counters of FLOPs do: `tests/streaming/test_looked_at.py` and `test_behaviour.py` would notice.

`omp_set_num_threads` and `MKL_Set_Num_Threads_Local` in `libtorch_cpu`, or what it is linked with: the number of
threads of one thread alone. Where they are missing, as on Windows and macOS, `torch.set_num_threads` is called,
and its other effect, on threads to come, put right again: `tests/streaming/test_pool.py` would notice.

`UntypedStorage._cdata`: whether weights were put elsewhere: `tests/streaming/test_changed_weights.py` would notice.

`torch.cpu._is_avx512_bf16_supported`: whether convolutions in bfloat16 are worth it; without it they are not used.

`torch.utils._pytree.register_pytree_node`: how distributed training and export find tensors in an output:
`tests/test_interface.py` would notice.

`Module._parameters`, `_buffers` and `_non_persistent_buffers_set`: what a module keeps, see `WeightPlace`. And what
others put on one: `_forward_hooks`, `_forward_pre_hooks`, `_backward_hooks`, `_backward_pre_hooks`, the global ones
in `torch.nn.modules.module`, `_compiled_call_impl`, `_orig_mod`, `_call_impl`, `Conv2d._conv_forward`. If one got
another name, the engine would compute what a patched module no longer does: `tests/streaming/test_patched.py` and
`tests/test_adopt.py` would notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

# Transformations of functions.


def is_transformed() -> bool:
    """Whether forward-mode gradients or a transformation of functorch's, such as vmap, is at work."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return torch.autograd.forward_ad._current_level >= 0 or functorch.peek_interpreter_stack() is not None


def is_in_a_mode() -> bool:
    """Whether a mode of torch, such as a tracer's or a counter's of FLOPs, looks at each operation of this thread."""
    return torch._C._len_torch_dispatch_stack() + torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor is kept in, as a number that another memory does not have; 0 where that cannot be asked."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a class of tensors that has none of its own
        return 0


# What others put on a module.

# The methods by which a module computes.
COMPUTING = ("forward", "_conv_forward", "__call__", "_call_impl")
_CONV_FORWARD = nn.Conv2d._conv_forward  # as it was when this package was imported
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether a module by itself has hooks on its forward or backward."""
    return any(getattr(module, name, None) for name in _HOOKS)


def has_global_hooks() -> bool:
    """Whether there are forward hooks on all modules."""
    return any(getattr(nn.modules.module, name, None) for name in _GLOBAL_HOOKS)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module by itself was compiled, by torch.compile or in place; its inside cannot be observed."""
    wrapped = type(module).__name__ == "OptimizedModule" or hasattr(module, "_orig_mod")
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def convolves_otherwise() -> bool:
    """Whether what all convolutions compute by has been exchanged."""
    return nn.Conv2d._conv_forward is not _CONV_FORWARD


class WeightPlace(NamedTuple):
    """Where a model keeps one parameter or buffer.

    Attributes:
        key: its key in a state dict.
        holder, name: the dictionary of its module that it is in, and its name there.
    """

    key: str
    holder: dict[str, Any]
    name: str

    @property
    def value(self) -> Tensor:
        return self.holder[self.name]

    def fill(self, weight: Tensor, requires_grad: bool = False) -> None:
        """Put a tensor there: as a new parameter where one is, unless it is a parameter itself."""
        if isinstance(self.value, nn.Parameter) and not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight, requires_grad)
        self.holder[self.name] = weight


def weight_places(model: nn.Module) -> list[WeightPlace]:
    """Those of all parameters and buffers that there are."""
    return [
        WeightPlace(f"{prefix}.{name}" if prefix else name, holder, name)
        for prefix, module in model.named_modules()
        for holder in (module._parameters, module._buffers)
        for name, value in holder.items()
        if value is not None
    ]


def lasting_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module by itself that its state dict has."""
    passing = module._non_persistent_buffers_set
    return {name: each for name, each in module._buffers.items() if each is not None and name not in passing}


# Containers of tensors.


def register_container(
    cls: type, flatten: Callable[[Any], tuple[list[Any], Any]], unflatten: Callable[[Any, Any], Any]
) -> None:
    """Let torch look into objects of a class for tensors: `flatten` gives them and the rest, `unflatten` takes both."""
    name = f"{cls.__module__}.{cls.__name__}"
    _pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


# The number of threads of one thread.

GRAIN = 2**15
"""Values that torch gives each of several threads at least: with no more, one thread computes."""


def set_threads_of_this_thread(count: int) -> None:
    """Let torch use so many threads for what the calling thread computes. For others, and those to come, it stays."""
    if torch.get_num_threads() == count:  # asked first: a thread takes over the default when it is first asked
        return
    for setter in thread_setters():
        setter(count)
    if torch.get_num_threads() != count:
        _set_and_put_default_back(count)


def claim_data_of_this_thread(computes: bool) -> None:
    """Use what of torch, oneDNN and OpenMP keeps data for each thread by itself.

    That is numbers of threads, modes, errors of C++ and, if the thread `computes`, operators that oneDNN has made.
    Where a number for one thread alone can be set, the thread uses one from then on.
    """
    for setter in thread_setters():
        setter(1)
    torch._C._len_torch_dispatch_stack()
    with torch.inference_mode(), contextlib.suppress(RuntimeError):
        if computes and products_available():
            ones = torch.ones(16, 16, 1, 1, dtype=torch.float32, device="cpu")
            multiply(ones.view(1, 16, 1, 16), ones, 1)
        torch.empty(-1, dtype=torch.float32, device="cpu")


@functools.cache
def thread_setters() -> list[Any]:
    if sys.platform != "linux":
        return []
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return [library.omp_set_num_threads, *filter(None, [getattr(library, "MKL_Set_Num_Threads_Local", None)])]
    except (OSError, AttributeError):
        return []


_setting = threading.Lock()


def _set_and_put_default_back(count: int) -> None:
    """By torch.set_num_threads, which sets the default of threads to come as well: another thread puts that back."""
    known = threading.Event()
    done = threading.Event()

    def put_back() -> None:
        default = torch.get_num_threads()
        known.set()
        done.wait()
        torch.set_num_threads(default)

    with _setting:
        other = threading.Thread(target=put_back, name="seamless-vae-default")
        try:
            other.start()
        except (RuntimeError, MemoryError, OSError):  # then this thread keeps its number
            return
        try:
            known.wait()
            torch.set_num_threads(count)
        finally:
            done.set()
            other.join()


def multiplies_bfloat16() -> bool:
    """Whether torch's convolutions use the processor's instructions for products in bfloat16, if there are any."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    allowed = any(each in most for each in ("ALL", "DEFAULT", "BF16", "FP16", "AMX"))
    return allowed and torch.backends.mkldnn.enabled and ask is not None and bool(ask())


# Grouped 1x1 convolutions of oneDNN on weights that it has laid out in advance.

_OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")


@functools.cache
def products_available() -> bool:
    """Whether torch has oneDNN's operators for products with packed weights."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


def pack(weight: Tensor, groups: int, shape: Sequence[int]) -> Tensor:
    """Weights [groups * K, C, 1, 1], laid out for inputs of a shape [1, groups * C, 1, rows].

    They are for threads that let torch use one, as those that compute strips do: on some processors the layout that
    oneDNN wants depends on the number, and of any other it makes a new one in every call, which takes ten times as long
    as the product.
    """
    before = torch.get_num_threads()
    try:
        if thread_setters():  # elsewhere setting it starts a thread, and changes the default of others for a moment
            set_threads_of_this_thread(1)
        return torch.ops.mkldnn._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], groups, list(shape))
    finally:
        try:
            set_threads_of_this_thread(before)
        finally:  # that may be interrupted
            set_threads_of_this_thread(before)


def multiply(x: Tensor, packed: Tensor, groups: int) -> Tensor:
    """[1, groups * C, 1, rows] -> [1, groups * K, 1, rows], with weights from `pack`."""
    return torch.ops.mkldnn._convolution_pointwise(x, packed, None, [0, 0], [1, 1], [1, 1], groups, "none", [], "")


def add_products(y: Tensor, x: Tensor, packed: Tensor, groups: int) -> None:
    """y += multiply(x, packed, groups), in y's own memory."""
    torch.ops.mkldnn._convolution_pointwise_(
        y, x, packed, None, [0, 0], [1, 1], [1, 1], groups, "add", 1.0, None, [], None
    )
