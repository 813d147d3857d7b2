"""Encoding and decoding without gradients, exactly, in any amount of memory: `vae_core.encode`, `decode` and more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import MemoryBudgetError
from .halves import HasHalves, decoder_half, encoder_half
from .posterior import DiagonalGaussianDistribution
from .streaming.devices import empty_cache
from .streaming.job import Job, prepare, run_or_smaller
from .streaming.memory import give_back_freed
from .streaming.options import Circular, Options, Precision
from .streaming.plan import Plan
from .streaming.progress import Progress, ProgressCallback, check_progress
from .streaming.shortage import is_out_of_memory
from .streaming.source import Source
from .tiling.grid import TileSpec


def encode(
    vae: HasHalves,
    image: Tensor,
    *,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    progress: ProgressCallback | None = None,
    circular: Circular = "none",
    dtype: Precision = None,
) -> DiagonalGaussianDistribution:
    """Encode images [B, C, H, W] in [-1, 1] without gradients, in strips, with the result of an untiled run.

    Args:
        tiling: None for strips that suit each pass. See TileSpec.
        memory_budget: bytes of working memory beside weights, input and output; what does not fit is offloaded. None:
            a share of what is free.
        progress: called with a Progress. What it raises ends the call within a strip, and everything is released.
            It starts again where memory runs out and strips become smaller.
        circular: axes along which the image continues at its other side, for seamless (tileable) textures: "none", "x",
            "y" or "both".
        dtype: precision of the computation; None for that of the weights, "auto" for bfloat16 on accelerators that
            are good at it and float32 elsewhere.

    Returns:
        The posterior over z [B, latent_channels, H // factor, W // factor].

    Raises:
        ShapeError, ImageError: the image does not fit the model, or is not a tensor of floating-point values.
        TilingError, ConfigError: options that do not exist or do not go together; not a model of this package.
        MemoryBudgetError: no way of running fits the budget, or memory runs out in all of them.
        NonFiniteError: the image has NaN or infinite values.
        DamagedWeightError: a weight of the model has.
    """
    source = Source.of(image, "image")
    bring_weights_in(vae)
    job = prepare(encoder_half(vae), image.shape, Options(tiling, memory_budget, circular, dtype))
    return DiagonalGaussianDistribution(_run(job, source, progress))


def decode(
    vae: HasHalves,
    z: Tensor,
    *,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    progress: ProgressCallback | None = None,
    circular: Circular = "none",
    dtype: Precision = None,
) -> Tensor:
    """Decode raw latents [B, C, h, w] without gradients, in strips, with the result of an untiled run.

    Takes the arguments and raises the errors of `encode`.

    Returns:
        Images [B, out_channels, h * factor, w * factor], about [-1, 1] and not clamped.
    """
    source = Source.of(z, "latent")
    bring_weights_in(vae)
    job = prepare(decoder_half(vae), z.shape, Options(tiling, memory_budget, circular, dtype))
    return _run(job, source, progress)


def _run(job: Job, source: Source, progress: ProgressCallback | None) -> Tensor:
    """Run a job, or one that needs less of its device's memory as often as that runs out. The result is the same.

    What `progress` raises ends it, be it a MemoryError.
    """
    check_progress(progress)
    theirs: list[BaseException] = []

    def report(step: Progress) -> None:
        assert progress is not None
        try:
            progress(step)
        except BaseException as error:
            theirs.append(error)
            raise

    return run_or_smaller(
        job,
        lambda job: job.run_at_once(source, progress=None if progress is None else report),
        lambda _, error: not theirs and is_out_of_memory(error),
        _smaller,
    )


def _smaller(job: Job) -> Job:
    """The next job on the same device, where the weights are."""
    give_back_freed()
    empty_cache(job.device)
    smaller = job.smaller()
    if smaller.device != job.device:
        raise MemoryBudgetError(
            f"Out of memory on {job.device}: smaller strips and offloading were tried. Move the model to the CPU, "
            f"close other programs, or work on a smaller image."
        )
    return smaller


def prepare_encode(
    vae: HasHalves,
    shape: Sequence[int],
    options: Options | None = None,
    *,
    device: torch.device | str | None = None,
    available: int | None = None,
) -> Job:
    """A job that encodes images of a shape to moments [B, 2 * latent_channels, h, w]; see `prepare_decode`."""
    return prepare(encoder_half(vae), shape, options, device, available)


def prepare_decode(
    vae: HasHalves,
    shape: Sequence[int],
    options: Options | None = None,
    *,
    device: torch.device | str | None = None,
    available: int | None = None,
) -> Job:
    """A job that decodes raw latents of a shape [B, C, h, w]: checked, chosen and planned once, to be run.

    The weights are read when it runs, so they may come to their device after this, or into a model that is planned on
    the meta device.

    Args:
        options: None for the defaults.
        device: where it computes; None for where the weights are.
        available: bytes of the device's memory to count on where the options have no budget; None for what is free now.

    Raises:
        ShapeError, TilingError, MemoryBudgetError: as `decode`.
    """
    return prepare(decoder_half(vae), shape, options, device, available)


def plan_encode(
    vae: HasHalves,
    shape: Sequence[int],
    *,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    circular: Circular = "none",
    dtype: Precision = None,
    device: torch.device | str | None = None,
) -> Plan:
    """What `encode` would do for images of this shape, by the same options; see `plan_decode`."""
    return prepare_encode(vae, shape, Options(tiling, memory_budget, circular, dtype), device=device).plan


def plan_decode(
    vae: HasHalves,
    shape: Sequence[int],
    *,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    circular: Circular = "none",
    dtype: Precision = None,
    device: torch.device | str | None = None,
) -> Plan:
    """What `decode` would do for latents of this shape, without doing it: the plan of `prepare_decode`.

    Args:
        device: where it would compute; None for where the weights are. The others are those of `decode`.

    Raises:
        ShapeError, TilingError, ConfigError, MemoryBudgetError: as `decode`.
    """
    return prepare_decode(vae, shape, Options(tiling, memory_budget, circular, dtype), device=device).plan


def bring_weights_in(vae: object) -> None:
    """Let an accelerate hook on the model do what it would before `forward`: bring offloaded weights in."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)
