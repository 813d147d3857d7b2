"""Every way in which memory runs out, and how each of them says so."""

from __future__ import annotations

import errno
import re

from ..errors import VAEError

# What torch, oneDNN and drivers say, in a RuntimeError of no class of its own:
_MESSAGES = re.compile(
    r"out of memory"  # CUDA, HIP, XPU and MPS; LLVM
    r"|can't allocate memory|cannot allocate memory|not enough memory|could not allocate"  # torch's allocators, mmap
    r"|not enough gpu video memory"  # DirectML
    r"|alloc_failed|out_of_(host_|device_)?memory"  # cuBLAS, cuDNN; Level Zero, OpenCL
    r"|bad_alloc|bad allocation"  # C++
    r"|can't start new thread"  # a thread needs memory for its stack
    r"|^std::system_error: resource temporarily unavailable",  # the same in C++
    re.IGNORECASE,
)
# oneDNN makes primitives, their memory and scratchpads as it goes, and says no more than which of them it could not.
_ONEDNN = re.compile(r"could not (create|clone|append|generate|initialize|execute) ")
# ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT ("the paging file is too small")
_WINDOWS_CODES = {8, 14, 1455}
_DEVICE_CODE = 2  # cudaErrorMemoryAllocation, hipErrorOutOfMemory


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that caused it, says that memory ran out: of the CPU, a device, or for a thread.

    It is False for errors of this package, which say themselves what to do.
    """
    while error is not None:
        if isinstance(error, VAEError):
            return False
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, by several names
            return True
        if isinstance(error, OSError):
            if error.errno == errno.ENOMEM or getattr(error, "winerror", None) in _WINDOWS_CODES:
                return True
        elif isinstance(error, RuntimeError):
            if getattr(error, "error_code", None) == _DEVICE_CODE:  # torch.AcceleratorError
                return True
            text = str(error)
            if _MESSAGES.search(text) or _ONEDNN.match(text):
                return True
        error = error.__cause__
    return False
