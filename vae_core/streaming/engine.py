"""Exact encoding and decoding of images of any size: what `vae_core.encode`, `decode` and `plan_*` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import MemoryBudgetError, NonFiniteError, TilingError
from ..posterior import DiagonalGaussianDistribution
from ..tiling.blend import run_blended
from ..tiling.grid import TileSpec
from .convolution import Wrap
from .executor import Execution, Progress, Settings, worker_pool
from .memory import DEFAULT_SHARE, available_bytes
from .mode import plain_kernels
from .plan import Plan, plan_program
from .program import Pass, decoder_program, encoder_program
from .stock import find_change
from .store import MapStore

if TYPE_CHECKING:
    from ..autoencoder_kl import AutoencoderKL

logger = logging.getLogger("seamless_vae")

WrapName = Literal["none", "x", "y", "both"]
_WRAPS = {"none": Wrap(), "x": Wrap(x=True), "y": Wrap(y=True), "both": Wrap(x=True, y=True)}
# Batches are run so many latent positions at a time: enough for the weights' preparation to pay.
_POSITIONS_AT_ONCE = 64 * 64


@dataclass(frozen=True)
class _Task:
    """One direction of one model: a program and the sizes of what goes in and comes out."""

    vae: AutoencoderKL
    encoding: bool
    shape: tuple[int, int, int, int]

    @property
    def passes(self) -> list[Pass]:
        vae = self.vae
        if self.encoding:
            return encoder_program(vae.encoder, vae.quant_conv)
        return decoder_program(vae.decoder, vae.post_quant_conv)

    @property
    def latent_size(self) -> tuple[int, int]:
        ratio = self.vae.config.spatial_ratio if self.encoding else 1
        return self.shape[2] // ratio, self.shape[3] // ratio

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        height, width = self.latent_size
        config = self.vae.config
        if self.encoding:
            return self.shape[0], 2 * config.latent_channels, height, width
        return self.shape[0], config.out_channels, height * config.spatial_ratio, width * config.spatial_ratio

    @property
    def items_at_once(self) -> int:
        height, width = self.latent_size
        return max(1, min(self.shape[0], _POSITIONS_AT_ONCE // (height * width)))

    def plan(self, settings: Settings, dtype: torch.dtype, budget: int | None) -> Plan:
        """The plan of as many items as are run at once."""
        items = self.items_at_once
        shape, output_shape = ((items, *each[1:]) for each in (self.shape, self.output_shape))
        return plan_program(self.passes, settings, shape, output_shape, self.latent_size[0], dtype, budget)  # type: ignore[arg-type]

    def plain(self, x: Tensor) -> Tensor:
        return self.vae.encode_plain(x) if self.encoding else self.vae.decode_plain(x)


def encode(
    vae: AutoencoderKL,
    image: Tensor,
    *,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    progress: Progress | None = None,
    wrap: WrapName = "none",
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> DiagonalGaussianDistribution:
    """Encode images [B, C, H, W] in [-1, 1] without gradients, in strips, with the result of an untiled run.

    Args:
        tiling: None for strips that suit each pass. See TileSpec.
        memory_budget: bytes of working memory beside weights, input and output; what does not fit goes to a
            temporary file. None: a share of what is free.
        progress: called as progress(done, total), in units of arithmetic. What it raises ends the call within a
            strip, and everything is released.
        wrap: axes along which the picture continues at its other side, for seamless textures.
        dtype: precision of the arithmetic; None for that of the weights, "auto" for bfloat16 on accelerators that
            are good at it and float32 elsewhere.

    Returns:
        The posterior over z [B, latent_channels, H // ratio, W // ratio].

    Raises:
        ShapeError: the image does not fit the model.
        MemoryBudgetError: no way of running fits the budget.
        NonFiniteError: the image holds NaN or infinite values.
    """
    vae.check_image(image)
    task = _Task(vae, True, tuple(image.shape))  # type: ignore[arg-type]
    return DiagonalGaussianDistribution(_run(task, image, tiling, memory_budget, progress, wrap, dtype))


def decode(
    vae: AutoencoderKL,
    z: Tensor,
    *,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    progress: Progress | None = None,
    wrap: WrapName = "none",
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Tensor:
    """Decode raw latents [B, C, h, w] without gradients, in strips, with the result of an untiled run.

    Takes the arguments and raises the errors of `encode`.

    Returns:
        Images [B, out_channels, h * ratio, w * ratio], about [-1, 1] and not clamped.
    """
    vae.check_latent(z)
    task = _Task(vae, False, tuple(z.shape))  # type: ignore[arg-type]
    return _run(task, z, tiling, memory_budget, progress, wrap, dtype)


def plan_encode(vae: AutoencoderKL, shape: Sequence[int], **options: Any) -> Plan:
    """What `encode` would do for images of this shape; see `plan_decode`."""
    vae.check_image(torch.empty(tuple(shape), device="meta"))
    return _plan(_Task(vae, True, tuple(shape)), **options)  # type: ignore[arg-type]


def plan_decode(vae: AutoencoderKL, shape: Sequence[int], **options: Any) -> Plan:
    """What `decode` would do for latents of this shape, without doing it.

    Options are `tiling`, `memory_budget`, `device` and `dtype`, as for `decode`; None means as there.
    """
    vae.check_latent(torch.empty(tuple(shape), device="meta"))
    return _plan(_Task(vae, False, tuple(shape)), **options)  # type: ignore[arg-type]


def may_run(vae: AutoencoderKL, x: Tensor, encoding: bool) -> bool:
    """Whether the engine may stand in for the plain modules on this input.

    It may not where gradients, autocasting, tracing or another kind of tensor are at work, where a module has been
    changed, where plain kernels are asked for, or where weights and input differ in device or precision.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or plain_kernels() or type(x) is not Tensor:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in vae.parameters())):
        return False
    if vae.dtype != x.dtype or vae.device != x.device or torch.is_autocast_enabled(x.device.type):
        return False
    return find_change(vae.encoder if encoding else vae.decoder) is None


def is_faster(vae: AutoencoderKL, x: Tensor, encoding: bool) -> bool:
    """Whether most of the arithmetic would take a kernel with fewer multiplications; for an input that `may_run`."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    task = _Task(vae, encoding, tuple(x.shape))  # type: ignore[arg-type]
    if task.latent_size[0] * task.latent_size[1] * task.shape[0] < _SMALLEST:
        return False
    return _plan(task, memory_budget=_NO_LIMIT).fast_share > 0.5


# Below so many latent positions in a batch, plain modules are as fast: `benchmarks/kernels.py`.
_SMALLEST = 16 * 16
_NO_LIMIT = 2**62


def _plan(
    task: _Task,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Plan:
    device = torch.device(device) if device is not None else task.vae.device
    settings = _settings(device, tiling)
    plan = task.plan(settings, _precision(task.vae, dtype, device), _budget(memory_budget, device))
    return plan.times(-(-task.shape[0] // task.items_at_once))


def _settings(device: torch.device, tiling: TileSpec | None) -> Settings:
    return Settings(device, strip_latents=None if tiling is None else tiling.size, plain_kernels=plain_kernels())


def _budget(memory_budget: int | None, device: torch.device) -> int | None:
    if memory_budget is not None:
        if memory_budget <= 0:
            raise MemoryBudgetError(f"a memory budget of {memory_budget} bytes leaves nothing; give more, or None.")
        return memory_budget
    available = available_bytes(device)
    return None if available is None else int(available * DEFAULT_SHARE)


def _precision(vae: AutoencoderKL, dtype: torch.dtype | Literal["auto"] | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return vae.dtype
    if dtype != "auto":
        return dtype
    good = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if good else torch.float32


@torch.no_grad()
def _run(
    task: _Task,
    x: Tensor,
    tiling: TileSpec | None,
    memory_budget: int | None,
    progress: Progress | None,
    wrap: WrapName,
    dtype: torch.dtype | Literal["auto"] | None,
) -> Tensor:
    if wrap not in _WRAPS:
        raise TilingError(f"wrap is {wrap!r}; it is one of {', '.join(_WRAPS)}.")
    _check_finite(x, "image" if task.encoding else "latent")
    change = find_change(task.vae.encoder if task.encoding else task.vae.decoder)
    if tiling is not None and tiling.mode == "blended":
        if wrap != "none":
            raise TilingError("blended tiling cannot wrap; use exact tiling for a seamless texture.")
        return _run_tiles(task, x, tiling, progress)
    if change is not None:
        if wrap != "none":
            raise TilingError(f"this model was changed ({change}), so only its own modules can run it: unset wrap.")
        logger.warning("this model was changed (%s); it is run whole by its own modules.", change)
        result = task.plain(x.to(task.vae.device, task.vae.dtype))
        if progress is not None:
            progress(1, 1)
        return result

    device = task.vae.device
    precision = _precision(task.vae, dtype, device)
    arguments = (task, x, tiling, memory_budget, progress, _WRAPS[wrap])
    if precision != torch.float16:
        return _run_exact(*arguments, precision)
    try:
        return _run_exact(*arguments, precision, check_finite=True)
    except NonFiniteError as error:
        wider = _precision(task.vae, "auto", device)
        logger.warning("%s It is now run in %s.", error, str(wider).removeprefix("torch."))
    return _run_exact(*arguments, wider).to(precision)


def _run_exact(
    task: _Task,
    x: Tensor,
    tiling: TileSpec | None,
    memory_budget: int | None,
    progress: Progress | None,
    wrap: Wrap,
    dtype: torch.dtype,
    check_finite: bool = False,
) -> Tensor:
    device = task.vae.device
    settings = replace(_settings(device, tiling), wrap=wrap, check_finite=check_finite)
    passes, items = task.passes, task.items_at_once
    plan = task.plan(settings, dtype, _budget(memory_budget, device))
    settings = replace(settings, strip_bytes=plan.strip_bytes)
    store = MapStore(device, plan.map_limit)
    output = torch.empty(task.output_shape, dtype=dtype, device=device)
    report = _Report(progress, plan.arithmetic // items * task.shape[0])
    with worker_pool() as pool:
        for start in range(0, task.shape[0], items):
            part = slice(start, start + items)
            run = Execution(passes, settings, store, dtype)
            run.run(x[part].to(device, dtype), output[part], task.latent_size[0], pool, report)
    return output


def _run_tiles(task: _Task, x: Tensor, tiling: TileSpec, progress: Progress | None) -> Tensor:
    ratio = task.vae.config.spatial_ratio
    units = (ratio, 1) if task.encoding else (1, ratio)
    report = _Report(progress, 0)

    def run(tile: Tensor) -> Tensor:
        result = task.plain(tile)
        report(1)
        return result

    return run_blended(run, x.to(task.vae.device, task.vae.dtype), tiling, *units)


@dataclass
class _Report:
    """Adds up the arithmetic done and tells it to the caller."""

    progress: Progress | None
    total: int
    done: int = 0

    def __call__(self, cost: int) -> None:
        self.done += cost
        if self.progress is not None:
            self.progress(self.done, max(self.total, self.done))


def _check_finite(x: Tensor, what: str) -> None:
    bad = x.numel() - int(torch.isfinite(x).sum())
    if bad:
        raise NonFiniteError(
            f"this {what} already holds {bad} values that are NaN or infinite, of {x.numel()}. "
            f"The fault lies before the VAE: look at what made the {what}."
        )
