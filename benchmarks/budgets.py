"""A budget on large images, cold and warm, with and without progress, by numbers of threads (Linux only).

    python benchmarks/budgets.py [--size 2048] [--budget 1024] [--threads 1 2 4] [--runs 3] [--log FILE]

A decoder of SD's size, with random weights in float32, decodes a random latent under the budget (in MiB). For each
number of threads two processes: in one the first run is without progress, in the other with; in both what follows
alternates. The first run is cold: nothing was compiled, started or allocated before. The growth of anonymous memory is
sampled from outside; the image, which the budget leaves out, is not counted. A line for each run, and as JSON in the
log. Ends with status 1 if a run grew by more than its plan and 15 % or 64 MiB, whichever is more, or by more than the
budget. A cold run may keep 64 MiB more: compiled code, and threads with heaps of their own, stay for the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from fresh import asked
from peers import CONFIGS, make_input, ours

import vae_core
from vae_core.streaming.memory import give_back_freed

MIB = 2**20
ALLOWED, CHANCE = 1.15, 64  # times the plan; MiB
PLAIN, PROGRESS = "plain", "progress"


class Process:
    """A fresh process that decodes when it is asked to."""

    def __init__(self, config: str, size: int, budget: int, threads: int) -> None:
        command = [sys.executable, __file__, "--child", "--config", config, "--size", str(size)]
        command += ["--budget", str(budget), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.planned = int(self._process.stdout.readline())

    def run(self, kind: str) -> tuple[float, int]:
        """Seconds of a run, and by how many bytes memory grew at most.

        Raises:
            RuntimeError: the process ended.
        """
        asked(self._process, "trim")
        line, grown = asked(self._process, kind)
        if not line:
            raise RuntimeError("the process ended")
        return float(line), grown

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def child(config_name: str, size: int, budget: int) -> None:
    config = CONFIGS[config_name]
    x = make_input(config, "decode", size)
    vae = ours(config)
    print(vae_core.plan_decode(vae, x.shape, memory_budget=budget).peak_bytes, flush=True)
    seen: list[vae_core.Progress] = []
    for line in sys.stdin:
        if line == "trim\n":
            seen.clear()
            gc.collect()
            give_back_freed()  # what was freed before is growth when it is used again
            print(flush=True)
            continue
        progress = seen.append if line == f"{PROGRESS}\n" else None
        start = time.perf_counter()
        with torch.inference_mode():
            vae_core.decode(vae, x, memory_budget=budget, progress=progress)
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--budget", type=int, default=1024, help="MiB")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", type=int, default=3, help="of each process")
    parser.add_argument("--first", choices=[PLAIN, PROGRESS], nargs="+", default=[PLAIN, PROGRESS])
    parser.add_argument("--config", choices=list(CONFIGS), default="full")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(options.threads[0])
        child(options.config, options.size, options.budget * MIB)
        return
    image = 12 * options.size**2
    over = []
    for threads in options.threads:
        for first in options.first:
            process = Process(options.config, options.size, options.budget, threads)
            kinds = [first, PLAIN if first == PROGRESS else PROGRESS]
            for number in range(options.runs):
                seconds, grown = process.run(kinds[number % 2])
                planned, measured = process.planned / MIB, (grown - image) / MIB
                state = "warm" if number else "cold"
                what = f"{options.size}x{options.size}, {threads} threads, {kinds[number % 2]}, {state}"
                print(f"{what}: planned {planned:.0f} MiB, grew by {measured:.0f} MiB ({seconds:.0f} s)", flush=True)
                if options.log:
                    row = {"what": what, "planned": planned, "measured": measured, "seconds": seconds}
                    with options.log.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row) + "\n")
                most = max(planned * ALLOWED, planned + CHANCE) + (0 if number else CHANCE)
                if measured > min(most, options.budget):
                    over.append(what)
            process.end()
    if over:
        sys.exit("over what was planned, or over the budget: " + "; ".join(over))


if __name__ == "__main__":
    main()
