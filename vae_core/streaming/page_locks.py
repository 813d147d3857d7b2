"""CPU memory that a device copies from and to beside its computation: the system must not move its pages.

CUDA locks memory where it is by `cudaHostRegister` and ends that by `cudaHostUnregister`, which torch's module of the
device has as `cudart()`, and ROCm under the same names. Any other accelerator can only be asked for such memory by
torch, which gives it out in powers of two and keeps it for the next time: so it is asked for what has such a size,
as all bands of large maps but the last ones do, and only where what it keeps can be given back
(`torch.accelerator.empty_host_cache`). Without either, copies work, but take longer. torch promises none of this.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import in_one_line
from ..units import MIB
from .devices import has_cpu_memory, module_of

logger = logging.getLogger("seamless_vae")


class PageLocks:
    """How memory is locked for a device; this one does not."""

    def make(self, size: int, make: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Memory of `size` bytes, uint8, and whether it is locked; `make` makes what is not locked by being made."""
        return make(), False

    def unlock(self, data: Tensor) -> None:
        """End it for memory that was locked, before it goes."""

    def give_back(self) -> None:
        """What was unlocked is gone: nothing of it is kept."""


class RuntimeLocks(PageLocks):
    """By CUDA's runtime, or ROCm's, in place."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def _runtime(self) -> Any:
        return module_of(self.device).cudart()

    def make(self, size: int, make: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        data = make()
        failed = int(self._runtime.cudaHostRegister(data.data_ptr(), size, 0))
        if failed:
            logger.info("%d MiB of memory could not be page-locked; copies take longer.", size // MIB)
            self.take_error()
        return data, not failed

    def unlock(self, data: Tensor) -> None:
        if int(self._runtime.cudaHostUnregister(data.data_ptr())):
            self.take_error()

    def take_error(self) -> None:
        """Clear the error that the runtime keeps of a failure that is handled; the next kernel would be blamed."""
        with contextlib.suppress(RuntimeError):
            torch.empty(1, dtype=torch.float32, device=self.device).fill_(0)  # the kernel to be blamed


class TorchLocks(PageLocks):
    """By torch, for its current accelerator."""

    def make(self, size: int, make: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        if size & (size - 1):
            return make(), False
        try:
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True), True
        except RuntimeError as error:  # NotImplementedError, too
            logger.info("%d MiB could not be page-locked (%s); copies take longer.", size // MIB, in_one_line(error))
            return make(), False

    def give_back(self) -> None:
        torch.accelerator.empty_host_cache()


def page_locks(device: torch.device) -> PageLocks:
    """How memory is locked for a device."""
    if has_cpu_memory(device):
        return PageLocks()
    if hasattr(module_of(device), "cudart"):
        return RuntimeLocks(device)
    accelerator: Any = getattr(torch, "accelerator", None)  # younger than the oldest torch that runs this
    current = accelerator.current_accelerator() if hasattr(accelerator, "empty_host_cache") else None
    return TorchLocks() if current is not None and current.type == device.type else PageLocks()
