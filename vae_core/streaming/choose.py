"""Which way a run takes, and which kernel a pass: decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from ..errors import TilingError, check_choice
from . import fused, winograd
from .compiled_winograd import CompiledWinograd
from .devices import is_captured
from .direct import DirectConvolution
from .half import Half
from .internals import is_in_a_mode, is_transformed, multiplies_bfloat16
from .kernel import Kernel
from .maps import FeatureMap, PlannedMap
from .options import Options
from .packed_attention import PackedAttention
from .program import OUTPUT, Attend, Convolve, Pass, Shape, map_shapes
from .stored_attention import StoredAttention
from .torch_winograd import TorchWinograd

# Kernels.

KernelChoice = Literal["auto", "reference", "direct", "winograd"]
_choice: ContextVar[KernelChoice] = ContextVar("seamless_vae_kernels", default="auto")

# The fastest first. The last two are in torch's own operations, and suit every pass of their kind.
KERNELS: tuple[type[Kernel], ...] = (
    CompiledWinograd,
    TorchWinograd,
    PackedAttention,
    DirectConvolution,
    StoredAttention,
)

# Where Winograd is the faster, as `benchmarks/kernels.py` measures it. Below so many FLOPs (of a direct convolution)
# its calls cost more than its multiplications save, in torch's operations sooner than compiled; below so many positions
# of the target for a channel, making its weights does.
_WINOGRAD_FLOPS = 2**29
_WINOGRAD_FLOPS_UNCOMPILED = 2**32
_WINOGRAD_POSITIONS_PER_CHANNEL = 7.0  # for the geometric mean of both sides' channels
_FEW_CHANNELS = 16  # on either side: the transforms are most of the work
_FEW_UNCOMPILED = 256  # the same, for transforms in torch operations
_WINOGRAD_UPSAMPLED = 2**12  # positions after a doubling, where the direct kernel has its own overhead


_LAST_SHARE = 0.25  # of a decoder's convolutions; with four levels, those at the image's size are less


@contextmanager
def kernels(choice: KernelChoice) -> Iterator[None]:
    """Choose the kernels of jobs that are prepared in a `with` block.

    Args:
        choice: "auto", the fastest for each pass; "direct", torch's own convolution and attention alone; "reference",
            the same, and AutoencoderKL's own methods take the reference path, with torch's own rounding; "winograd",
            few multiplications wherever such a kernel can compute a pass, faster or not.

    Raises:
        ConfigError: another choice.
    """
    check_choice("the choice of kernels", choice, get_args(KernelChoice))
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def kernel_choice() -> KernelChoice:
    """What `kernels` has chosen for this thread."""
    return _choice.get()


STORED = (torch.bfloat16,)
"""Precisions that maps on a CPU may be kept in, while passes compute in float32."""


def computing_dtype(maps: torch.dtype, device: torch.device, choice: KernelChoice) -> torch.dtype:
    """The precision to compute in where maps are in another: on a CPU, bfloat16 is a way to store float32.

    Without instructions for it a processor is far slower in bfloat16. The fast kernels compute in float32, and nothing
    is rounded but what is stored; where a processor has such instructions, `pass_dtype` says which passes use them.
    """
    stored = device.type == "cpu" and maps in STORED and choice in ("auto", "winograd")
    return torch.float32 if stored else maps


def pass_dtype(step: Pass, kernel: type[Kernel], dtype: torch.dtype, maps: torch.dtype, last: bool) -> torch.dtype:
    """The precision of what a pass multiplies, where a run computes in `dtype` on maps of another.

    On a processor with instructions for bfloat16 that is the maps' where the whole stays more exact than torch's own
    run in bfloat16: in convolutions of what is stored as it is, where both sides are rounded already; in those of a
    doubled map; in attention, but for its scores and softmax; and by Winograd at the end of a decode, where no depth
    follows. `benchmarks/rounding.py` shows what each costs.

    Args:
        dtype: of the run, `computing_dtype`.
        last: whether the target is of the size that the end of the program has, see `last_positions`.
    """
    if dtype == maps:
        return dtype
    if isinstance(step, Attend):
        rounded = kernel is PackedAttention and winograd.compiled() and winograd.jit().BFLOAT16
    elif kernel is CompiledWinograd:
        rounded = winograd.jit().BFLOAT16 and (step.scale == "up" or last)
    else:
        rounded = kernel is DirectConvolution and _multiplies_as_stored(step, maps)
    return maps if rounded else dtype


def _multiplies_as_stored(step: Convolve, maps: torch.dtype) -> bool:
    """Whether a pass multiplies numbers of the maps' precision as they are, and stores their sum, by instructions."""
    changed = step.norm is not None or step.act is not None or step.residual is not None or step.target == OUTPUT
    return not changed and step.conv.weight.dtype == maps and maps in STORED and multiplies_bfloat16()


def last_positions(passes: Sequence[Pass], shape: Shape) -> int:
    """Positions of the maps at the end of a program for an input [B, C, H, W], where errors count for little; else 0.

    They do where the maps of the end are the largest by three doublings, and a small part of the convolutions is there.
    """
    targets = [(step, target[1] * target[2]) for step, _, target in map_shapes(passes, shape)]
    sizes = [positions for _, positions in targets]
    normed = [positions for step, positions in targets if isinstance(step, Convolve) and step.norm is not None]
    few = normed.count(sizes[-1]) <= _LAST_SHARE * len(normed)
    return sizes[-1] if few and sizes[-1] >= 64 * min(sizes) else 0


def choose_kernel(
    step: Pass,
    source: FeatureMap,
    target: FeatureMap,
    dtype: torch.dtype,
    maps: torch.dtype,
    device: torch.device,
    choice: KernelChoice,
) -> type[Kernel]:
    """The kernel of a pass: the fastest one by its shapes, or what `kernels` has asked for.

    Args:
        dtype, maps: the precision of the run and that of its maps.
    """
    torchs_own = StoredAttention if isinstance(step, Attend) else DirectConvolution
    if choice in ("reference", "direct"):
        return torchs_own
    fastest = next(each for each in KERNELS if each.suits(step, source, dtype, device))
    if isinstance(step, Attend) or choice == "winograd":
        return fastest
    if step.scale == "down" and _multiplies_as_stored(step, maps):  # twice as fast, and there is less to be saved
        return torchs_own
    return fastest if _winograd_wins(step, source.shape[3], target, fastest is CompiledWinograd) else torchs_own


def _winograd_wins(step: Convolve, in_channels: int, target: FeatureMap, is_compiled: bool) -> bool:
    positions = target.shape[:3].numel()
    out_channels = target.shape[3]
    if min(in_channels, out_channels) < (_FEW_CHANNELS if is_compiled else _FEW_UNCOMPILED):
        return False
    if step.scale == "up":
        return positions >= _WINOGRAD_UPSAMPLED
    per_channel = positions / (in_channels * out_channels) ** 0.5
    flops = 2 * step.conv.weight.numel() * positions
    worth = flops >= (_WINOGRAD_FLOPS if is_compiled else _WINOGRAD_FLOPS_UNCOMPILED)
    return worth and per_channel >= _WINOGRAD_POSITIONS_PER_CHANNEL


# Ways.

# Fewer latent pixels at once are too little work for a device to hide what a strip costs a processor: with 64x64 an
# H200 took longer than by the reference path, with 128x128 a third of the time (`benchmarks/accelerator.py`).
_SMALLEST_ON_A_DEVICE = 96 * 96
# Batches run so many latent pixels at a time: enough for the weights' preparation to pay, and to keep a device
# busy: with eight of 64x64 an H200 took 0.93 of the time of the reference path in parts of four, 0.54 in one.
_AT_ONCE = 64 * 64
_AT_ONCE_ON_A_DEVICE = 2 * 128 * 128


class Way(NamedTuple):
    """How a run goes.

    Attributes:
        name: "whole", the reference path on the whole image; "strips", the program, exact; "tiles", the reference path
            on overlapping tiles that are blended.
        reason: why, as the end of a sentence.
        planned: a job runs it as planned; if not, a model's own method runs the modules as its caller's modes have it.
        ignores_budget: a memory budget, if there is one, is not kept.
    """

    name: Literal["whole", "strips", "tiles"]
    reason: str
    planned: bool = True
    ignores_budget: bool = False


class Run(Protocol):
    """A run whose way is to be chosen. What takes time to find out is a method, asked only where it decides.

    Attributes:
        shape: of the whole batch, [B, C, H, W].
        x: the input of a model's own method, which gradients may go through; None for a job.
    """

    half: Half
    shape: Sequence[int]
    options: Options
    x: Tensor | None

    def find_patch(self) -> str | None:
        """What is patched in the model, in words; None for an unmodified one."""
        ...

    def passes(self) -> list[Pass]:
        """The program."""
        ...

    def device(self) -> torch.device: ...

    def dtype(self) -> torch.dtype:
        """Of the computation."""
        ...

    def whole_fits(self) -> bool:
        """Whether the reference path has room within the budget."""
        ...

    def strips_fit(self) -> bool:
        """Whether strips have."""
        ...


def items_at_once(items: int, latent_pixels: int, device: torch.device) -> int:
    """How many of so many items, each of so many latent pixels, run the fastest at once."""
    most = _AT_ONCE if device.type in ("cpu", "meta") else _AT_ONCE_ON_A_DEVICE
    return max(1, min(items, most // latent_pixels))


def choose_way(run: Run) -> Way:
    """The way of a run, be it a job's or that of a model's own method. Nothing else decides it, or any part of it.

    Raises:
        TilingError: circular axes for a patched model.
    """
    options = run.options
    x = run.x
    covered = options.blended and run.half.is_covered(run.shape, options.tile)
    if x is not None and is_watched(x):  # asked first: what finds out the rest may run kernels
        return Way(
            "tiles" if options.blended and not covered else "whole", "the call is being traced or compiled", False
        )
    if covered:
        return Way("whole", "the image is not larger than one blended tile", x is None, True)
    if options.blended:
        return Way("tiles", "you chose blended tiles", x is None, True)
    method = None if x is None else _way_of_a_method(run, x)
    if method is not None:
        return method
    if (patch := run.find_patch()) is not None:
        if options.circular != "none":
            raise TilingError(
                f"this model is patched ({patch}), so its own modules must run it, and they are not circular. "
                f"Choose circular none, or an unmodified model."
            )
        return Way("whole", f"the model is patched ({patch})", x is None, True)
    if x is not None and not _is_asked_for(options):
        if not is_faster(run.passes(), _items(run.shape, options), x.dtype, x.device, kernel_choice()):
            return Way("whole", "strips are not faster for this model and size", False)
        if not run.strips_fit():
            return Way("whole", "too little memory is free for strips", False)
    return _way_of_a_job(run)


def _way_of_a_method(run: Run, x: Tensor) -> Way | None:
    """The reference path of a model's own method where it is known to be the way before the model is looked through."""
    asked = _is_asked_for(run.options)
    if not asked and not may_be_faster(run.half, _items(run.shape, run.options), x.dtype, x.device):
        return Way("whole", "strips are not faster for this precision and size", False)
    if (reason := why_not_strips(run.half, x)) is not None:
        return Way("whole", reason, False, reason != _GRADIENTS)
    return None


def _way_of_a_job(run: Run) -> Way:
    """The way of an unmodified model that may run in strips."""
    options = run.options
    device = run.device()
    dtype = run.dtype()
    if options.tiling is not None:
        return Way("strips", "you chose the size of strips")
    if options.circular != "none":
        return Way("strips", "you chose circular axes")
    if device.type in ("cpu", "meta"):
        return Way("strips", "on a CPU they take the least memory, and mostly the least time")
    if dtype != run.half.dtype:
        return Way("strips", "you chose another precision than that of the weights")
    if dtype == torch.float16:
        return Way("strips", "in float16 every pass is checked for values out of range")
    if strips_lead(_latent_pixels_at_once(run.half, _items(run.shape, options), device), device, dtype):
        return Way("strips", "on this device strips are the fastest way")
    if run.whole_fits():
        return Way("whole", "it fits into the device's memory")
    return Way("strips", "it does not fit into the device's memory whole")


def _is_asked_for(options: Options) -> bool:
    """Whether the caller has chosen what strips alone can do."""
    return options.tiling is not None or options.memory_budget is not None


def _items(shape: Sequence[int], options: Options) -> Shape:
    """[B, C, H, W] of what may run at once."""
    batch, channels, height, width = shape
    return batch if options.max_items is None else min(batch, options.max_items), channels, height, width


def _latent_pixels_at_once(half: Half, shape: Shape, device: torch.device) -> int:
    height, width = half.latent_size(shape)
    return items_at_once(shape[0], height * width, device) * height * width


def is_watched(x: Tensor) -> bool:
    """Whether each operation on x is looked at: by a compiler, a tracer, a mode, a transform, a graph, its kind."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor or x.is_meta:
        return True
    return is_in_a_mode() or is_transformed() or is_captured(x.device)


_GRADIENTS = "gradients are wanted"


def why_not_strips(half: Half, x: Tensor) -> str | None:
    """Why strips may not stand in for the reference path on an input of a model's own method; None where they may.

    A patched model is not looked for here, and `is_watched` is asked before this.
    """
    if kernel_choice() == "reference":
        return "you chose the reference path"
    if torch.is_grad_enabled():
        weights = (weight for module in half.modules.values() for weight in module.parameters())
        if x.requires_grad or any(weight.requires_grad for weight in weights):
            return _GRADIENTS
    if half.dtype != x.dtype or half.device != x.device:
        return "the input differs from the weights in device or precision"
    return "autocasting is at work" if torch.is_autocast_enabled(x.device.type) else None


# Below so many latent pixels or FLOPs in a batch, or such a share of FLOPs in fast kernels, the reference path is as
# fast: `benchmarks/kernels.py --models`.
_SMALLEST = 18 * 18
_SMALLEST_FLOPS = 2**35
_FAST_SHARE = 0.4


def may_be_faster(half: Half, shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it is worth finding out if strips are faster than the reference path, for inputs [B, C, H, W]."""
    if dtype not in (torch.float32, *STORED):
        return False
    if device.type == "cpu":
        height, width = half.latent_size(shape)
        return height * width * shape[0] >= _SMALLEST
    return strips_lead(_latent_pixels_at_once(half, shape, device), device, dtype)


def strips_lead(latent_pixels: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether strips are the fastest way on an accelerator, for so many latent pixels at once."""
    return latent_pixels >= _SMALLEST_ON_A_DEVICE and fused.can_finish(device, dtype)


def is_faster(passes: list[Pass], shape: Shape, dtype: torch.dtype, device: torch.device, choice: KernelChoice) -> bool:
    """Whether an input [B, C, H, W] is enough work, and enough of it for fast kernels, found without planning it."""
    if device.type != "cpu":  # what counts there is known by `may_be_faster`
        return True
    maps = dtype
    dtype = computing_dtype(dtype, device, choice)
    fast = total = 0
    for step, *shapes in map_shapes(passes, shape):
        source, target = map(PlannedMap.whole, shapes)
        flops = target.shape[0] * step.flops(target.shape[1] * target.shape[2])
        total += flops
        fast += flops if choose_kernel(step, source, target, dtype, maps, device, choice).fast else 0
    # For less work it is chosen kernels, and a precision that torch itself is slow in.
    slow = maps != dtype and not multiplies_bfloat16()
    enough = total >= _SMALLEST_FLOPS or choice != "auto" or slow
    return enough and fast > _FAST_SHARE * total
