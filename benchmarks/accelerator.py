"""The engine on an accelerator, checked and measured by one command: time, device memory, exactness.

    python benchmarks/accelerator.py [--device cuda] [--sizes 1024 2048 4096] [--dtype bfloat16] [--budgets 1024 512]

First the tests of what a device does are run. Then a decoder of SD's size with random weights decodes random latents:
for every size the reference path and diffusers in channels_last, the engine as it chooses, the engine in strips with
and without Triton's kernels, and under each budget (in MiB). The columns: medians of seconds in turns, how many times
the reference path's speed that is, the growth of the device's memory beside the image, and the largest difference to
float32. The table goes into a file (`--out`), in place of an older one of the same device.

Ends with status 1 if a test fails, if a budget is exceeded by more than 15 %, or if the engine as it chooses takes
more than 1.1 times the reference path's time. Devices are whatever torch calls one: CUDA and ROCm ("cuda"), Intel's
("xpu"), Apple's ("mps"), Huawei's ("npu"); where a device cannot tell its memory, the column says so.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from engine import in_turns
from peers import CHANNELS_LAST, CONFIGS, ROOT, NotAvailableError, build, ours
from torch import Tensor

import vae_core
from vae_core import TileSpec
from vae_core.streaming import fused
from vae_core.streaming.devices import accelerators, module_of

ALLOWED_TIME, ALLOWED_MEMORY = 1.1, 1.15
TESTS = ("tests/streaming/test_accelerator.py", "tests/streaming/test_fused.py", "tests/devices")
REFERENCE, CHOSEN, IN_STRIPS, WITHOUT_TRITON = (
    "reference path",
    "Seamless VAE",
    "in strips",
    "in strips, without Triton",
)
MIB = 2**20
TURNS_SECONDS = 120.0  # in which the turns of one size should be done
HEAD = """# On accelerators

Made by `python benchmarks/accelerator.py`, which checks and measures a device; each table is of one run on one device.
Memory is the growth of the device's memory beside the image; the difference is the largest one to float32, of images
between -1 and 1.
"""


class Measured(NamedTuple):
    """A row of the table.

    Attributes:
        memory: bytes; None where the device cannot tell.
        budget: bytes; None for no limit.
    """

    size: int
    name: str
    seconds: float
    speed: float | None
    memory: int | None
    budget: int | None
    difference: float


class Device:
    """What is measured of a device, as far as it can tell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = module_of(device)

    @property
    def name(self) -> str:
        ask = getattr(self.module, "get_device_name", None)
        return self.device.type if ask is None else str(ask(self.device))

    def call(self, function: str) -> Any:
        ask = getattr(self.module, function, None)
        return None if ask is None else ask()

    def timed(self, run: Callable[[], Tensor]) -> None:
        run()
        self.call("synchronize")

    def growth(self, run: Callable[[], Tensor]) -> tuple[Tensor, int | None]:
        """The result, and how much more memory than it was taken at most."""
        self.call("empty_cache")
        self.call("reset_peak_memory_stats")
        before = self.call("memory_allocated")
        result = run()
        self.call("synchronize")
        most = self.call("max_memory_allocated")
        return result, None if most is None or before is None else most - before - result.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, help="default: the first accelerator that torch finds")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--budgets", type=int, nargs="*", default=[1024, 512], help="MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--config", choices=list(CONFIGS), default="full")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accelerators.md")
    parser.add_argument("--no-tests", action="store_true", help="measure alone")
    options = parser.parse_args()
    if options.device is None:
        found = accelerators()
        if not found:
            sys.exit("torch finds no accelerator here. To try this script on the CPU: --device cpu --config tiny.")
        options.device = torch.device(found[0])
    passed = options.no_tests or run_tests()
    device = Device(options.device)
    rows = []
    for size in options.sizes:
        for row in measure(device, size, options):
            rows.append(row)
            print(line(row), flush=True)
    write(options.out, section(device, options, rows, passed))
    failures = list(broken(rows))
    if not passed:
        failures.append("a test failed")
    if failures:
        sys.exit("; ".join(failures))


def run_tests() -> bool:
    """Whether the tests of devices pass; the interpreter's process and the device's are pytest's own affair."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], cwd=ROOT).returncode == 0


@torch.inference_mode()
def measure(device: Device, size: int, options: argparse.Namespace) -> Iterator[Measured]:
    """The rows of one size."""
    config, dtype = CONFIGS[options.config], getattr(torch, options.dtype)
    side = size // config.downscale_factor
    z = torch.randn(1, config.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    z = z.to(device.device)
    exact = copy.deepcopy(ours(config)).to(device.device)
    strips = TileSpec(size=None)
    truth = vae_core.decode(exact, z, tiling=strips).cpu()
    vae = exact.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = z.to(dtype)
    runs: dict[str, tuple[int | None, Callable[[], Tensor]]] = {
        REFERENCE: (None, partial(vae.decode_reference, half)),
        CHOSEN: (None, partial(vae_core.decode, vae, half)),
        IN_STRIPS: (None, partial(vae_core.decode, vae, half, tiling=strips)),
        WITHOUT_TRITON: (None, partial(in_torchs_operations, partial(vae_core.decode, vae, half, tiling=strips))),
    }
    try:
        runs[CHANNELS_LAST] = (None, partial(build(CHANNELS_LAST, config, 0, dtype, device.device).decode, half))
    except NotAvailableError as error:
        print(f"{CHANNELS_LAST} is left out: {error}")
    for budget in options.budgets:
        limited = partial(vae_core.decode, vae, half, memory_budget=budget * MIB)
        runs[f"within {budget} MiB"] = (budget * MIB, limited)
    results = {}
    for name, (_, run) in list(runs.items()):
        try:
            results[name] = device.growth(run)
        except torch.OutOfMemoryError:
            print(f"{size} {name}: out of memory")
            del runs[name]
    seconds = in_turns([partial(device.timed, run) for _, run in runs.values()], options.runs, TURNS_SECONDS, short=2.0)
    medians = dict(zip(runs, map(statistics.median, seconds), strict=True))
    for name, (budget, _) in runs.items():
        image, memory = results[name]
        speed = medians[REFERENCE] / medians[name] if REFERENCE in medians else None
        difference = (image.float().cpu() - truth).abs().max().item()
        yield Measured(size, name, medians[name], speed, memory, budget, difference)


def in_torchs_operations(run: Callable[[], Tensor]) -> Tensor:
    """The same without Triton's kernels."""
    with without_triton():
        return run()


@contextmanager
def without_triton() -> Iterator[None]:
    with patch.object(fused, "_KINDS", ()), patch.dict(os.environ, TRITON_INTERPRET="0"):
        yield


def broken(rows: list[Measured]) -> Iterator[str]:
    """What is not as it has to be."""
    for row in rows:
        if row.budget is not None and row.memory is not None and row.memory > ALLOWED_MEMORY * row.budget:
            yield f"{row.size}: {row.name} was exceeded"
        if row.name == CHOSEN and row.speed is not None and row.speed < 1 / ALLOWED_TIME:
            yield f"{row.size}: {1 / row.speed:.2f} times the reference path's time"


def line(row: Measured) -> str:
    """A row as Markdown."""
    speed = "" if row.speed is None else f"{row.speed:.2f}"
    memory = "unknown" if row.memory is None else f"{row.memory / MIB:.0f} MiB"
    return f"| {row.size} | {row.name} | {row.seconds:.3f} | {speed} | {memory} | {row.difference:.1e} |"


def section(device: Device, options: argparse.Namespace, rows: list[Measured], passed: bool) -> str:
    """What a run found out, as Markdown."""
    tests = "not run" if options.no_tests else "passed" if passed else "failed"
    return "\n".join(
        (
            f"## {device.name}",
            "",
            f"torch {torch.__version__}, {options.dtype}, model {options.config}, medians of {options.runs} in turns; "
            f"tests of devices: {tests}.",
            "",
            "| side | run | seconds | speed | memory | difference |",
            "| --- | --- | --- | --- | --- | --- |",
            *map(line, rows),
            "",
        )
    )


def write(path: Path, text: str) -> None:
    """Put a device's section into the file, in place of an older one of the same device."""
    before = path.read_text() if path.exists() else HEAD
    head, *others = before.split("\n## ")
    title = text.partition("\n")[0].removeprefix("## ")
    kept = [f"## {each.rstrip()}\n" for each in others if each.partition("\n")[0] != title]
    path.write_text("\n".join((f"{head.rstrip()}\n", *kept, text)))


if __name__ == "__main__":
    main()
