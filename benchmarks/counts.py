"""What a run computes and moves, counted from its plan: figures that no machine changes.

Plans depend on threads, on memory and on whether numba is there: these are of two threads, of memory without end where
there is no budget, and with numba.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vae_core import AutoencoderKL, Options, prepare_decode, prepare_encode
from vae_core.streaming import winograd
from vae_core.streaming.program import OUTPUT, Attend, Convolve, map_shapes
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
    sizes: dict[str, tuple[int, ...]] = {}
    multiplications = moved = 0
    passes = map_shapes(request.passes, request.shape)
    for (step, source, target), planned in zip(passes, run.planned.planned, strict=True):
        sizes[step.source], sizes[step.target] = source, target
        _, height, width, out_channels = target
        flops = step.flops(height * width)
        if isinstance(step, Convolve) and issubclass(planned.kernel, Winograd):
            plain = height * width * step.conv.weight.numel()
            tiles = -(-height // TILE) * -(-width // TILE)
            products = tiles * GROUPS[step.scale] * source[3] * out_channels
            multiplications += flops // 2 - plain + products  # a shortcut is as it is
        else:
            multiplications += flops // 2
        read = [step.source, *([] if isinstance(step, Attend) or step.residual is None else [step.residual])]
        for name in (*read, step.target):
            moved += math.prod(sizes[name]) * (4 if name == OUTPUT else request.dtype.itemsize)
    return Counts(plan.flops // 2, multiplications, moved, plan.places.disk, plan.peak_bytes)
