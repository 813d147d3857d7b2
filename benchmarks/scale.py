"""Where the bottleneck is with 1, 8, 64 and 1000 devices: the measured costs of a CPU and the assumed ones of devices
and of an object store, put into a simulation.

    python benchmarks/scale.py --measure costs.json      the CPU time of reading and of writing on this machine
    python benchmarks/scale.py costs.json --write        docs/scale.md's table and its plot

`--store s3://bucket/folder` reads from an object store instead of a web server of this machine, and measures how long
it takes to its first byte; `--bandwidth` gives what it has for all, which one machine cannot find out.

The simulation is of discrete events. A shard passes through five stages: the object store gives it, a CPU reads and
resizes it, a device encodes it, a CPU writes it, and the object store takes it. CPUs are shared between reading and
writing, the store's bandwidth between giving and taking; what is further on goes first. A stage starts a shard only if
there is room for it before the next, which is the engines' back-pressure. Devices differ from this machine's:
`--encode` gives images per second of one device.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import fsspec
import torch
from dataset import make_photographs

from vae_core import AutoencoderKL
from vae_core.datasets import Buckets, Collection, Settings
from vae_core.datasets.encode import EncodedImage, Shard
from vae_core.datasets.prepare import Prepared, prepare
from vae_core.datasets.transfer import fetch

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, PLOT = ROOT / "docs" / "scale.md", ROOT / "docs" / "images" / "scale.png"
BEGIN, END = "<!-- begin: written by benchmarks/scale.py -->", "<!-- end -->"
DEVICES = (1, 8, 64, 1000)
CPUS_A_DEVICE = (1, 2, 4, 8)
AHEAD = 2  # shards that wait between two stages, for each server of the later one
VARIATION = 0.2  # of the seconds of a shard: images differ
GOLDEN = (5**0.5 - 1) / 2
CPUS, STORE = "CPUs", "object store"


@dataclass(frozen=True)
class Costs:
    """What one image costs, of one size.

    Attributes:
        size: pixels of a side.
        read, resize, write: seconds of one CPU: asking a web server or an object store for a file; hashing, decoding
            and resizing it; packing, hashing and writing latents.
        encode: seconds of one device.
        bytes_in, bytes_out: of the file, and of the latents.
        store: bytes a second that the object store gives and takes, all together.
        latency: seconds from asking the store to its first byte, for each shard.
    """

    size: int
    read: float
    resize: float
    write: float
    encode: float
    bytes_in: float
    bytes_out: float
    store: float = 12.5e9
    latency: float = 0.05


@dataclass(frozen=True)
class Stage:
    """What is done to a shard: by a server of which kind, and in how many seconds."""

    name: str
    server: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a simulation found in its middle, when it neither starts nor ends.

    Attributes:
        images: a second.
        at_work: kind of server -> the share of time that it is at work.
        bottleneck: the busiest kind, and what it does most.
    """

    images: float
    at_work: dict[str, float]
    bottleneck: str


@functools.lru_cache
def simulate(costs: Costs, devices: int, cpus_a_device: int, shard: int = 64) -> Outcome:
    """Run shards through all stages, and look at the middle half of them.

    Args:
        cpus_a_device: CPUs that read and write, for each device.
    """
    streams = min(devices * cpus_a_device, 4096)  # transfers at once, which share the bandwidth
    servers = {STORE: streams, CPUS: devices * cpus_a_device, "devices": devices}
    stages = [
        Stage("reading", STORE, costs.latency + shard * costs.bytes_in / (costs.store / streams)),
        Stage("reading and resizing", CPUS, shard * (costs.read + costs.resize)),
        Stage("encoding", "devices", shard * costs.encode),
        Stage("writing", CPUS, shard * costs.write),
        Stage("writing", STORE, costs.latency + shard * costs.bytes_out / (costs.store / streams)),
    ]
    total = max(400, 12 * max(servers.values()))
    ends = run(stages, servers, total, VARIATION)
    needed = {kind: sum(stage.seconds for stage in stages if stage.server == kind) for kind in servers}
    busiest = max(servers, key=lambda kind: needed[kind] / servers[kind])
    middle = range(total // 4, total * 3 // 4)
    rate = statistics.linear_regression([ends[i] for i in middle], middle).slope  # of shards, which end in groups
    rate = min(rate, servers[busiest] / needed[busiest])  # the line fits within some thousandths
    at_work = {kind: rate * needed[kind] / count for kind, count in servers.items()}
    most = max((stage for stage in stages if stage.server == busiest), key=lambda stage: stage.seconds)
    return Outcome(rate * shard, at_work, f"{busiest}, {most.name}")


def run(stages: list[Stage], servers: dict[str, int], total: int, variation: float = 0.0) -> list[float]:
    """When each of so many shards is through all stages, in order.

    Args:
        variation: by which part the seconds of each shard differ from those of the stage, at most.
    """
    waiting: list[deque[int]] = [deque() for _ in stages]
    waiting[0].extend(range(total))
    free = dict(servers)
    # Before a stage, for the shards that wait and those that the stage before it has at work.
    counts = [servers[stage.server] for stage in stages]
    room = [total, *(AHEAD * after + before for before, after in itertools.pairwise(counts)), total]
    events: list[tuple[float, int, int]] = []
    now, ends = 0.0, []

    def start() -> None:
        """Start whatever can be, from the last stage to the first."""
        for i in range(len(stages) - 1, -1, -1):
            while waiting[i] and free[stages[i].server] and room[i + 1]:
                shard = waiting[i].popleft()
                apart = (shard * GOLDEN + i / len(stages)) % 1  # evenly spread, so that their mean is that of the stage
                heapq.heappush(events, (now + stages[i].seconds * (1 + variation * (2 * apart - 1)), i, shard))
                free[stages[i].server] -= 1
                room[i + 1] -= 1
                room[i] += 1

    start()
    while events:
        now, i, shard = heapq.heappop(events)
        free[stages[i].server] += 1
        ends.append(now) if i == len(stages) - 1 else waiting[i + 1].append(shard)
        # What ends at the same time makes room together.
        if not events or events[0][0] > now:
            before = None
            while before != len(events):
                before = len(events)
                start()
    assert len(ends) == total
    return ends


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on a web server in a process of its own; its address."""
    script = (
        "import http.server; "
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler); "
        "print(server.server_address[1], flush=True); server.serve_forever()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@contextmanager
def stored(folder: Path, url: str) -> Iterator[str]:
    """The files of a folder in an object store, below a folder of their own there, as long as they are needed."""
    system, path = fsspec.core.url_to_fs(url)
    place = f"{path.rstrip('/')}/{uuid.uuid4().hex}"
    for file in folder.iterdir():
        system.pipe_file(f"{place}/{file.name}", file.read_bytes())
    try:
        yield system.unstrip_protocol(place)
    finally:
        system.rm(place, recursive=True)


def first_byte(url: str, times: int = 9) -> float:
    """Seconds from asking for a file of one byte to its end: the median."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        fetch(url, "")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure(size: int, encode: float, count: int = 32, store: str | None = None) -> Costs:
    """The CPU time of this machine's stages, of one thread.

    Args:
        encode: images per second of a device.
        store: the URL of a folder in an object store that can be written to; None for a web server of this machine.

    What is timed is what the engines run: `fetch` and `prepare`, and `Collection.commit`, which packs a shard, takes
    its SHA-256 and writes it and its record.
    """
    torch.set_num_threads(1)
    settings = Settings(Buckets(size, size), shard_images=count)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        photographs = make_photographs(Path(place) / "photos", count, size)
        folder = photographs[0].parent
        (folder / "byte").write_bytes(b"x")
        address = stack.enter_context(served(folder) if store is None else stored(folder, store))
        latency = first_byte(f"{address}/byte")  # and what is imported and connected once
        levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=8, **levels)
        collection = Collection.begin(Path(place) / "out", str(photographs[0].parent), [], settings, vae)
        reads, resizes, writes, size_out = [], [], [], 0
        for turn in range(3):
            began = time.process_time()
            raws = [fetch(f"{address}/{each.name}", each.name) for each in photographs]
            reads.append((time.process_time() - began) / count)
            began = time.process_time()
            prepared = [prepare(raw, i, settings, 3) for i, raw in enumerate(raws)]
            resizes.append((time.process_time() - began) / count)
            shard = Shard(turn, 0, settings, last=True)
            for i, each in enumerate(prepared):
                assert isinstance(each, Prepared)
                shard.done[i] = EncodedImage(each, torch.randn(4, size // 8, size // 8), None)
            began = time.process_time()
            record = collection.commit(shard)
            writes.append((time.process_time() - began) / count)
            size_out = sum(file["bytes"] for file in record["files"])
        bytes_in = sum(each.stat().st_size for each in photographs) / count
    costs = Costs(size, min(reads), min(resizes), min(writes), 1 / encode, bytes_in, size_out / count)
    return costs if store is None else replace(costs, latency=latency)


def table(all_costs: list[Costs]) -> str:
    """The document's table: for each size and number of devices, what the CPUs beside a device make of it."""
    lines = [
        "| pixels | devices | CPUs a device | images/s | device at work | bottleneck | CPUs that one device needs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for costs in all_costs:
        needed = (costs.read + costs.resize + costs.write) / costs.encode
        for devices in DEVICES:
            for cpus in CPUS_A_DEVICE:
                found = simulate(costs, devices, cpus)
                lines.append(
                    f"| {costs.size} | {devices} | {cpus} | {found.images:,.0f} | {found.at_work['devices']:.0%} | "
                    f"{found.bottleneck} | {needed:.1f} |"
                )
    return "\n".join(lines)


def cost_table(all_costs: list[Costs]) -> str:
    """What was measured, and what was assumed."""
    lines = ["| pixels | read | resize | write | encode | file | latents | store |", "| --- " * 8 + "|"]
    for each in all_costs:
        lines.append(
            f"| {each.size} | {each.read * 1e3:.2f} ms of a CPU | {each.resize * 1e3:.2f} ms of a CPU | "
            f"{each.write * 1e3:.2f} ms of a CPU | "
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
            name = f"{cpus} CPU{'s' if cpus > 1 else ''} a device"
            axis.loglog(DEVICES, [simulate(costs, n, cpus).images for n in DEVICES], "o-", label=name)
        axis.loglog(DEVICES, [n / costs.encode for n in DEVICES], "k:", label="devices alone")
        axis.set(title=f"{costs.size} pixels", xlabel="devices", ylabel="images/s")
        axis.set_xticks(DEVICES, map(str, DEVICES))
        axis.minorticks_off()
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
    parser.add_argument("--store", metavar="URL", help="a folder in an object store to measure (default: a web server)")
    parser.add_argument("--bandwidth", type=float, default=12.5, help="GB/s of the store, for all (default: 12.5)")
    parser.add_argument("--write", action="store_true", help="write docs/scale.md's table and plot")
    arguments = parser.parse_args()
    if arguments.measure:
        if not arguments.encode or len(arguments.encode) != len(arguments.sizes):
            parser.error("--measure needs --encode, the images per second of a device for each of --sizes")
        pairs = zip(arguments.sizes, arguments.encode, strict=True)
        measured = [
            asdict(replace(measure(size, encode, store=arguments.store), store=arguments.bandwidth * 1e9))
            for size, encode in pairs
        ]
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
