"""Runs a program: allocates maps, runs each pass strip by strip, and releases what no later pass reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DamagedWeightError, NonFiniteError
from . import pages
from .choose import KernelChoice, choose_kernel, last_positions, pass_dtype
from .executed import PassRecord
from .kernel import ACCELERATOR_STRIP_BYTES, STRIP_BYTES, Each, Kernel, Layout, PassInputs
from .maps import FeatureMap, PlannedMap
from .memory import give_back_freed, trim_heap
from .options import NO_AXES, Axes
from .pool import WorkerPool, run_each, run_strips
from .program import INPUT, OUTPUT, Attend, Convolve, Pass
from .progress import Report
from .scratch import Spare
from .stats import Stats, StripStats, all_finite
from .store import Store

_TRIMMED = 96 * 2**20  # bytes of a run; in smaller ones the C library keeps little, and giving it back takes its time
_UNSEEN_STRIPS = 8  # of a pass; the time of so few is not worth an error at once


@dataclass(frozen=True)
class PlannedPass:
    """One pass as it was planned: which kernel computes it, in which strips, and the memory of it by what it is for."""

    kernel: type[Kernel]
    layout: Layout
    terms: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Manner:
    """How a program is run, in all of its parts.

    Attributes:
        device: where it computes; maps are where the store puts them.
        dtype: precision of the computation.
        map_dtype: precision of the maps.
        workers: threads for strips.
        kernels: which are chosen; see `choose.kernels`.
        circular: axes along which the image continues at its other side.
        strip_latents: most rows of latent pixels in a strip; None for what suits each pass.
        strip_bytes: size of a strip where the kernel leaves it open; 0 for what suits the device.
        trim: give freed memory back to the system after every pass, which costs some percent of the time.
        keep: keep memory for the next run, as long as the system does not need it; see `pages.KeptPages`.
    """

    device: torch.device
    dtype: torch.dtype
    map_dtype: torch.dtype
    workers: int
    kernels: KernelChoice = "auto"
    circular: Axes = NO_AXES
    strip_latents: int | None = None
    strip_bytes: int = 0
    trim: bool = False
    keep: bool = False

    @property
    def bytes_per_strip(self) -> int:
        """`strip_bytes`, or what suits the device: a CPU's cache, an accelerator's need of much to do at once."""
        return self.strip_bytes or (STRIP_BYTES if self.device.type == "cpu" else ACCELERATOR_STRIP_BYTES)


@dataclass
class PackedWeights:
    """Packed weights by the number and the kernel of their pass, for the next part of a batch.

    Attributes:
        limit: bytes that may be kept.
        spare: memory for those that are not.
    """

    limit: int = 0
    used: int = 0
    kept: dict[tuple[int, type], Any] = field(default_factory=dict)
    spare: Spare = field(default_factory=Spare)

    def of(self, index: int, kernel: Kernel, each: Each) -> Any:
        """What the kernel of pass `index` packs, or has packed before."""
        key = index, type(kernel)
        if key in self.kept:
            return self.kept[key]
        size = kernel.packed_bytes()
        if self.used + size <= self.limit:
            self.kept[key] = kernel.pack(each)
            self.used += size
            return self.kept[key]
        packed = kernel.pack(each, self.spare.take)
        self.spare.give_back_untaken()
        return packed


class Execution:
    """A program at work on one part of a batch: its maps, and the statistics of what was written.

    Args:
        planned: the kernels and layouts of the passes; None to choose and lay out now, as planning does.
        like: those of a part of more items, whose layouts are taken over where that changes nothing.
        find_damage: names a weight that is not finite, if there is one; asked where a pass has made such values.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        manner: Manner,
        store: Store,
        planned: Sequence[PlannedPass] | None = None,
        like: Sequence[PlannedPass] | None = None,
        find_damage: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.passes = passes
        self.manner = manner
        self.store = store
        self.planned = planned
        self.like = like
        self.find_damage = find_damage
        self.maps: dict[str, FeatureMap] = {}
        self._last = 0  # positions, see `last_positions`
        self._owned: dict[str, FeatureMap] = {}  # what the store lent, by the map that it is used for now
        self.stats: dict[str, Stats] = {}

    def run(
        self,
        part: Tensor,
        output: Tensor,
        latent_rows: int,
        pool: WorkerPool | None,
        report: Report,
        weights: PackedWeights,
    ) -> None:
        """Fill `output` [B, K, H', W'] from `part` [B, C, H, W], both of any strides, precision and place.

        What they are not is made strip by strip: a copy of either would grow with the image.

        Args:
            latent_rows: height in latent pixels, by which strips are measured.
            pool: of threads for strips.
            report: what it raises ends the run within a strip.

        Raises:
            DamagedWeightError: a weight is not finite.
            NonFiniteError: a value went out of range, or the statistics of a norm.
        """
        source, target = (FeatureMap.of(each.permute(0, 2, 3, 1)) for each in (part, output))
        needed = [0] * len(self.passes)
        if self.planned is not None:
            needed = [sum(each.terms.values()) for each in self.planned]
        written: list[tuple[int, Pass, Stats]] = []  # and not checked yet
        for index, step, kernel in self.kernels(source, target, latent_rows):
            report.begin_pass()
            each = functools.partial(run_each, pool)
            # What this pass needs less than the largest, and less what libraries take that no plan knows of.
            left = max(needed) // 16 * 15 - needed[index] - self.store.idle
            pages.kept.shrink(left)
            kernel.prepare(weights.of(index, kernel, each), each)
            pages.kept.shrink(left)  # with what passes before had
            parts = run_strips(kernel, pool, report, self.manner.trim)
            held = {"maps": self.store.used["device"], **kernel.held()}
            report.executed.records.append(PassRecord(len(parts), held))
            stats = kernel.combine(parts)
            self.stats[step.target] = stats
            written.append((index, step, stats))
            # To look at values that are on a device is to wait for it: after few strips that is left for later.
            if stats.on_cpu or len(kernel.layout) > _UNSEEN_STRIPS:
                self._check(written)
            by_torch = not kernel.parallel
            del kernel  # and with it maps that are not needed any more, before the next pass's are made
            if self.manner.trim:
                give_back_freed()
            elif by_torch and self.manner.device.type == "cpu" and max(needed) >= _TRIMMED:
                trim_heap()  # of what torch's operations have freed, which is in no plan of a later pass
        self._check(written)

    def _check(self, written: list[tuple[int, Pass, Stats]]) -> None:
        """Raise for the first pass whose values went out of range, and forget the passes that are looked at here."""
        finite = all_finite([stats for _, _, stats in written])
        for (index, step, stats), fine in zip(written, finite, strict=True):
            if not fine:
                self._not_finite(index, step, stats)
        written.clear()

    def _not_finite(self, index: int, step: Pass, stats: Stats) -> None:
        """Raise for what makes every later value wrong: where only squares leave the range, a norm that needs them."""
        damaged = self.find_damage()
        self.find_damage = lambda: None  # looked for once
        if damaged is not None:
            raise DamagedWeightError(damaged_message(damaged))
        normalised = any(each.source == step.target and each.norm is not None for each in self.passes[index + 1 :])
        if normalised or not bool(torch.isfinite(stats.mean).all()):
            raise NonFiniteError(_overflow_message(index, len(self.passes), self.manner.map_dtype))

    def kernels(
        self, source: FeatureMap, target: FeatureMap, latent_rows: int
    ) -> Generator[tuple[int, Pass, Kernel], None, None]:
        """Each pass with its number and its kernel, its maps allocated; maps that no later pass reads are released
        after it. (`enumerate` would keep the last kernel, and its maps, until the next one is made.)

        With planned maps and a planned store this is a dry run that computes nothing.
        """
        self.maps = {INPUT: source, OUTPUT: target}
        if self.manner.dtype != self.manner.map_dtype:
            batch, height, width, channels = source.shape
            self._last = last_positions(self.passes, (batch, channels, height, width))
        last_use = {name: index for index, step in enumerate(self.passes) for name in step.reads}
        try:
            for index, step in enumerate(self.passes):
                self._allocate_target(step)
                kernel = self._kernel(index, step, latent_rows)
                try:
                    yield index, step, kernel
                finally:
                    kernel.close()
                    del kernel
                for name in [name for name, last in last_use.items() if last == index]:
                    self._release(name)
        finally:
            for name in list(self.maps):
                self._release(name)

    def _allocate_target(self, step: Pass) -> None:
        if step.target in self.maps:  # in place, or the output
            return
        batch, height, width, channels = self.maps[step.source].shape
        shape = step.target_shape((batch, height, width, channels))
        if isinstance(step, Convolve) and step.reuses is not None and step.reuses in self._owned:
            self._owned[step.target] = self._owned.pop(step.reuses)
            self.maps[step.target] = self.maps[step.reuses].narrowed(shape[3])
            return
        owned = self.store.allocate(shape, self.manner.map_dtype)
        self.maps[step.target] = self._owned[step.target] = owned

    def _release(self, name: str) -> None:
        self.maps.pop(name, None)
        self.stats.pop(name, None)
        owned = self._owned.pop(name, None)
        if owned is not None:
            self.store.release(owned)

    def _coefficients(self, step: Pass) -> tuple[Tensor, Tensor] | None:
        """A GroupNorm of the source as scale and shift [B, C]; None for others and in a dry run."""
        if not isinstance(step.norm, nn.GroupNorm) or isinstance(self.maps[step.source], PlannedMap):
            return None
        if step.source not in self.stats:  # the input, which no pass has written
            self.stats[step.source] = StripStats.of(self.maps[step.source].bands[0]).finished()
        return self.stats[step.source].affine(step.norm)

    def _kernel(self, index: int, step: Pass, latent_rows: int) -> Kernel:
        source = self.maps[step.source]
        target = self.maps[step.target]
        manner = self.manner
        chosen, layout = self._chosen(index, step)
        last = target.shape[1:3].numel() == self._last
        max_rows = manner.strip_latents
        if max_rows is not None:
            max_rows = max(1, max_rows * target.shape[1] // latent_rows)
        residual = None if isinstance(step, Attend) or step.residual is None else self.maps[step.residual]
        inputs = PassInputs(
            step=step,
            source=source,
            target=target,
            residual=residual,
            dtype=pass_dtype(step, chosen, manner.dtype, manner.map_dtype, last),
            map_dtype=manner.map_dtype,
            coefficients=self._coefficients(step),
            circular=manner.circular,
            max_rows=max_rows,
            strip_bytes=manner.bytes_per_strip,
            device=manner.device,
            workers=manner.workers,
            store=self.store,
            layout=layout,
        )
        return chosen(inputs)

    def _chosen(self, index: int, step: Pass) -> tuple[type[Kernel], Layout | None]:
        """The kernel of a pass, and its layout if that is known."""
        if self.planned is not None:
            return self.planned[index].kernel, self.planned[index].layout
        source = self.maps[step.source]
        target = self.maps[step.target]
        manner = self.manner
        chosen = choose_kernel(step, source, target, manner.dtype, manner.map_dtype, manner.device, manner.kernels)
        if self.like is None or self.like[index].kernel is not chosen or chosen.whole_batch:
            return chosen, None
        return chosen, self.like[index].layout.clipped(target.shape[0])


def damaged_message(weight: str) -> str:
    """The sentence for a weight that is not finite."""
    return (
        f"{weight} has values that are NaN or infinite, so the result would be, too: the VAE's file is damaged, or was "
        f"made by a training that diverged. Get the file again, or use another one."
    )


def _overflow_message(index: int, passes: int, dtype: torch.dtype) -> str:
    remedy = "Look at what made the input, whose values are far too large, or run this model in float64."
    if dtype == torch.float16:
        remedy = "Run this model in bfloat16 or float32."
    name = str(dtype).removeprefix("torch.")
    return f"values, or their squares, went out of the range of {name} in pass {index + 1} of {passes}. {remedy}"
