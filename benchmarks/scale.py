"""Where the bottleneck is with 1, 8, 64 and 1000 devices: measured costs of each stage, put into a simulation.

    python benchmarks/scale.py --measure costs.json      the costs of read, resize and write on this machine
    python benchmarks/scale.py costs.json --write        docs/scale.md's table and its plot

The simulation is of discrete events. A shard passes through five stages, each with servers that take one shard at a
time: the object store (its bandwidth, shared by all), readers (CPUs), encoders (devices), writers (CPUs), and the store
again. A stage starts a shard only if the next has room for it, which is the engines' back-pressure. Devices differ from
this machine's: `--encode` gives images per second of one device.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from dataset import make_photographs

from vae_core.datasets import Buckets, Settings
from vae_core.datasets.encode import Encoded
from vae_core.datasets.prepare import Prepared, prepare
from vae_core.datasets.transfer import Raw
from vae_core.datasets.writing import write_bytes

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, PLOT = ROOT / "docs" / "scale.md", ROOT / "docs" / "images" / "scale.png"
BEGIN, END = "<!-- begin: written by benchmarks/scale.py -->", "<!-- end -->"
DEVICES = (1, 8, 64, 1000)
CPUS_A_DEVICE = (2, 4, 8, 16)
AHEAD = 2  # shards that wait between two stages, for each server of the later one


@dataclass(frozen=True)
class Costs:
    """What one image costs, of one size.

    Attributes:
        size: pixels of a side.
        read, write: seconds of one CPU: reading, decoding and resizing; packing, hashing and writing the latents.
        encode: seconds of one device.
        bytes_in, bytes_out: of the file, and of the latents.
        store: bytes a second that the object store gives and takes, all together.
        latency: seconds from asking the store to its first byte, for each shard.
    """

    size: int
    read: float
    write: float
    encode: float
    bytes_in: float
    bytes_out: float
    store: float = 12.5e9
    latency: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """What a simulation found: images per second, the share of time that each stage is at work, the busiest stage."""

    images: float
    at_work: dict[str, float]

    @property
    def bottleneck(self) -> str:
        return max(self.at_work, key=lambda stage: self.at_work[stage])


def simulate(costs: Costs, devices: int, cpus_a_device: int, shard: int = 64, shards_a_device: int = 12) -> Outcome:
    """Run so many shards through all stages.

    Args:
        cpus_a_device: CPUs that read and write, for each device.
    """
    writers = max(1, round(cpus_a_device * devices * costs.write / (costs.write + costs.read)))
    readers = max(1, cpus_a_device * devices - writers)
    streams = max(1, min(devices * cpus_a_device, 4096))  # transfers at once, which share the bandwidth
    fetch = costs.latency + shard * costs.bytes_in / (costs.store / streams)
    put = costs.latency + shard * costs.bytes_out / (costs.store / streams)
    stages = [
        ("store, reading", streams, fetch),
        ("reading and resizing", readers, shard * costs.read),
        ("encoding", devices, shard * costs.encode),
        ("writing", writers, shard * costs.write),
        ("store, writing", streams, put),
    ]
    total = max(shards_a_device * devices, 4 * max(count for _, count, _ in stages) // 2)
    end, busy = _run(stages, total)
    return Outcome(total * shard / end, {name: busy[i] / (end * count) for i, (name, count, _) in enumerate(stages)})


def _run(stages: list[tuple[str, int, float]], total: int) -> tuple[float, list[float]]:
    """(time of the last shard's end, seconds at work of each stage). Every server is as fast as the next."""
    waiting: list[deque[int]] = [deque() for _ in stages]
    waiting[0].extend(range(total))
    free = [count for _, count, _ in stages]
    room = [0, *(count * AHEAD for _, count, _ in stages[1:])]
    blocked: list[deque[int]] = [deque() for _ in stages]  # finished, and no room in the next stage
    busy = [0.0] * len(stages)
    events: list[tuple[float, int, int]] = []
    now, done = 0.0, 0

    def settle() -> None:
        """Start and pass on whatever can be, from the last stage to the first, until nothing more can."""
        moved = True
        while moved:
            moved = False
            for i in range(len(stages) - 1, -1, -1):
                while blocked[i] and len(waiting[i + 1]) < room[i + 1]:
                    waiting[i + 1].append(blocked[i].popleft())
                    free[i] += 1
                    moved = True
                while waiting[i] and free[i]:
                    heapq.heappush(events, (now + stages[i][2], i, waiting[i].popleft()))
                    busy[i] += stages[i][2]
                    free[i] -= 1
                    moved = True

    settle()
    while events:
        now, i, shard = heapq.heappop(events)
        if i == len(stages) - 1:
            done += 1
            free[i] += 1
        else:
            blocked[i].append(shard)
        settle()
    assert done == total
    return now, busy


def measure(size: int, encode: float, count: int = 32) -> Costs:
    """The costs of this machine's CPU, with one thread; `encode` is images per second of a device."""
    torch.set_num_threads(1)
    settings = Settings(Buckets(size, size))
    with tempfile.TemporaryDirectory() as place:
        photographs = make_photographs(Path(place) / "photos", count, size)
        began = time.perf_counter()
        prepared = [prepare(Raw(str(each), each.read_bytes()), i, settings, 3) for i, each in enumerate(photographs)]
        read = (time.perf_counter() - began) / count
        bytes_in = sum(each.stat().st_size for each in photographs) / count
        images = [each for each in prepared if isinstance(each, Prepared)]
        latents = [Encoded(each, torch.randn(4, size // 8, size // 8), None) for each in images]
        began = time.perf_counter()
        buffer = io.BytesIO()
        np.savez(buffer, **{str(i): each.latents.numpy() for i, each in enumerate(latents)})  # pyright: ignore
        write_bytes(Path(place) / "shard", buffer.getvalue())
        write = (time.perf_counter() - began) / count
    return Costs(size, read, write, 1 / encode, bytes_in, buffer.tell() / count)


def table(all_costs: list[Costs]) -> str:
    """The document's table: for each size and number of devices, what the CPUs beside a device make of it."""
    lines = [
        "| pixels | devices | CPUs a device | images/s | device at work | bottleneck | CPUs that one device needs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for costs in all_costs:
        needed = (costs.read + costs.write) / costs.encode
        for devices in DEVICES:
            for cpus in CPUS_A_DEVICE:
                found = simulate(costs, devices, cpus)
                lines.append(
                    f"| {costs.size} | {devices} | {cpus} | {found.images:,.0f} | {found.at_work['encoding']:.0%} | "
                    f"{found.bottleneck} | {needed:.1f} |"
                )
    return "\n".join(lines)


def cost_table(all_costs: list[Costs]) -> str:
    """What was measured, and what was assumed."""
    lines = ["| pixels | read and resize | write | encode | file | latents | store |", "| --- " * 7 + "|"]
    for each in all_costs:
        lines.append(
            f"| {each.size} | {each.read * 1e3:.2f} ms of a CPU | {each.write * 1e3:.2f} ms of a CPU | "
            f"{each.encode * 1e3:.2f} ms of a device | {each.bytes_in / 1e3:.0f} kB | {each.bytes_out / 1e3:.0f} kB | "
            f"{each.store / 1e9:.1f} GB/s, {each.latency * 1e3:.0f} ms |"
        )
    return "\n".join(lines)


def plot(all_costs: list[Costs], place: Path) -> None:
    """Images per second over devices, one line for each number of CPUs beside a device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(all_costs), figsize=(5 * len(all_costs), 4), squeeze=False)
    for axis, costs in zip(axes[0], all_costs, strict=True):
        for cpus in CPUS_A_DEVICE:
            axis.loglog(
                DEVICES, [simulate(costs, n, cpus).images for n in DEVICES], "o-", label=f"{cpus} CPUs a device"
            )
        axis.loglog(DEVICES, [n / costs.encode for n in DEVICES], "k:", label="devices alone")
        axis.set(title=f"{costs.size} pixels", xlabel="devices", ylabel="images/s")
        axis.legend()
    figure.tight_layout()
    figure.savefig(place, dpi=100)


def write_document(all_costs: list[Costs]) -> None:
    """Put the tables into the document, between its marks, and the plot beside it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = f"{BEGIN}\n{cost_table(all_costs)}\n\n{table(all_costs)}\n{END}"
    DOCUMENT.write_text(before + body + after, encoding="utf-8")
    plot(all_costs, PLOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path, nargs="?", help="a file that --measure wrote")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure this machine and write the costs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--encode", type=float, nargs="+", help="images per second of a device, for each size")
    parser.add_argument("--write", action="store_true", help="write docs/scale.md's table and plot")
    arguments = parser.parse_args()
    if arguments.measure:
        if not arguments.encode or len(arguments.encode) != len(arguments.sizes):
            parser.error("--measure needs --encode, the images per second of a device for each of --sizes")
        pairs = zip(arguments.sizes, arguments.encode, strict=True)
        measured = [asdict(measure(size, encode)) for size, encode in pairs]
        arguments.measure.write_text(json.dumps(measured, indent=1) + "\n")
        return 0
    if not arguments.costs:
        parser.error("give a file of costs, or --measure")
    all_costs = [Costs(**each) for each in json.loads(arguments.costs.read_text())]
    if arguments.write:
        write_document(all_costs)
    else:
        print(cost_table(all_costs), table(all_costs), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
