"""What the streaming engine costs, in time and memory, beside diffusers and ComfyUI.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/engine.py [--rows NAME ...] [--runs 3] [--threads 2]
    pip install --no-deps ncnn pnnx openvino openvino-telemetry     # for the rows beside other runtimes

Every row runs all systems in turns, in one process, on the same weights (random, of SD's size) and input, and takes
medians; where it compares systems, errors are differences to the modules in float64. Rows whose name ends in "busy" run
while another process keeps one core busy, those in "thread" on one thread; those beside other runtimes measure peak
memory too, in fresh processes. `sizes` runs each system and size in a fresh process, for time and peak memory. Results
gather in a JSON file (--json), row by row, so that rows may be measured one at a time; the table in docs/benchmarks.md
and the plot docs/images/benchmarks.png are made again from all that is in it. --quick tries everything on a tiny model
and writes to build/ instead. docs/benchmarks.md says what each row means.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from counts import Counts, count
from fresh import measure
from peers import (
    CHANNELS_LAST,
    COMFYUI,
    COMFYUI_TILED,
    CONFIGS,
    DIFFUSERS,
    DIFFUSERS_TILED,
    OURS,
    OURS_BUDGET,
    OURS_TILED,
    PLAIN,
    ROOT,
    NotAvailableError,
    System,
    build,
    comfyui_version,
    make_input,
    ours,
)
from report import OWN, write_plot, write_table
from runtimes import RUNTIMES, MissingError
from torch import Tensor

import vae_core
from vae_core.halves import decoder_half, encoder_half
from vae_core.streaming.job import prepare
from vae_core.threads import torch_threads

PEERS = (DIFFUSERS, CHANNELS_LAST, COMFYUI)
BESIDE_RUNTIMES = (CHANNELS_LAST, *RUNTIMES)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHORT_TURN, SHORT_TOTAL = 2.0, 12.0  # a turn that is shorter is repeated until this long
QUICK = 4  # times smaller images for a trial
SIZES = (256, 512, 1024, 2048)
SWEPT = (OURS, OURS_BUDGET, DIFFUSERS, CHANNELS_LAST, DIFFUSERS_TILED, COMFYUI, COMFYUI_TILED)
MOST_WHOLE = 512  # pixels a side of what the modules compute in float64
GROWTH = 5.0  # times longer a run takes at twice the side, at most, but for attention


@dataclass(frozen=True)
class Row:
    """One comparison: `ours` against others on one input.

    Attributes:
        dtype: precision of all systems.
        busy: another process keeps one core busy meanwhile.
        memory: peak memory is measured too, in fresh processes.
        threads: of all systems; None for as many as the command says.
    """

    name: str
    title: str
    direction: str
    size: int
    ours: str
    others: tuple[str, ...]
    batch: int = 1
    config: str = "full"
    dtype: str = "float32"
    busy: bool = False
    memory: bool = False
    threads: int | None = None


def beside_runtimes(
    direction: str, size: int, dtype: str = "float32", busy: bool = False, threads: int | None = None
) -> Row:
    """A row beside programs that run models of any kind."""
    name = f"{direction}-{size}-runtimes" + (f"-{dtype}" if dtype != "float32" else "")
    title = f"{direction} {size}x{size}, {dtype}"
    if busy:
        name, title = f"{name}-busy", f"{title}, one core busy"
    if threads is not None:
        name, title = f"{name}-{threads}-thread", f"{title}, {threads} thread"
    others = BESIDE_RUNTIMES
    return Row(name, title, direction, size, OURS, others, dtype=dtype, busy=busy, memory=True, threads=threads)


ROWS = (
    Row("decode-512", "decode 512x512", "decode", 512, OURS, PEERS),
    Row("encode-512", "encode 512x512", "encode", 512, OURS, PEERS),
    *(beside_runtimes(direction, 512, dtype) for dtype in DTYPES for direction in ("decode", "encode")),
    *(beside_runtimes(direction, 512, busy=True) for direction in ("decode", "encode")),
    *(beside_runtimes(direction, 512, dtype, threads=1) for dtype in DTYPES for direction in ("decode", "encode")),
    beside_runtimes("decode", 1024),
    Row("tiled-1024", "decode 1024x1024 in tiles", "decode", 1024, OURS_TILED, (DIFFUSERS_TILED, COMFYUI_TILED)),
    Row("exact-1024", "decode 1024x1024 in exact tiles / without tiles", "decode", 1024, OURS_TILED, (OURS,)),
    Row("budget-1024", "decode 1024x1024 under a budget / without", "decode", 1024, OURS_BUDGET, (OURS,)),
    Row("batch", "decode 4 x 256x256", "decode", 256, OURS, (PLAIN, *PEERS), batch=4),
    Row("decode-256", "decode 256x256", "decode", 256, OURS, (PLAIN, *PEERS)),
    Row("encode-256", "encode 256x256", "encode", 256, OURS, (PLAIN, *PEERS)),
    Row("decode-64", "decode 64x64", "decode", 64, OURS, (PLAIN, *PEERS)),
    Row("encode-64", "encode 64x64", "encode", 64, OURS, (PLAIN, *PEERS)),
    Row("narrow-512", "decode 512x512, demo VAE's widths", "decode", 512, OURS, (PLAIN, *PEERS), config="narrow"),
    Row("narrow-256", "decode 256x256, demo VAE's widths", "decode", 256, OURS, (PLAIN, *PEERS), config="narrow"),
    Row("narrow-64", "decode 64x64, demo VAE's widths", "decode", 64, OURS, (PLAIN, *PEERS), config="narrow"),
)


def in_turns(
    runs: Sequence[Callable[[], Any]],
    turns: int,
    limit: float,
    short: float = SHORT_TOTAL,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each run in every turn; each turn starts with another one.

    Short turns are taken until `short` seconds have passed; fewer are taken where they would go over `limit`
    seconds, but at least one.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    begin, turn = clock(), 0
    while True:
        for offset in range(len(runs)):
            index = (turn + offset) % len(runs)
            gc.collect()
            start = clock()
            runs[index]()
            seconds[index].append(clock() - start)
        turn += 1
        spent = clock() - begin
        wanted = turns if spent / turn > SHORT_TURN else max(turns, int(short / (spent / turn)))
        if turn >= wanted or spent + spent / turn > limit:
            return seconds


def available(names: Sequence[str], row: Row, budget: int) -> list[System]:
    """The systems that can be built; what is missing is said."""
    systems = []
    for name in names:
        try:
            systems.append(build(name, CONFIGS[row.config], budget, DTYPES[row.dtype]))
        except NotAvailableError as error:
            print(f"  {name} is left out: {error}")
    return systems


@torch.inference_mode()
def run_row(row: Row, turns: int, limit: float, budget: int, only: Sequence[str]) -> dict[str, Any]:
    """Median seconds of every system, errors against float64, and the largest difference to our result."""
    x = make_input(CONFIGS[row.config], row.direction, row.size, row.batch).to(DTYPES[row.dtype])
    seconds, results = run_in_turns(row, x, turns, limit, budget, only)
    gc.collect()  # the systems, whose room the modules in float64 need
    mine = results[row.ours]
    measured: dict[str, Any] = {}
    if not set(results) <= set(OWN):
        measured["errors"] = errors(row, x, results)
    if row.memory:
        with busy_core() if row.busy else nullcontext():
            measured["bytes"] = peak_memory(row, list(results), budget)
    return measured | {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "turns": len(seconds[row.ours]),
        "difference": {
            name: (mine - result).abs().max().item() for name, result in results.items() if name != row.ours
        },
    }


def run_in_turns(
    row: Row, x: Tensor, turns: int, limit: float, budget: int, only: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of every system in each turn, and its result."""
    others = [name for name in row.others if not only or name in only]
    systems = available((row.ours, *others), row, budget)
    # Large enough that strips run, whose functions are compiled in the first run after each change of theirs.
    warm_up = make_input(CONFIGS[row.config], row.direction, min(row.size, 256), row.batch).to(DTYPES[row.dtype])
    results: dict[str, Tensor] = {}
    for system in list(systems):
        try:
            system.run(row.direction, x if system.make else warm_up)
        except MissingError as error:
            print(f"  {system.name} is left out: {error}")
            systems.remove(system)

    def run(system: System) -> Callable[[], None]:
        return lambda: results.__setitem__(system.name, system.run(row.direction, x))

    with busy_core() if row.busy else nullcontext():
        seconds = in_turns([run(system) for system in systems], turns, limit)
    return {system.name: times for system, times in zip(systems, seconds, strict=True)}, results


def errors(row: Row, x: Tensor, results: dict[str, Tensor]) -> dict[str, list[float]]:
    """Root mean square and largest difference of each result to the modules in float64, with the same weights.

    Of large images, for which these would take more than twenty gigabytes, to the same in strips.
    """
    exact = copy.deepcopy(ours(CONFIGS[row.config], DTYPES[row.dtype])).double()
    half = decoder_half(exact) if row.direction == "decode" else encoder_half(exact)
    if row.size <= MOST_WHOLE:
        wanted = half.reference(x.double())
    else:
        with vae_core.kernels("direct"):
            wanted = prepare(half, x.shape).run(x.double())
    if row.direction == "encode":
        wanted = wanted.chunk(2, dim=1)[0]
    found = {name: result.double() - wanted for name, result in results.items()}
    return {name: [each.square().mean().sqrt().item(), each.abs().max().item()] for name, each in found.items()}


def peak_memory(row: Row, systems: Sequence[str], budget: int) -> dict[str, int]:
    """By how many bytes memory grows at most, of each system in a fresh process; nothing where that cannot be read."""
    if sys.platform != "linux":
        return {}
    found = {}
    for system in systems:
        try:
            run = measure(system, row.config, row.size, direction=row.direction, budget=budget, dtype=row.dtype)
        except RuntimeError as error:
            print(f"  peak memory of {system}: {str(error).strip().splitlines()[-1]}")
            continue
        found[system] = run.bytes
    return found


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process computes on one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def counts_of(cases: Sequence[tuple[str, int, str, int | None]]) -> dict[str, Counts]:
    """What full-size runs compute and move, by direction, side, precision and budget."""
    found = {}
    for direction, size, dtype, budget in cases:
        title = f"{direction} {size}x{size}, {dtype}" + ("" if budget is None else f", budget {budget >> 20} MiB")
        found[title] = count(ours(CONFIGS["full"], DTYPES[dtype]), direction, size, budget)
    return found


def sweep(
    results: dict[str, Any],
    sizes: Sequence[int],
    config: str,
    limit: float,
    budget: int,
    only: Sequence[str],
    save: Callable[[], None],
) -> None:
    """Time and peak memory of each system at each size, into results[system][size]."""
    for system in SWEPT:
        if only and system not in only:
            continue
        points = results.setdefault(system, {})
        for size in sizes:
            before = points.get(str(size // 2))
            if before is not None and before[0] * GROWTH > limit:
                print(f"  {system} {size}: left out, it would take over {limit:.0f} s")
                break
            try:
                measured = measure(system, config, size, budget=budget)
            except RuntimeError as error:
                print(f"  {system} {size}: {str(error).strip().splitlines()[-1]}")
                break
            points[str(size)] = [measured.seconds, measured.bytes]
            print(f"  {system} {size}: {measured.seconds:.2f} s, {measured.bytes / 2**20:.0f} MiB", flush=True)
            save()


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    versions = {"torch": torch.__version__, "Python": platform.python_version()}
    for package in ("diffusers", "numba", "ncnn", "openvino"):
        try:
            versions[package] = __import__(package).__version__
        except ImportError:
            continue
    if (version := comfyui_version()) is not None:
        versions["ComfyUI"] = version
    return {
        "processor": f"{model}, {os.cpu_count()} logical cores ({torch.backends.cpu.get_cpu_capability()})",
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        **versions,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS] + ["sizes"]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="measure these others alone")
    parser.add_argument("--runs", type=int, default=3, help="turns of a row; short ones take more")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a row takes no further turn")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="sides of the images of `sizes`")
    parser.add_argument("--budget", type=int, default=640, help="MiB of the rows under a budget")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=None, help="where results gather")
    parser.add_argument("--quick", action="store_true", help="a tiny model and small images")
    parser.add_argument("--report", action="store_true", help="measure nothing, write table and plot again")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    budget = options.budget * 2**20
    sizes = options.sizes or ((64, 128, 256) if options.quick else SIZES)
    rows = [row for row in ROWS if row.name in options.rows]
    if options.quick:
        rows = [
            replace(row, title=f"{row.title}, a quarter of it", size=row.size // QUICK, config="tiny") for row in rows
        ]
    folder = ROOT / "build" if options.quick else ROOT / "docs"
    file = options.json or folder / "benchmarks.json"
    here = machine() | {"budget": f"{options.budget} MiB"}
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not options.report and results.get("machine", here) != here:
        print(f"{file} was measured in other circumstances; it is begun again")
        results = {}
    results.setdefault("rows", {})
    results.setdefault("sizes", {})
    results["order"] = [row.name for row in ROWS]

    def save() -> None:
        results["machine"] = here
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")

    for row in [] if options.report else rows:
        print(row.title, flush=True)
        with torch_threads(row.threads or options.threads):
            measured = run_row(row, options.runs, options.limit, budget, options.systems)
        for name, seconds in measured["seconds"].items():
            print(f"  {name}: {seconds:.3f} s")
        print(f"  differences: { {name: float(f'{d:.1e}') for name, d in measured['difference'].items()} }")
        results["rows"][row.name] = {"title": row.title, "ours": row.ours, **measured}
        save()
    if "sizes" in options.rows and not options.report:
        print("time and peak memory, each in a fresh process")
        if sys.platform == "linux":
            config = "tiny" if options.quick else "full"
            sweep(results["sizes"], sizes, config, options.limit, budget, options.systems, save)
        else:
            print("  left out: how memory grows is read from /proc, which is Linux's alone")
    if "machine" in results:
        wide, half = "float32", "bfloat16"
        cases = [("decode", 512, wide, None), ("encode", 512, wide, None), ("decode", 512, half, None)]
        cases += [("decode", 1024, wide, None), ("decode", 1024, wide, budget), ("decode", 2048, wide, None)]
        write_table(results, folder / "benchmarks.md", counts_of(cases))
        write_plot(results["sizes"], folder / "images" / "benchmarks.png")
        print(f"written: {folder / 'benchmarks.md'}, {folder / 'images' / 'benchmarks.png'}, {file}")


if __name__ == "__main__":
    main()
