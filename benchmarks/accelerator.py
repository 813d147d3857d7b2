"""The engine on an accelerator, checked and measured by one command: time, device memory, exactness.

    python benchmarks/accelerator.py [--device cuda] [--sizes 512 8x512 1024] [--dtype bfloat16] [--budgets 1024 512]

First the tests of what a device does are run. Then a model of SD's size with random weights decodes and encodes random
inputs, one or a batch (8x512 is eight of 512x512). For every size: the reference path and diffusers in channels_last,
the engine as it chooses, the engine in strips with and without Triton's kernels, and under each budget (in MiB). The
columns: medians of seconds in turns, how many times the reference path's speed that is, the growth of the device's
memory beside the result, and the largest difference to float32. The table goes into a file (`--out`), in place of an
older one of the same device, and again after each size.

Ends with status 1 if a test fails, if a budget is exceeded by more than 15 %, if the engine as it chooses takes more
than 1.1 times the time of the reference path or of strips, or if a way differs from float32 by more than twice as much
as the reference path. Devices are whatever torch calls one: CUDA and ROCm ("cuda"), Intel's
("xpu"), Apple's ("mps"), Huawei's ("npu"); where a device cannot tell its memory, the column says so.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from engine import in_turns
from peers import CHANNELS_LAST, CONFIGS, OURS, PLAIN, ROOT, NotAvailableError, build, make_input, ours
from torch import Tensor

import vae_core
from vae_core import AutoencoderKL, MemoryBudgetError, TileSpec
from vae_core.streaming import fused
from vae_core.streaming.devices import accelerators, allocated_bytes, current, empty_cache, module_of
from vae_core.streaming.shortage import is_out_of_memory
from vae_core.units import MIB

ALLOWED_TIME, ALLOWED_MEMORY, ALLOWED_DIFFERENCE = 1.1, 1.15, 2.0
ROUNDING = 1e-4  # of float32, by which the truth itself may be off
TESTS = ("tests/streaming/test_accelerator.py", "tests/streaming/test_fused.py", "tests/devices")
IN_STRIPS, WITHOUT_TRITON = "in strips", "in strips, without Triton"
HEAD = """# On accelerators

Made by `python benchmarks/accelerator.py`, which checks and measures a device; each table is of one run on one device.
Memory is the growth of the device's memory beside the result; the difference is the largest one to float32, of images
between -1 and 1 and of latents. "Seamless VAE" is the way that it chooses by itself, with its planning; where that is
the reference path, planning and checks are what it takes longer. Under a budget maps are in CPU memory, and their way
to the device and back is most of the time.
"""


class Measured(NamedTuple):
    """A row of the table.

    Attributes:
        size: of the images, as it was asked for.
        memory: bytes; None where the device cannot tell.
        budget: bytes; None for no limit.
    """

    direction: str
    size: str
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
        """What the module's function says of this device; None if there is none of that name."""
        ask = getattr(self.module, function, None)
        if ask is None:
            return None
        return ask() if self.device.index is None else ask(self.device)

    def timed(self, run: Callable[[], Tensor]) -> None:
        run()
        self.call("synchronize")

    def growth(self, run: Callable[[], Tensor]) -> tuple[Tensor, int | None]:
        """The result, and how much more memory than it was taken at most."""
        empty_cache(self.device)
        self.call("reset_peak_memory_stats")
        before = allocated_bytes(self.device)
        result = run()
        self.call("synchronize")
        most = self.call("max_memory_allocated")
        return result, None if most is None or before is None else most - before - result.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, help="default: the first accelerator that torch finds")
    parser.add_argument(
        "--sizes", nargs="+", default=["512", "8x512", "1024", "2048", "4096"], help="SIDE or BATCHxSIDE"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--budgets", type=int, nargs="*", default=[1024, 512], help="MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds in which the turns of a size should be done"
    )
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
    rows: list[Measured] = []
    with current(device.device):
        for size in options.sizes:
            for direction in ("decode", "encode"):
                for row in measure(device, direction, size, options):
                    rows.append(row)
                    print(line(row), flush=True)
            write(options.out, section(device, options, rows, passed))
    failures = list(broken(rows))
    if not passed:
        failures.append("a test failed")
    if failures:
        sys.exit("; ".join(failures))


def run_tests() -> bool:
    """Whether the tests of devices pass."""
    several = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *several, *TESTS]
    return subprocess.run(command, cwd=ROOT).returncode == 0


@torch.inference_mode()
def measure(device: Device, direction: str, size: str, options: argparse.Namespace) -> Iterator[Measured]:
    """The rows of one direction and size."""
    config, dtype = CONFIGS[options.config], getattr(torch, options.dtype)
    *batch, side = map(int, size.split("x"))
    x = make_input(config, direction, side, *batch).to(device.device)
    exact = copy.deepcopy(ours(config)).to(device.device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        truth = run_engine(exact, direction, x, TileSpec(size=None)).cpu()
    vae = exact.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = x.to(dtype)
    run, strips = partial(run_engine, vae, direction, half), TileSpec(size=None)
    reference = vae.decode_reference if direction == "decode" else lambda x: vae.encode_reference(x).chunk(2, dim=1)[0]
    runs: dict[str, tuple[int | None, Callable[[], Tensor]]] = {
        PLAIN: (None, partial(reference, half)),
        OURS: (None, run),
        IN_STRIPS: (None, partial(run, strips)),
        WITHOUT_TRITON: (None, partial(without_triton, partial(run, strips))),
    }
    try:
        peer = build(CHANNELS_LAST, config, 0, dtype, device.device)
        runs[CHANNELS_LAST] = (None, partial(peer.run, direction, half))
    except NotAvailableError as error:
        print(f"{CHANNELS_LAST} is left out: {error}")
    for budget in options.budgets:
        runs[f"within {budget} MiB"] = (budget * MIB, partial(run, None, budget * MIB))
    results = {}
    for name, (_, each) in list(runs.items()):
        try:
            results[name] = device.growth(each)
        except Exception as error:
            if not is_out_of_memory(error) and not isinstance(error, MemoryBudgetError):
                raise
            print(f"{direction} {size} {name}: {str(error).partition(chr(10))[0]}")
            del runs[name]
    seconds = in_turns([partial(device.timed, each) for _, each in runs.values()], options.runs, options.limit, 2.0)
    medians = dict(zip(runs, map(statistics.median, seconds), strict=True))
    for name, (budget, _) in runs.items():
        result, memory = results[name]
        speed = medians[PLAIN] / medians[name] if PLAIN in medians else None
        difference = (result.float().cpu() - truth).abs().max().item()
        yield Measured(direction, size, name, medians[name], speed, memory, budget, difference)


def run_engine(
    vae: AutoencoderKL, direction: str, x: Tensor, tiling: TileSpec | None = None, budget: int | None = None
) -> Tensor:
    """The engine's image, or the mean of its posterior."""
    if direction == "decode":
        return vae_core.decode(vae, x, tiling=tiling, memory_budget=budget)
    return vae_core.encode(vae, x, tiling=tiling, memory_budget=budget).mean


def without_triton(run: Callable[[], Tensor]) -> Tensor:
    """The same without Triton's kernels."""
    with patch.object(fused, "_KINDS", ()), patch.dict(os.environ, TRITON_INTERPRET="0"):
        return run()


def broken(rows: list[Measured]) -> Iterator[str]:
    """What is not as it has to be."""
    of = {(row.direction, row.size, row.name): row for row in rows}
    for row in rows:
        what = f"{row.direction} {row.size}"
        if row.budget is not None and row.memory is not None and row.memory > ALLOWED_MEMORY * row.budget:
            yield f"{what}: {row.name} was exceeded"
        for other in (PLAIN, IN_STRIPS) if row.name == OURS else ():
            faster = of.get((row.direction, row.size, other))
            if faster is not None and row.seconds > ALLOWED_TIME * faster.seconds:
                yield f"{what}: {row.seconds / faster.seconds:.2f} times the time of {other}"
        reference = of.get((row.direction, row.size, PLAIN))
        if reference is not None and row.difference > ALLOWED_DIFFERENCE * reference.difference + ROUNDING:
            yield f"{what}: {row.name} differs from float32 by {row.difference:.1e}"


def line(row: Measured) -> str:
    """A row as Markdown."""
    speed = "" if row.speed is None else f"{row.speed:.2f}"
    memory = "unknown" if row.memory is None else f"{row.memory / MIB:.0f} MiB"
    what = f"{row.direction} {row.size} | {row.name}"
    return f"| {what} | {row.seconds:.3f} | {speed} | {memory} | {row.difference:.1e} |"


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
            "| | run | seconds | speed | memory | difference |",
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
