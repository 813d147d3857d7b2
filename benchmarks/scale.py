"""Where the bottleneck is with 1, 8, 64 and 1000 devices: the measured costs of a CPU and the assumed ones of devices
and of an object store, put into a simulation.

    python benchmarks/scale.py --measure costs.json      the CPU time of reading and of writing on this machine
    python benchmarks/scale.py costs.json --write        docs/scale.md's table and its plot

The simulation is of discrete events. A shard passes through five stages, each with servers that take one shard at a
time: the object store (its bandwidth, shared by all), readers (CPUs), encoders (devices), writers (CPUs), and the store
again. A stage starts a shard only if the next has room for it, which is the engines' back-pressure. Devices differ from
this machine's: `--encode` gives images per second of one device.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from dataset import make_photographs

from vae_core import AutoencoderKL
from vae_core.datasets import Buckets, Collection, Settings
from vae_core.datasets.encode import Encoded, Shard
from vae_core.datasets.prepare import Prepared, prepare
from vae_core.datasets.transfer import fetch

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, PLOT = ROOT / "docs" / "scale.md", ROOT / "docs" / "images" / "scale.png"
BEGIN, END = "<!-- begin: written by benchmarks/scale.py -->", "<!-- end -->"
DEVICES = (1, 8, 64, 1000)
CPUS_A_DEVICE = (1, 2, 4, 8)
AHEAD = 2  # shards that wait between two stages, for each server of the later one


@dataclass(frozen=True)
class Costs:
    """What one image costs, of one size.

    Attributes:
        size: pixels of a side.
        read, write: seconds of one CPU: reading, hashing, decoding and resizing; packing, hashing and writing latents.
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
    """What a simulation found in its middle, when it neither starts nor ends: images per second, the share of time that
    each stage is at work, the busiest stage.
    """

    images: float
    at_work: dict[str, float]

    @property
    def bottleneck(self) -> str:
        return max(self.at_work, key=lambda stage: self.at_work[stage])


def simulate(costs: Costs, devices: int, cpus_a_device: int, shard: int = 64, shards_a_device: int = 24) -> Outcome:
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
    ends, _ = _run(stages, total)
    # Servers of the slowest stage end together: from the beginning of one such group to that of another.
    slowest = max(stages, key=lambda stage: stage[2] / stage[1])[1]
    first, last = (total * part // 4 // slowest * slowest for part in (1, 3))
    rate = (last - first) / (ends[last] - ends[first])  # of shards
    return Outcome(rate * shard, {name: min(1.0, rate * seconds / count) for name, count, seconds in stages})


def _run(stages: list[tuple[str, int, float]], total: int) -> tuple[list[float], list[float]]:
    """(time of each shard's end, in order; seconds at work of each stage). Every server is as fast as the next."""
    waiting: list[deque[int]] = [deque() for _ in stages]
    waiting[0].extend(range(total))
    free = [count for _, count, _ in stages]
    room = [0, *(count * AHEAD for _, count, _ in stages[1:])]
    blocked: list[deque[int]] = [deque() for _ in stages]  # finished, and no room in the next stage
    busy = [0.0] * len(stages)
    events: list[tuple[float, int, int]] = []
    now, ends = 0.0, []

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
            ends.append(now)
            free[i] += 1
        else:
            blocked[i].append(shard)
        settle()
    assert len(ends) == total
    return ends, busy


def measure(size: int, encode: float, count: int = 32) -> Costs:
    """The CPU time of this machine's stages, of one thread; `encode` is images per second of a device.

    What is timed is what the engines run: `fetch` and `prepare`, and `Collection.commit`, which packs a shard, takes
    its SHA-256 and writes it and its record.
    """
    torch.set_num_threads(1)
    settings = Settings(Buckets(size, size), shard_images=count)
    with tempfile.TemporaryDirectory() as place:
        photographs = make_photographs(Path(place) / "photos", count, size)
        levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=8, **levels)
        collection = Collection.begin(Path(place) / "out", str(photographs[0].parent), [], settings, vae)
        reads, writes, size_out = [], [], 0
        for turn in range(3):
            began = time.process_time()
            prepared = [prepare(fetch(str(each), each.name), i, settings, 3) for i, each in enumerate(photographs)]
            reads.append((time.process_time() - began) / count)
            shard = Shard(turn, 0, settings, last=True)
            for i, each in enumerate(prepared):
                assert isinstance(each, Prepared)
                shard.done[i] = Encoded(each, torch.randn(4, size // 8, size // 8), None)
            began = time.process_time()
            record = collection.commit(shard)
            writes.append((time.process_time() - began) / count)
            size_out = sum(file["bytes"] for file in record["files"])
        bytes_in = sum(each.stat().st_size for each in photographs) / count
    return Costs(size, min(reads), min(writes), 1 / encode, bytes_in, size_out / count)


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
