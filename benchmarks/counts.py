"""What a run computes and moves, counted from its plan: figures that no machine changes.

Plans depend on threads, on memory and on whether numba is there: these are of two threads, of memory without end where
there is no budget, and with numba.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vae_core import AutoencoderKL, Options, prepare_decode, prepare_encode
from vae_core.streaming import winograd
from vae_core.streaming.program import INPUT, OUTPUT, Attend, Convolve
from vae_core.streaming.strips import Strips
from vae_core.streaming.winograd import GROUPS, TILE, Winograd
from vae_core.threads import torch_threads

THREADS, UNLIMITED = 2, 2**50


@dataclass(frozen=True)
class Counts:
    """Of one run.

    Attributes:
        plain: multiplications of a run with plain convolutions.
        multiplications: of this run's products; transforms and norms are left out.
        moved: bytes of feature maps that passes read and write.
        spilled: most bytes of feature maps on disk at once.
        peak: bytes of working memory at most.
    """

    plain: int
    multiplications: int
    moved: int
    spilled: int
    peak: int


def count(vae: AutoencoderKL, direction: str, size: int, budget: int | None = None) -> Counts:
    """Of encoding or decoding one image of `size` by `size` pixels.

    Raises:
        ValueError: it would not run in strips, or numba is not there.
    """
    if not winograd.compiled():
        raise ValueError("numba is not installed, and these are figures of the kernels that it compiles")
    config, options = vae.config, Options(memory_budget=budget)
    with torch_threads(THREADS):
        if direction == "encode":
            job = prepare_encode(vae, (1, config.in_channels, size, size), options, available=UNLIMITED)
        else:
            side = size // config.downscale_factor
            job = prepare_decode(vae, (1, config.latent_channels, side, side), options, available=UNLIMITED)
    run = job._planned
    if not isinstance(run, Strips):
        raise ValueError(f"this runs {job.way.name}: {job.way.reason}")
    request, plan = run.request, run.plan
    sizes = {INPUT: (request.shape[2], request.shape[3], request.shape[1])}
    multiplications = moved = 0
    for step, planned in zip(request.passes, run.planned.planned, strict=True):
        height, width, channels = sizes[step.source]
        places = step.output_size(height, width)
        out_channels = step.conv.out_channels if isinstance(step, Convolve) else channels
        sizes[step.target] = (*places, out_channels)
        flops = step.flops(places[0] * places[1])
        if isinstance(step, Convolve) and issubclass(planned.kernel, Winograd):
            plain = places[0] * places[1] * step.conv.weight.numel()
            tiles = -(-places[0] // TILE) * -(-places[1] // TILE)
            products = tiles * GROUPS[step.scale] * channels * out_channels
            multiplications += flops // 2 - plain + products  # a shortcut is as it is
        else:
            multiplications += flops // 2
        read = [step.source, *([] if isinstance(step, Attend) or step.residual is None else [step.residual])]
        for name in (*read, step.target):
            values = sizes[name][0] * sizes[name][1] * sizes[name][2]
            moved += values * (4 if name == OUTPUT else request.dtype.itemsize)
    return Counts(plan.flops // 2, multiplications, moved, plan.places.disk, plan.peak_bytes)
