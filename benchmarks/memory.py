"""A large image within a memory budget: that it is kept, and that the result is the one without it (Linux only).

    python benchmarks/memory.py [--size 2048] [--budget 1024] [--allowed 1.15]

A decoder of SD's size, with random weights in float32, decodes a random latent twice on the CPU, each time in a fresh
process: under the budget (in MiB) and without one. The growth of anonymous memory is sampled from outside; input and
output are counted in it, which the budget leaves out. Ends with status 1 if it is more than `allowed` times the
budget, if either run's growth without the image is not what its plan said within 15 %, or if the results differ by
more than 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from fresh import measure
from peers import CONFIGS, OURS, OURS_BUDGET, ours

import vae_core

TOLERANCE = 1e-4
PLAN_TOLERANCE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--budget", type=int, default=1024, help="MiB")
    parser.add_argument("--allowed", type=float, default=1.15)
    parser.add_argument("--config", choices=list(CONFIGS), default="full")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, budget = CONFIGS[options.config], options.budget * 2**20
    side = options.size // config.downscale_factor
    shape = (1, config.latent_channels, side, side)
    plans = [vae_core.plan_decode(ours(config), shape, memory_budget=limit) for limit in (budget, None)]
    ours.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.pt" for name in ("bounded", "unbounded")]
        bounded, unbounded = (
            measure(system, options.config, options.size, budget=budget, save=file)
            for system, file in zip((OURS_BUDGET, OURS), files, strict=True)
        )
        results = [torch.load(file, weights_only=True) for file in files]
    difference = (results[0] - results[1]).abs().max().item()
    output = results[0].numel() * 4
    astray = 0.0
    for name, run, plan in (("budget", bounded, plans[0]), ("no budget", unbounded, plans[1])):
        working = run.bytes - output
        astray = max(astray, abs(working - plan.peak_bytes) / plan.peak_bytes)
        print(
            f"{name:>10}: {run.seconds:.1f} s, memory grew by {run.bytes / 2**20:.0f} MiB; planned "
            f"{plan.peak_bytes / 2**20:.0f} MiB beside the image, and {plan.places.disk / 2**20:.0f} MiB on disk"
        )
    print(f"of which the image itself {output / 2**20:.0f} MiB; largest difference {difference:.1e}")
    if bounded.bytes > options.allowed * budget or difference > TOLERANCE or astray > PLAN_TOLERANCE:
        sys.exit(f"over {options.allowed} times the budget of {options.budget} MiB, or not as planned, or not the same")


if __name__ == "__main__":
    main()
