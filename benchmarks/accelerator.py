"""The engine on an accelerator beside the reference path: time, device memory, exactness. Needs CUDA.

    python benchmarks/accelerator.py [--sizes 1024 2048 4096] [--dtype bfloat16] [--budgets 0 1024 512]

A decoder of SD's size with random weights decodes random latents. For every size: the reference path in channels_last,
then the engine under each budget (in MiB; 0 for none). The columns: medians of seconds in turns, the growth of the
device's memory beside the image, the budget, and the largest difference to the reference path in float32. Ends with
status 1 if a budget is exceeded by more than 15 %, or if the engine without a budget takes more than 1.1 times the
plain time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from engine import in_turns
from peers import CONFIGS, ours
from torch import Tensor

import vae_core

ALLOWED_TIME, ALLOWED_MEMORY = 1.1, 1.15


def timed(run: Callable[[], Tensor]) -> Callable[[], None]:
    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return whole


def growth(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result, and how much more memory than it was taken at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before - result.nbytes


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--budgets", type=int, nargs="+", default=[0, 1024, 512], help="MiB; 0 for none")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is there; this measures one.")
    config, dtype = CONFIGS["full"], getattr(torch, options.dtype)
    reference = ours(config).cuda()
    vae = copy.deepcopy(reference).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    failures = []
    for size in options.sizes:
        side = size // config.downscale_factor
        z = torch.randn(1, config.latent_channels, side, side, device="cuda")
        truth = vae_core.decode(reference, z, memory_budget=4 * 2**30, tiling=vae_core.TileSpec(size=None)).cpu()
        half = z.to(dtype)
        runs: dict[str, tuple[int, Callable[[], Tensor]]] = {"reference path": (0, partial(vae.decode_reference, half))}
        for budget in options.budgets:
            name = f"budget {budget} MiB" if budget else "no budget"
            runs[name] = (budget, partial(vae_core.decode, vae, half, memory_budget=budget * 2**20 or None))
        seconds = {}
        for name, (budget, run) in runs.items():
            try:
                result, grown = growth(run)
            except torch.cuda.OutOfMemoryError:
                print(f"{size} {name}: out of memory")
                continue
            difference = (result.float().cpu() - truth).abs().max().item()
            seconds[name] = statistics.median(in_turns([timed(run)], options.runs, 120.0, short=2.0)[0])
            memory = f"{grown / 2**20:.0f} MiB"
            print(f"{size} {name}: {seconds[name]:.3f} s, {memory}, difference {difference:.1e}", flush=True)
            if budget and grown > ALLOWED_MEMORY * budget * 2**20:
                failures.append(f"{size}: {name} was exceeded")
        plain = seconds.get("reference path")
        if plain and seconds.get("no budget", 0.0) > ALLOWED_TIME * plain:
            failures.append(f"{size}: {seconds['no budget'] / plain:.2f} times the plain time")
    if failures:
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
