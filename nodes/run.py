"""Encoding and decoding under the host: memory asked for honestly, progress told, and a way on when memory runs out.

When memory runs out, strips become smaller, then maps move to a file, then the CPU takes over. The result is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from .. import vae_core
from ..vae_core import AutoencoderKL, Plan, TileSpec
from ..vae_core.errors import MemoryBudgetError
from ..vae_core.image import to_pil
from ..vae_core.posterior import DiagonalGaussianDistribution
from ..vae_core.preview import latent_colours
from ..vae_core.streaming import Circular
from . import checks, host, latents
from .adopt import Autoencoder
from .watch import Watch

logger = logging.getLogger("seamless_vae")
Result = TypeVar("Result")

CPU = torch.device("cpu")
# So many latent positions of a batch go through at once, as the engine itself groups them.
POSITIONS_AT_ONCE = 64 * 64
NO_LIMIT = 2**62
# Of a device's memory, so much may be asked for.
LARGEST_SHARE = 0.7
SMALL_STRIP = 4  # latent rows


@dataclass(frozen=True)
class Options:
    """How to run; see vae_core.decode. `tiling` counts in positions of raw z."""

    tiling: TileSpec | None = None
    memory_budget: int | None = None
    circular: Circular = "none"


@dataclass(frozen=True)
class _Attempt:
    how: str
    options: Options
    device: torch.device | None = None  # None: where the VAE is meant to run


def decode(vae: Autoencoder, samples: Tensor, options: Options, watch: Watch) -> Tensor:
    """Decode what the LATENT wire carries: [B, H, W, C], about [-1, 1], on the VAE's output device.

    Raises:
        ShapeError: latents of another family.
        NonFiniteError: latents that hold no numbers.
        MemoryBudgetError: an image that the whole memory cannot hold, or memory runs out in every way of running.
    """
    latents.check(vae.model, samples)
    watch.stage(lambda: _latent_preview(samples))
    shape = raw_shape(vae, samples)
    image_size = checked_size(vae, shape)
    checks.check_finite(samples, "latent")

    def run(model: AutoencoderKL, plan: _Planned) -> Tensor:
        image = torch.empty(image_size, dtype=vae.output_dtype, device=vae.output_device)
        for index, part in enumerate(plan.parts):
            z = latents.from_wire(model, samples[part].to(model.device, torch.float32)).to(model.dtype)
            decoded = vae_core.decode(
                model,
                z,
                tiling=plan.options.tiling,
                memory_budget=plan.options.memory_budget,
                circular=plan.options.circular,
                progress=watch.part(index, len(plan.parts)),
            )
            image[part].copy_(decoded.movedim(1, -1))
        return image

    return _with_fallbacks(vae, shape, False, options, watch, run)


def encode(vae: Autoencoder, pixels: Tensor, options: Options, watch: Watch) -> tuple[Tensor, Tensor]:
    """Encode images [B, C, H, W] in [-1, 1]: mean and log-variance as the wire carries them, in float32.

    Raises:
        ShapeError: images that do not fit the VAE.
        NonFiniteError: images that hold no numbers.
        MemoryBudgetError: memory runs out in every way of running.
    """
    vae.model.check_image(pixels)
    checks.check_finite(pixels, "image")
    watch.stage(lambda: _thumbnail(pixels[:1, :3]))

    def run(model: AutoencoderKL, plan: _Planned) -> tuple[Tensor, Tensor]:
        means, logvars = [], []
        for index, part in enumerate(plan.parts):
            posterior = vae_core.encode(
                model,
                pixels[part].to(model.device, model.dtype),
                tiling=plan.options.tiling,
                memory_budget=plan.options.memory_budget,
                circular=plan.options.circular,
                progress=watch.part(index, len(plan.parts)),
            )
            posterior = DiagonalGaussianDistribution(posterior.parameters.float())
            mean, logvar = latents.posterior_to_wire(model, posterior)
            means.append(mean.to(vae.output_device))
            logvars.append(logvar.to(vae.output_device))
        return torch.cat(means), torch.cat(logvars)

    return _with_fallbacks(vae, tuple(pixels.shape), True, options, watch, run)


def checked_size(vae: Autoencoder, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[B, H, W, C] of what raw z of this shape decode to.

    Raises:
        MemoryBudgetError: it is larger than all memory where it would lie.
    """
    size = (shape[0], *(side * vae.config.spatial_ratio for side in shape[2:]), vae.config.out_channels)
    checks.check_room(size, vae.output_dtype, vae.output_device, host.total_memory(vae.output_device))
    return size


@dataclass(frozen=True)
class _Planned:
    options: Options
    parts: list[slice]


def plan(vae: Autoencoder, shape: tuple[int, ...], encoding: bool, options: Options, device: torch.device) -> Plan:
    """What a run of this shape (of images, or of raw z) will do."""
    make = vae_core.plan_encode if encoding else vae_core.plan_decode
    return make(
        vae.model, shape, tiling=options.tiling, memory_budget=options.memory_budget, device=device, dtype=vae.dtype
    )


@dataclass(frozen=True)
class _Forecast:
    """What a run takes on its device: bytes to work in, bytes of its input and output, and its passes' arithmetic."""

    working: int
    carried: int
    pass_costs: tuple[int, ...]

    @property
    def required(self) -> int:
        return self.working + self.carried


def memory_required(vae: Autoencoder, shape: tuple[int, ...], encoding: bool, options: Options) -> int:
    """Bytes on the device that a run wants free: working memory, input and output of as many items as run at once.

    Raises:
        MemoryBudgetError: the options' budget is too small.
    """
    return _forecast(vae, shape, encoding, options).required


def _forecast(vae: Autoencoder, shape: tuple[int, ...], encoding: bool, options: Options) -> _Forecast:
    ratio, config = vae.config.spatial_ratio, vae.config
    tile = options.tiling.size if options.tiling is not None and options.tiling.mode == "blended" else None
    if tile is not None:
        side = tile * (ratio if encoding else 1)
        shape = (1, shape[1], min(shape[2], side), min(shape[3], side))
    items = _items_at_once(shape, ratio if encoding else 1)
    height, width = (side // ratio for side in shape[2:]) if encoding else shape[2:]
    channels = config.in_channels if encoding else config.out_channels
    carried = items * height * width * (channels * ratio**2 + 2 * config.latent_channels) * vae.dtype.itemsize
    limited = replace(options, memory_budget=options.memory_budget or NO_LIMIT)
    planned = plan(vae, (items, *shape[1:]), encoding, limited, vae.device)
    working, total = planned.peak_bytes, host.total_memory(vae.device)
    if total is not None:
        working = max(0, min(working, int(total * LARGEST_SHARE) - carried))
    return _Forecast(working, carried, planned.pass_flops if tile is None else ())


def _budgeted(options: Options, forecast: _Forecast, device: torch.device) -> Options:
    """On an accelerator, what the host has made room for as the budget; it is all that can be counted on there.

    On the CPU, for which a host frees nothing, and where a person gave a budget, the options as they are.
    """
    if options.memory_budget is not None or device.type == "cpu":
        return options
    free = host.free_memory(device)
    room = forecast.working if free is None else min(forecast.working, free - forecast.carried)
    return replace(options, memory_budget=max(1, room))


def _items_at_once(shape: tuple[int, ...], ratio: int) -> int:
    positions = max(1, (shape[2] // ratio) * (shape[3] // ratio))
    return max(1, min(shape[0], POSITIONS_AT_ONCE // positions))


def _with_fallbacks(
    vae: Autoencoder,
    shape: tuple[int, ...],
    encoding: bool,
    options: Options,
    watch: Watch,
    run: Callable[[AutoencoderKL, _Planned], Result],
) -> Result:
    last = ""
    for attempt in _attempts(vae, shape, encoding, options):
        if last:
            logger.warning("Memory ran out %s; now %s. The result is the same.", last, attempt.how)
        try:
            return _attempt(vae, shape, encoding, attempt, watch, run)
        except MemoryBudgetError:
            if options.memory_budget is not None and not last:  # a person's budget: the message says what to give
                raise
        except BaseException as error:
            if not host.is_out_of_memory(error):
                raise
        # Outside of the handlers, whose traceback would hold every tensor of the failed attempt.
        last = attempt.how
        host.soft_empty_cache()
    needed = memory_required(vae, shape, encoding, Options()) / 2**30
    raise MemoryBudgetError(
        f"Out of memory: smaller strips, disk offload and the CPU were all tried; the smallest attempt needed about "
        f"{needed:.2f} GiB. Close other programs, or use a smaller image."
    )


def _attempt(
    vae: Autoencoder,
    shape: tuple[int, ...],
    encoding: bool,
    attempt: _Attempt,
    watch: Watch,
    run: Callable[[AutoencoderKL, _Planned], Result],
) -> Result:
    forecast = _forecast(vae, shape, encoding, attempt.options)
    with vae.loaded(forecast.required, attempt.device) as model, torch.no_grad():
        items = _items_at_once(shape, vae.config.spatial_ratio if encoding else 1)
        parts = [slice(start, start + items) for start in range(0, shape[0], items)]
        watch.expect(forecast.pass_costs, len(parts), model.device)
        return run(model, _Planned(_budgeted(attempt.options, forecast, model.device), parts))


def _attempts(vae: Autoencoder, shape: tuple[int, ...], encoding: bool, options: Options) -> Iterator[_Attempt]:
    yield _Attempt("as planned", options)
    if options.tiling is None or options.tiling.mode == "exact":
        size = None if options.tiling is None else options.tiling.size
        strips = replace(options, tiling=TileSpec(size=min(size or SMALL_STRIP, SMALL_STRIP)))
        yield _Attempt("in smaller strips", strips)
        for budget in _filing_budgets(vae, shape, encoding, strips):
            smaller = replace(strips, memory_budget=budget)
            yield _Attempt(f"with {budget / 2**20:.0f} MiB of working memory and the rest outside of it", smaller)
    if vae.device.type != "cpu":
        yield _Attempt("on the CPU", options, CPU)


def _filing_budgets(vae: Autoencoder, shape: tuple[int, ...], encoding: bool, options: Options) -> list[int]:
    """The largest and the smallest budget below what was planned that keep maps out of the device's memory."""
    shape = (1, *shape[1:])
    planned = plan(vae, shape, encoding, replace(options, memory_budget=NO_LIMIT), vae.device).peak_bytes
    found = []
    for tenths in range(9, 0, -1):
        budget = min(options.memory_budget or planned, planned) * tenths // 10
        try:
            tried = plan(vae, shape, encoding, replace(options, memory_budget=budget), vae.device)
        except MemoryBudgetError:
            break
        if tried.places.cpu or tried.places.disk:
            found.append(budget)
    return [found[0], found[-1]] if len(found) > 1 else found


def raw_shape(vae: Autoencoder, samples: Tensor) -> tuple[int, ...]:
    """The shape of raw z, from what the wire carries."""
    batch, channels, height, width = samples.shape
    if channels == vae.config.latent_channels:
        return batch, channels, height, width
    rows, columns = vae.config.patch_size or (1, 1)
    return batch, vae.config.latent_channels, height * rows, width * columns


def _latent_preview(samples: Tensor) -> Image.Image:
    return to_pil(latent_colours(samples[:1].float()) * 2 - 1)[0].resize(
        _at_least(samples.shape[-1], samples.shape[-2]), Image.Resampling.BICUBIC
    )


def _at_least(width: int, height: int, side: int = 256) -> tuple[int, int]:
    factor = max(1, side // max(width, height))
    return width * factor, height * factor


def _thumbnail(pixels: Tensor) -> Image.Image:
    step = max(1, max(pixels.shape[-2:]) // 512)
    return to_pil(torch.nan_to_num(pixels[..., ::step, ::step].float()))[0].convert("RGB")
