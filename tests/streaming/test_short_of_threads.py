"""Real limits of threads and of memory: the result is the same, or a sentence; no process hangs or is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux"), pytest.mark.thorough]

LIMITED = """
import os, resource, sys, threading
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(2)
from given.inputs import latent
from given.models import SMALL, make
from given.runs import workers
import vae_core
vae, z = make(SMALL), latent(*([1, 24] if sys.argv[3] != "processes" else [1, 96]))  # more than torch looks at alone
with vae_core.kernels("winograd"):
    wanted = vae_core.decode(vae, z)
    if sys.argv[3] == "processes":
        if os.geteuid() == 0:
            os.setuid(65534)  # the limit is not for root
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    else:  # enough for the decode and not for the stack of a thread, or for neither
        threading.stack_size(2**28)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        left = {"stacks": 2**27, "memory": 2**21}[sys.argv[3]]
        resource.setrlimit(resource.RLIMIT_AS, (used + left, used + left))
    found = vae_core.decode(vae, z)
assert (found - wanted).abs().max() < 1e-5
assert torch.get_num_threads() == 2 and not workers()
print("the same")
"""


def run_limited(limit: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(ROOT), str(ROOT / "tests"), limit]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("limit", ["processes", "stacks"])
def test_a_real_limit_of_threads(limit: str) -> None:
    done = run_limited(limit)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]
    assert done.stderr.count("ulimit -u") == 1


def test_a_real_limit_of_memory_is_said() -> None:
    done = run_limited("memory")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vae_core.errors.MemoryBudgetError: "), done.stderr[-2000:]


SHORT = """
import faulthandler, resource, sys
sys.path[:0] = sys.argv[1:3]
import torch
from given.models import fields, make
import vae_core
faulthandler.dump_traceback_later(100, exit=True)
vae = make(fields(64, 64))
torch.set_num_threads(1)  # so that threads are first started where there is little memory for them
vae_core.decode(vae, torch.randn(1, 4, 8, 8))
torch.set_num_threads(4)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[3]) << 20),) * 2)
try:
    vae_core.decode(vae, torch.randn(1, 4, 96, 96))
except vae_core.MemoryBudgetError:
    pass
print("ended")
"""


@pytest.mark.parametrize(
    "left", [34, 40, 54, 76, *(pytest.param(left, marks=pytest.mark.slow) for left in range(32, 160, 2))]
)
def test_threads_that_start_where_memory_is_short(left: int) -> None:
    """`left` MiB are. The process neither hangs nor is ended, as OpenMP would end it."""
    command = [sys.executable, "-c", SHORT, str(ROOT), str(ROOT / "tests"), str(left)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended\n", done.stderr[-2000:]


SMALL_STACK = """
import sys, threading
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(2)
from given.inputs import latent
from given.models import SMALL, make
import vae_core
vae, z = make(SMALL), latent(1, 24)
wanted = vae_core.decode(vae, z)
threading.stack_size(int(sys.argv[3]))
assert (vae_core.decode(vae, z) - wanted).abs().max() == 0
assert threading.stack_size() == int(sys.argv[3])
print("ended")
"""


@pytest.mark.parametrize("size", [2**15, 2**16, 2**17, 2**24])
def test_stacks_that_a_program_has_set_for_its_threads(size: int) -> None:
    command = [sys.executable, "-c", SMALL_STACK, str(ROOT), str(ROOT / "tests"), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended\n", done.stderr[-2000:]


FEWER = """
import os, resource, sys
sys.path[:0] = sys.argv[1:3]
import torch
from vae_core.streaming.pool import WorkerPool
torch.set_num_threads(8)
if os.geteuid() == 0:
    os.setuid(65534)  # the limit is not for root
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[4]),) * 2)
with WorkerPool(int(sys.argv[3])) as pool:
    pass
print("ended")
"""


@pytest.mark.parametrize("limit", [1, 6])
@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_a_pool_of_fewer_threads_than_torch_has(count: int, limit: int) -> None:
    command = [sys.executable, "-c", FEWER, str(ROOT), str(ROOT / "tests"), str(count), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ended\n", done.stderr[-2000:]
