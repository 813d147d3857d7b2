"""Which kernel is faster for a pass, by its shapes: what `choose_kernel` and `suits` go by.

    python benchmarks/kernels.py [--channels 16 32 64 128 256 512] [--sides 8 16 32 64 128] [--models]

Passes: each is run whole (weights transformed, all strips, statistics) with `DirectConvolution` and with the one of
`KERNELS` that suits it, in turns, and the median is taken. The table shows how many times faster Winograd is; a
star marks where `choose_kernel` takes it, an exclamation mark where it takes the slower one by more than a tenth.
From these follows the rule: for each number of channels the smallest map where Winograd wins, in positions for every
channel (of the geometric mean of both sides) and in FLOPs, which is what _WINOGRAD_POSITIONS_PER_CHANNEL and
_WINOGRAD_FLOPS are set by (without numba _WINOGRAD_FLOPS_UNCOMPILED).

Models: whole decodes and encodes by the engine and by the reference path, at small sizes, their FLOPs as a power of
two, and what share of them the fast kernels would take: where the engine begins to be the faster is what _SMALLEST,
_SMALLEST_FLOPS and _FAST_SHARE in `choose.py` are set by.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from functools import partial

import torch
from engine import in_turns
from peers import CONFIGS, ours
from torch import nn

import vae_core
from vae_core.streaming.choose import KERNELS, choose_kernel
from vae_core.streaming.direct import DirectConvolution
from vae_core.streaming.kernel import STRIP_BYTES, Kernel, PassInputs
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.options import NO_AXES
from vae_core.streaming.pool import WorkerPool, run_strips
from vae_core.streaming.program import Convolve, Scale
from vae_core.streaming.store import MapStore

CPU = torch.device("cpu")
LIMIT = 60.0  # seconds for a pair


def make_pass(scale: Scale, in_channels: int, out_channels: int, side: int) -> PassInputs:
    """A pass on random numbers whose target is of `side` by `side`: with a norm and a residual, or an upsampling."""
    torch.manual_seed(0)
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    norm, act = (None, None) if scale == "up" else (nn.GroupNorm(1, in_channels), nn.SiLU())
    step = Convolve("source", "target", conv, scale=scale, norm=norm, act=act)
    source_side = side // 2 if scale == "up" else side
    target = FeatureMap.of(torch.zeros(1, side, side, out_channels))
    residual = target if scale == "same" and in_channels == out_channels else None
    if residual is not None:
        step = replace(step, residual="target")
    coefficients = None if norm is None else (torch.ones(1, in_channels), torch.zeros(1, in_channels))
    return PassInputs(
        step=step,
        source=FeatureMap.of(torch.randn(1, source_side, source_side, in_channels)),
        target=target,
        residual=residual,
        dtype=torch.float32,
        map_dtype=torch.float32,
        coefficients=coefficients,
        circular=NO_AXES,
        max_rows=None,
        strip_bytes=STRIP_BYTES,
        device=CPU,
        workers=torch.get_num_threads(),
        store=MapStore(CPU),
    )


def fast_kernel(inputs: PassInputs) -> type[Kernel]:
    return next(each for each in KERNELS if each.suits(inputs.step, inputs.source, inputs.dtype, inputs.device))


@torch.inference_mode()
def compare(inputs: PassInputs, turns: int) -> tuple[float, float]:
    """Median seconds of the direct and of the Winograd kernel."""
    with WorkerPool(inputs.workers) as pool:

        def run(kernel_class: type[Kernel]) -> None:
            kernel = kernel_class(inputs)
            kernel.prepare(kernel.pack())
            kernel.combine(run_strips(kernel, pool, lambda flops: None))
            kernel.close()

        kernels: tuple[type[Kernel], ...] = (DirectConvolution, fast_kernel(inputs))
        for kernel in kernels:
            run(kernel)
        direct, winograd = in_turns([partial(run, kernel) for kernel in kernels], turns, LIMIT, short=0.5)
    return statistics.median(direct), statistics.median(winograd)


def passes(scale: Scale, widths: list[tuple[int, int]], sides: list[int], turns: int) -> None:
    """Print the table of one kind of pass, and the rule that follows."""
    print(f"\n{scale}: times faster than direct\n{'channels':>12}" + "".join(f"{side:>10}" for side in sides))
    rule = []
    for widths_of_pass in widths:
        in_channels, out_channels = widths_of_pass
        line, wins = "", []
        for side in sides:
            inputs = make_pass(scale, in_channels, out_channels, side)
            direct, winograd = compare(inputs, turns)
            chosen = (
                choose_kernel(inputs.step, inputs.source, inputs.target, torch.float32, torch.float32, CPU, "auto")
                is not DirectConvolution
            )
            ratio = direct / winograd
            wrong = ratio < 0.9 if chosen else ratio > 1.1
            line += f"{ratio:8.2f}{'*' if chosen else ' '}{'!' if wrong else ' '}"
            wins.append(ratio >= 1)
        print(f"{in_channels:>5} ->{out_channels:>4}{line}", flush=True)
        # From here on it wins at every size.
        first = next((i for i in range(len(sides)) if all(wins[i:])), None)
        mean = (in_channels * out_channels) ** 0.5
        if first is None:
            rule.append(f"{in_channels} -> {out_channels}: not up to {sides[-1]}x{sides[-1]}")
        else:
            side = sides[first]
            gflops = 18 * in_channels * out_channels * side**2 / 1e9
            rule.append(
                f"{in_channels} -> {out_channels}: from {side}x{side}, {side**2 / mean:.1f} positions a channel and "
                f"{gflops:.1f} GFLOP"
            )
    print("Winograd wins at " + "; ".join(rule) + ".")


@torch.inference_mode()
def models(latent_sides: list[int], turns: int) -> None:
    """Print how many times faster the engine is than the reference path, for whole models."""
    print(
        "\nwhole models: times faster than reference path, share of fast kernels, log2 of FLOPs\n"
        + f"{'latent':>16}"
        + "".join(f"{side:>13}" for side in latent_sides)
    )
    for name in ("full", "narrow"):
        config = CONFIGS[name]
        vae = ours(config)
        for direction in ("decode", "encode"):
            engine = vae_core.decode if direction == "decode" else vae_core.encode
            plain = vae.decode_reference if direction == "decode" else vae.encode_reference
            line = ""
            for side in latent_sides:
                channels, pixels = config.in_channels, side * config.downscale_factor
                x = torch.randn(1, channels, pixels, pixels).clamp(-1, 1)
                if direction == "decode":
                    x = torch.randn(1, config.latent_channels, side, side)
                by_plain, by_engine = in_turns([partial(plain, x), partial(engine, vae, x)], turns, LIMIT, short=2.0)
                plan = vae_core.plan_decode if direction == "decode" else vae_core.plan_encode
                ratio = statistics.median(by_plain) / statistics.median(by_engine)
                planned = plan(vae, x.shape)
                line += f"{ratio:5.2f} {planned.fast_share:4.0%} {math.log2(planned.flops):2.0f}"
            print(f"{name:>9} {direction}{line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", action="store_true", help="whole models too")
    parser.add_argument("--latents", type=int, nargs="+", default=[4, 8, 12, 16, 24, 32, 48, 64])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, torch {torch.__version__}")
    same = [(channels, channels) for channels in options.channels]
    narrowing = [(2 * channels, channels) for channels in options.channels[:-1]]
    passes("same", same + narrowing, options.sides, options.runs)
    passes("same", [(channels, 3) for channels in options.channels if channels >= 32][:3], options.sides, options.runs)
    passes("up", same, options.sides, options.runs)
    if options.models:
        models(options.latents, options.runs)


if __name__ == "__main__":
    main()
