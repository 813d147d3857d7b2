"""Exact encoding and decoding of images of any size: what `vae_core.encode`, `decode` and `plan_*` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..decoder import Decoder
from ..encoder import Encoder
from ..errors import ConfigError, MemoryBudgetError, NonFiniteError, TilingError
from ..posterior import DiagonalGaussianDistribution
from ..tiling.blend import count_tiles, run_blended
from ..tiling.grid import TileSpec
from .executor import Execution, Settings, worker_pool
from .memory import DEFAULT_SHARE, available_bytes
from .mode import plain_kernels
from .plan import Plan, plan_program
from .program import Convolve, Pass, decoder_program, encoder_program, output_size
from .progress import Progress, Report, Watched, is_compiled, program_cost
from .stock import find_change
from .store import MapStore
from .strips import Wrap
from .winograd import drop_scratch

if TYPE_CHECKING:
    from ..autoencoder_kl import AutoencoderKL

logger = logging.getLogger("seamless_vae")

WrapName = Literal["none", "x", "y", "both"]
_WRAPS = {"none": Wrap(), "x": Wrap(x=True), "y": Wrap(y=True), "both": Wrap(x=True, y=True)}
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
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

    def largest_map(self, dtype: torch.dtype) -> int:
        """Bytes of the largest map of the whole batch."""
        height, width = self.shape[2:]
        largest = 0
        for step in self.passes:
            height, width = output_size(step, height, width)
            if isinstance(step, Convolve):
                largest = max(largest, self.shape[0] * height * width * step.conv.out_channels * dtype.itemsize)
        return largest

    @property
    def plain_cost(self) -> int:
        """Arithmetic of the modules as the configuration has them, whatever they were changed to."""
        with torch.device("meta"):
            model = (Encoder if self.encoding else Decoder)(self.vae.config)
        passes = encoder_program(model, None) if isinstance(model, Encoder) else decoder_program(model, None)
        return program_cost(passes, self.shape)

    @property
    def change(self) -> str | None:
        """What someone has changed in the modules that this runs; see `find_change`."""
        vae = self.vae
        modules = (vae.encoder, vae.quant_conv) if self.encoding else (vae.decoder, vae.post_quant_conv)
        return next((change for module in modules if module is not None and (change := find_change(module))), None)

    def plain(self, x: Tensor) -> Tensor:
        """The result of the modules themselves."""
        if self.vae.device.type != "meta":  # where an offloading hook has the weights, it moves what comes in
            x = x.to(self.vae.device, self.vae.dtype)
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
    call_hook: bool = True,
) -> DiagonalGaussianDistribution:
    """Encode images [B, C, H, W] in [-1, 1] without gradients, in strips, with the result of an untiled run.

    Args:
        tiling: None for strips that suit each pass. See TileSpec.
        memory_budget: bytes of working memory beside weights, input and output; what does not fit goes to a
            temporary file. None: a share of what is free.
        progress: called as progress(done, total), in units of arithmetic. What it raises ends the call within a
            strip, and everything is released.
        wrap: axes along which the image continues at its other side, for seamless textures.
        dtype: precision of the arithmetic; None for that of the weights, "auto" for bfloat16 on accelerators that
            are good at it and float32 elsewhere.
        call_hook: let an accelerate hook on the model bring its weights in first.

    Returns:
        The posterior over z [B, latent_channels, H // ratio, W // ratio].

    Raises:
        ShapeError: the image does not fit the model.
        MemoryBudgetError: no way of running fits the budget.
        NonFiniteError: the image holds NaN or infinite values.
    """
    vae.check_image(image)
    if call_hook:
        bring_weights_in(vae)
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
    call_hook: bool = True,
) -> Tensor:
    """Decode raw latents [B, C, h, w] without gradients, in strips, with the result of an untiled run.

    Takes the arguments and raises the errors of `encode`.

    Returns:
        Images [B, out_channels, h * ratio, w * ratio], about [-1, 1] and not clamped.
    """
    vae.check_latent(z)
    if call_hook:
        bring_weights_in(vae)
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
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if torch.autograd.forward_ad._current_level >= 0 or functorch.peek_interpreter_stack() is not None:
        return False
    if vae.dtype != x.dtype or vae.device != x.device or torch.is_autocast_enabled(x.device.type):
        return False
    return _Task(vae, encoding, tuple(x.shape)).change is None  # type: ignore[arg-type]


def is_faster(vae: AutoencoderKL, x: Tensor, encoding: bool) -> bool:
    """Whether enough of the arithmetic would take a kernel with fewer multiplications; for what `may_run`."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    task = _Task(vae, encoding, tuple(x.shape))  # type: ignore[arg-type]
    if task.latent_size[0] * task.latent_size[1] * task.shape[0] < _SMALLEST:
        return False
    return _plan(task, memory_budget=_NO_LIMIT).fast_share > _FAST_SHARE


# Below so many latent positions in a batch, or such a share of arithmetic in fast kernels, plain modules are as fast:
# `benchmarks/kernels.py --models`.
_SMALLEST = 18 * 18
_FAST_SHARE = 0.4
_NO_LIMIT = 2**62


def _plan(
    task: _Task,
    tiling: TileSpec | None = None,
    memory_budget: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Plan:
    device = torch.device(device) if device is not None else task.vae.device
    settings, precision = _settings(device, tiling, memory_budget), _precision(task.vae, dtype, device)
    budget, runs = _budget(memory_budget, device), -(-task.shape[0] // task.items_at_once)
    if tiling is None and _plain_is_best(task, device, precision, budget):
        whole = task.plan(settings, precision, None).times(runs)
        peak = _PLAIN_MAPS * task.largest_map(precision)
        return replace(whole, passes=1, strips=1, pass_costs=(whole.arithmetic,), peak_bytes=peak)
    return task.plan(settings, precision, budget).times(runs)


def _settings(device: torch.device, tiling: TileSpec | None, memory_budget: int | None) -> Settings:
    strip_latents = None if tiling is None else tiling.size
    trim = device.type == "cpu" and memory_budget is not None and memory_budget < _TRIM_BELOW
    return Settings(device, strip_latents=strip_latents, plain_kernels=plain_kernels(), trim=trim)


# Under smaller budgets, what allocators keep between passes is a good part of them.
_TRIM_BELOW = 2**29


def _budget(memory_budget: int | None, device: torch.device) -> int | None:
    if memory_budget is not None:
        if not isinstance(memory_budget, int) or memory_budget <= 0:
            raise MemoryBudgetError(
                f"a memory budget of {memory_budget!r} bytes leaves nothing to work in; "
                f"give a whole number, such as 2**30 for a GiB, or None."
            )
        return memory_budget
    available = available_bytes(device)
    return None if available is None else int(available * DEFAULT_SHARE)


def _precision(vae: AutoencoderKL, dtype: torch.dtype | Literal["auto"] | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return vae.dtype
    if dtype != "auto":
        if dtype not in _PRECISIONS:
            names = ", ".join(map(str, _PRECISIONS))
            raise ConfigError(f"dtype is {dtype!r}; the arithmetic can be in {names}, or 'auto', or None.")
        return dtype
    good = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if good else torch.float32


def bring_weights_in(vae: AutoencoderKL) -> None:
    """Let an accelerate hook on the model do what it would before `forward`: bring offloaded weights in."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


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
    if tiling is not None and not isinstance(tiling, TileSpec):
        raise TilingError(f"tiling is {tiling!r}; give a TileSpec, such as TileSpec(size=64), or None.")
    vae, report = task.vae, Report(progress)
    precision, budget = _precision(vae, dtype, vae.device), _budget(memory_budget, vae.device)
    check_finite(x, "image" if task.encoding else "latent", "the VAE")
    if tiling is not None and tiling.mode == "blended":
        if wrap != "none":
            raise TilingError("blended tiling cannot wrap; use exact tiling for a seamless texture.")
        return _run_tiles(task, x, tiling, report)
    if task.change is not None:
        if wrap != "none":
            raise TilingError(f"this model was changed ({task.change}), so its own modules must run it: unset wrap.")
        logger.warning("this model was changed (%s); it is run whole by its own modules.", task.change)
        return _run_plain(task, x, report)
    if tiling is None and wrap == "none" and _plain_is_best(task, vae.device, precision, budget):
        return _run_plain(task, x, report)

    settings = _settings(vae.device, tiling, memory_budget)
    settings = replace(settings, wrap=_WRAPS[wrap], check_finite=precision == torch.float16)
    try:
        return _run_exact(task, x, settings, precision, budget, report)
    except NonFiniteError as error:
        wider = _precision(vae, "auto", vae.device)
        logger.warning("%s It is now run in %s.", error, str(wider).removeprefix("torch."))
    return _run_exact(task, x, replace(settings, check_finite=False), wider, budget, report).to(precision)


def _run_plain(task: _Task, x: Tensor, report: Report) -> Tensor:
    report.expect(task.plain_cost)
    if report.progress is None or is_compiled(task.vae):
        result = task.plain(x)
    else:
        with Watched(task.vae.device, report) as watched:
            result = task.plain(x)
        watched.finish()
    report.finish()
    return result


def _plain_is_best(task: _Task, device: torch.device, precision: torch.dtype, budget: int | None) -> bool:
    """Whether an accelerator has room for the modules as they are, which for it are the fastest.

    Not in float16, where each pass is looked at for numbers out of range.
    """
    if device.type in ("cpu", "meta") or precision != task.vae.dtype or precision == torch.float16:
        return False
    return budget is None or _PLAIN_MAPS * task.largest_map(precision) <= budget


# The plain modules hold so many of the largest map at once: the block's input, its norm, its activation, and what
# the convolution's kernel needs.
_PLAIN_MAPS = 4


def _run_exact(
    task: _Task, x: Tensor, settings: Settings, dtype: torch.dtype, budget: int | None, report: Report
) -> Tensor:
    passes, items, device = task.passes, task.items_at_once, settings.device
    plan = task.plan(settings, dtype, budget)
    settings = replace(settings, strip_bytes=plan.strip_bytes)
    store = MapStore(device, plan.map_limit, plan.host_limit)
    output = torch.empty(task.output_shape, dtype=dtype, device=device)
    report.expect(plan.arithmetic // items * task.shape[0])
    try:
        with worker_pool() as pool:
            for start in range(0, task.shape[0], items):
                part = slice(start, start + items)
                run = Execution(passes, settings, store, dtype)
                run.run(x[part].to(device, dtype), output[part], task.latent_size[0], pool, report)
    finally:
        store.drop_free()  # an exception's traceback may hold the store
        drop_scratch()
    return output


def _run_tiles(task: _Task, x: Tensor, tiling: TileSpec, report: Report) -> Tensor:
    ratio = task.vae.config.spatial_ratio
    in_unit, out_unit = (ratio, 1) if task.encoding else (1, ratio)
    report.expect(count_tiles(x, tiling, in_unit))

    def run(tile: Tensor) -> Tensor:
        result = task.plain(tile)
        report(1)
        return result

    return run_blended(run, x, tiling, in_unit, out_unit)


def check_finite(x: Tensor, what: str, where: str) -> None:
    """Raise NonFiniteError if x holds NaN or infinite values; `what` it is, and `where` it is looked at, in words."""
    least, most = torch.aminmax(x)  # NaN is both; nothing is made that is as large as the image
    if not (torch.isfinite(least) and torch.isfinite(most)):
        bad = x.numel() - int(torch.isfinite(x).sum())
        raise NonFiniteError(
            f"this {what} already holds {bad} values that are NaN or infinite, of {x.numel()}. "
            f"The fault lies before {where}: look at what made the {what}."
        )
