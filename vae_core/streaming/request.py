"""What a job is asked for, and all that planning goes by: it is found out once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from .choose import KernelChoice, items_at_once
from .half import Half
from .memory import DEFAULT_SHARE, available_bytes, offload_bytes
from .options import Options
from .program import Pass, Shape

Found = TypeVar("Found")


@dataclass(frozen=True)
class Request:
    """A run as it is to be planned. Made by `Request.of`, changed by `but`, `patched` and `on_cpu`.

    Attributes:
        shape: of the whole batch, [B, C, H, W].
        device: where it computes.
        available: bytes of the device's memory to count on; None where nothing is known.
        find_offload: says how many bytes of CPU memory there are for what an accelerator has no room for. It is found
            out once, and only where strips are planned, because a dozen files of the system have to be read.
        kernels, workers: which kernels are taken, and threads for strips: as they were when the run was prepared.
        patch: what is patched in the modules, in words; None for unmodified ones.
        passes: of the half's program; of unmodified modules, to count by, where the reference path runs.
        budget_given: whether the caller gave a memory budget; smaller jobs have one of their own in any case.
        found: see `once`. Requests that are made of this one have the same.
    """

    half: Half
    shape: Shape
    options: Options
    device: torch.device
    available: int | None
    find_offload: Callable[[], int]
    kernels: KernelChoice
    workers: int
    patch: str | None
    passes: list[Pass]
    budget_given: bool
    found: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        half: Half,
        shape: Shape,
        options: Options,
        device: torch.device,
        available: int | None,
        kernels: KernelChoice,
        patch: str | None,
        passes: list[Pass] | None = None,
    ) -> Request:
        """With what is there now: free memory, threads, and the program of the modules as they are."""
        if passes is None:
            passes = _passes(half, options, patch)
        if available is None and options.memory_budget is None:
            available = available_bytes(device)
        workers = torch.get_num_threads()
        find_offload = functools.cache(lambda: offload_bytes(device))
        given = options.memory_budget is not None
        return cls(half, shape, options, device, available, find_offload, kernels, workers, patch, passes, given)

    def but(self, **options: Any) -> Request:
        """The same run with other options."""
        return replace(self, options=replace(self.options, **options))

    def patched(self, patch: str | None) -> Request:
        """The same run of modules in another state."""
        return replace(self, patch=patch, passes=_passes(self.half, self.options, patch), found={})

    def once(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """What planning finds out by all that `key` says, so that smaller jobs need not find it out again."""
        if key not in self.found:
            self.found[key] = find()
        return self.found[key]

    def on_cpu(self) -> Request:
        """The same run on the CPU, in the same precision."""
        cpu = torch.device("cpu")
        made = replace(self, device=cpu, available=available_bytes(cpu), find_offload=lambda: 0)
        return made.but(dtype=self.dtype)

    @property
    def offload(self) -> int:
        """Bytes of CPU memory for what an accelerator has no room for."""
        return self.find_offload()

    @property
    def output_shape(self) -> Shape:
        return self.half.output_shape(self.shape)

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.half.latent_size(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of maps, and of the computation but for `choose.computing_dtype`."""
        return self.options.precision(self.half.dtype, self.device)

    @property
    def budget(self) -> int | None:
        """Bytes of working memory: what the options say, or a share of what is free; None where nothing is known."""
        if self.options.memory_budget is not None:
            return self.options.memory_budget
        return None if self.available is None else int(self.available * DEFAULT_SHARE)

    @property
    def can_be_cut(self) -> bool:
        """Whether it runs in strips, or could."""
        return self.patch is None and not self.options.blended

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width in latent pixels of what runs at once: a blended tile, or all."""
        height, width = self.latent_size
        if not self.options.blended:
            return height, width
        return min(height, self.options.tile), min(width, self.options.tile)

    def items(self) -> Iterator[int]:
        """How many of the batch may run at once: first what is fastest, then fewer, to 1."""
        height, width = self.tile
        most = self.shape[0] if self.options.max_items is None else min(self.shape[0], self.options.max_items)
        count = items_at_once(most, height * width, self.device)
        while True:
            yield count
            if count == 1:
                return
            count //= 2

    def carried(self, items: int) -> int:
        """Bytes of input and output of so many items."""
        values = sum(side[1] * side[2] * side[3] for side in (self.shape, self.output_shape))
        height, width = self.latent_size
        tile = self.tile
        return items * (values * tile[0] * tile[1] // (height * width)) * self.dtype.itemsize


def _passes(half: Half, options: Options, patch: str | None) -> list[Pass]:
    return half.program() if patch is None and not options.blended else half.nominal_program()
