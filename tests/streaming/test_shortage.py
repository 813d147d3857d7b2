"""Every way in which memory runs out is known as such, and no other error is taken for it."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from given.inputs import image, latent

import vae_core
from vae_core import AutoencoderKL
from vae_core.errors import MemoryBudgetError
from vae_core.streaming import job
from vae_core.streaming.shortage import is_out_of_memory

ROOT = Path(__file__).resolve().parents[2]


class CodedError(RuntimeError):
    error_code = 2


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
SHORTAGES: list[BaseException] = [
    MemoryError(),
    MemoryError("Unable to allocate 8.00 GiB for an array with shape (8589934592,) and data type uint8"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    caused(OSError("cannot map"), OSError(errno.ENOMEM, "Cannot allocate memory")),
    *map(
        RuntimeError,
        [
            CPU
            + "can't allocate memory: you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)",
            CPU + "not enough memory: you tried to allocate 8589934592 bytes.",  # Windows
            "unable to mmap 123 bytes from file <weights>: Cannot allocate memory (12)",
            "could not create a primitive",
            "could not create a memory object",
            "could not create a primitive descriptor for the reorder primitive. Run workload with environment variable "
            "ONEDNN_VERBOSE=all to get additional diagnostic information.",
            "could not execute a primitive",
            "std::bad_alloc",
            "bad allocation",
            "can't start new thread",
            "CUDA error: out of memory",
            "HIP out of memory. Tried to allocate 20.00 MiB",
            "MPS backend out of memory (MPS allocated: 5 GB)",
            "XPU out of memory. Tried to allocate 2.00 GiB",
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "Could not allocate tensor with 268435456 bytes. There is not enough GPU video memory available!",
        ],
    ),
    CodedError("CUDA error"),
]
OTHERS: list[BaseException] = [
    MemoryBudgetError("the memory budget is too small: ... Give at least 64 MiB."),  # which says what to do
    caused(MemoryBudgetError("no room"), OSError(errno.ENOMEM, "Cannot allocate memory")),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EAGAIN, "Resource temporarily unavailable"),
    FileNotFoundError("out of memory.safetensors"),
    KeyboardInterrupt(),
    ValueError("could not create a primitive"),
    *map(
        RuntimeError,
        [
            "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
            "Could not run 'aten::empty.memory_format' with arguments from the 'Fake' backend.",
            "CUDA error: device-side assert triggered",
            "Given groups=1, weight of size [3, 3, 3, 3], expected input[1, 4, 8, 8] to have 3 channels",
            "cannot start a transaction within a transaction",
        ],
    ),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_memory_has_run_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_memory_has_not_run_out(error: BaseException) -> None:
    assert not is_out_of_memory(error)


SHORT = """
import resource, sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from given.inputs import latent
from given.models import fields, make
import vae_core
from vae_core.streaming.shortage import is_out_of_memory
vae, z = make(fields(64, 128, 128, layers_per_block=1)), latent(1, 24)
raised = 0
with vae_core.kernels("winograd"):
    job = vae_core.prepare_decode(vae, z.shape, vae_core.Options(memory_budget=2**30))
    wanted = job.run(z)
    for left in [*range(0, 2 * job.bytes.device, job.bytes.device // int(sys.argv[3])), 4 * job.bytes.device]:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + left, resource.RLIM_INFINITY))
        try:
            found = vae_core.decode(vae, z, memory_budget=2**30) if sys.argv[4] == "decode" else job.run(z)
        except BaseException as error:
            said = isinstance(error, vae_core.MemoryBudgetError)
            assert said if sys.argv[4] == "decode" else is_out_of_memory(error), repr(error)
            raised += 1
        else:
            assert torch.equal(found, wanted) if sys.argv[4] == "job" else (found - wanted).abs().max() < 1e-5
            del found
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert torch.equal(job.run(z), wanted)
print(raised)
"""


def check_real_shortages(steps: int, run: str) -> None:
    command = [sys.executable, "-c", SHORT, str(ROOT), str(ROOT / "tests"), str(steps), run]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < 2 * steps + 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("run", ["job", "decode"])
@pytest.mark.thorough
def test_a_real_shortage(run: str) -> None:
    check_real_shortages(6, run)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("run", ["job", "decode"])
def test_real_shortages_of_every_size(run: str) -> None:
    check_real_shortages(100, run)


class TestFunctions:
    """`vae_core.encode` and `decode` go down to smaller strips by themselves, and say so."""

    @pytest.fixture
    def fails(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        def times(count: int) -> None:
            left, run = [count], job.Job.run_at_once

            def short(self: job.Job, *arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] >= 0:
                    raise RuntimeError("could not create a primitive")
                return run(self, *arguments, **options)

            monkeypatch.setattr(job.Job, "run_at_once", short)

        return times

    def test_smaller_strips(self, fails: Callable, vae: AutoencoderKL, caplog: pytest.LogCaptureFixture) -> None:
        z, x = latent(1, 48, 48), image(1, 96, 96)
        wanted = vae_core.decode(vae, z), vae_core.encode(vae, x).mean
        runs = (lambda: vae_core.decode(vae, z), lambda: vae_core.encode(vae, x).mean)
        for found, run in zip(wanted, runs, strict=True):
            fails(2)
            caplog.clear()
            assert (run() - found).abs().max() < 1e-5
            assert [message.startswith("Memory ran out") for message in caplog.messages] == [True, True]

    def test_none_is_small_enough(self, fails: Callable, vae: AutoencoderKL) -> None:
        fails(100)
        with pytest.raises(vae_core.MemoryBudgetError, match="the smallest attempt needed about"):
            vae_core.decode(vae, latent(1, 24, 24))
