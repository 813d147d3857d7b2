"""What torch offers on a device of any kind, found out by asking its module: streams, free memory, bfloat16.

CUDA and ROCm are "cuda" to torch; Intel's are "xpu", Apple's "mps", Huawei's "npu". Whatever a kind does not have is
None here, and the engine does without: one queue instead of three, or no budget where the free memory is unknown.
(`torch.accelerator` is younger than the oldest torch that runs this.)
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..errors import ConfigError, brief, in_one_line

_KINDS = ("cuda", "xpu", "npu", "mlu", "mps")
_STREAMS = ("Stream", "current_stream", "stream")
# What torch raises for a device that this machine, or this build of torch, does not have.
_ABSENT = (RuntimeError, AssertionError, NotImplementedError, ImportError)
_HAVE_CPU_MEMORY = ("mps",)  # kinds whose memory is the CPU's


def module_of(device: torch.device) -> Any:
    """torch's module for a kind of device, such as torch.cuda; None for one without.

    As `torch.get_device_module` finds it, which raises for a kind without one.
    """
    return getattr(torch, device.type, None)


def device_of(device: Any) -> torch.device:
    """A device as a caller gave it. Raises ConfigError for what is none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device is {brief(device)}. Give a device of torch, such as 'cpu' or 'cuda:0'.") from None


def numbered(device: torch.device) -> torch.device:
    """The same device with its number, as tensors on it have: the current one where none is named.

    "cuda" and "cuda:0" are one device, but not equal.
    """
    if device.index is not None or device.type in ("cpu", "meta"):
        return device
    if device.type == "mps":
        return torch.device("mps", 0)
    current = getattr(module_of(device), "current_device", None)
    try:
        return device if current is None else torch.device(device.type, int(current()))
    except _ABSENT:  # a plan for a device that this machine does not have
        return device


def with_streams(device: torch.device) -> Any:
    """The module of a device that has several queues; None where there is one."""
    module = None if device.type in ("cpu", "meta") else module_of(device)
    return module if all(hasattr(module, name) for name in _STREAMS) else None


def current(device: torch.device) -> AbstractContextManager[Any]:
    """In a `with` block the device is its kind's current one, which libraries beside torch send their kernels to."""
    switch = getattr(module_of(device), "device", None)
    return nullcontext() if switch is None or device.type == "cpu" or device.index is None else switch(device)


def has_cpu_memory(device: torch.device) -> bool:
    """Whether a device's memory is the CPU's, so that nothing is gained by moving something from one to the other."""
    return device.type == "cpu" or device.type in _HAVE_CPU_MEMORY


def why_unusable(device: torch.device | str | int) -> str | None:
    """Why nothing can be put on a device here, or what was given is none, in one line; None where it can."""
    try:
        torch.empty(0, dtype=torch.float32, device=device)
    except (*_ABSENT, TypeError) as error:
        return in_one_line(error).partition(". ")[0].rstrip(".")
    return None


def free_bytes(device: torch.device) -> int | None:
    """Free memory of an accelerator, with what torch keeps of it for the next tensors.

    None where it is unknown, as of a device that this machine does not have.
    """
    try:
        return _free_bytes(device)
    except _ABSENT:
        return None


def _free_bytes(device: torch.device) -> int | None:
    module = module_of(device)
    ask = getattr(module, "mem_get_info", None)
    if ask is not None:
        kept = module.memory_reserved(device) - module.memory_allocated(device)
        if device.index is None and hasattr(module, "current_device"):  # torch < 2.5 wants a number
            device = torch.device(device.type, module.current_device())
        try:
            return ask(device)[0] + kept
        except RuntimeError:  # some of Intel's cannot tell
            return module.get_device_properties(device).total_memory - module.memory_allocated(device)
    most = getattr(module, "recommended_max_memory", None)
    return None if most is None else max(0, most() - module.current_allocated_memory())


def allocated_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator that torch's tensors have; None where it is unknown."""
    module = module_of(device)
    ask = getattr(module, "memory_allocated", None)
    if ask is not None:
        return int(ask(device))
    ask = getattr(module, "current_allocated_memory", None)
    return None if ask is None else int(ask())


def empty_cache(device: torch.device) -> None:
    """Let torch give back what it keeps of an accelerator's freed memory."""
    ask = getattr(module_of(device), "empty_cache", None)
    if ask is not None and device.type != "cpu":
        ask()


def is_captured(device: torch.device) -> bool:
    """Whether what is queued on a device becomes part of a graph, in which nothing may wait for it."""
    ask = getattr(module_of(device), "is_current_stream_capturing", None)
    return ask is not None and device.type != "cpu" and bool(ask())


def good_at_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself, not by an emulation."""
    ask = getattr(module_of(device), "is_bf16_supported", None)
    if ask is None or device.type == "cpu":
        return False
    known = inspect.signature(ask).parameters
    try:
        return bool(ask(including_emulation=False) if "including_emulation" in known else ask())
    except _ABSENT:
        return False


def accelerators() -> list[str]:
    """Devices other than the CPU that torch can use, such as cuda:0."""
    found = []
    for kind in _KINDS:
        module = getattr(torch, kind, None)
        if module is None or not (torch.backends.mps if kind == "mps" else module).is_available():
            continue
        found += [kind] if kind == "mps" else [f"{kind}:{index}" for index in range(module.device_count())]
    return found
