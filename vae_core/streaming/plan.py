"""What a run will do, told beforehand: passes, strips, where maps lie, peak memory, arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ..errors import MemoryBudgetError
from .executor import Execution, Settings
from .memory import DEFAULT_SHARE, available_bytes
from .program import Pass
from .store import MapStore

_SMALLEST_STRIP = 2**18  # bytes
# Memory that allocators keep between uses, as `benchmarks/memory.py` measures it: a quarter of what is planned up to
# a limit in bytes, and a share. It is less where passes give back what they have freed.
_KEPT_LIMIT, _KEPT_SHARE = 16 * 2**20, 0.05
_TRIMMED_LIMIT, _TRIMMED_SHARE = 12 * 2**20, 0.03
_META = torch.device("meta")


@dataclass(frozen=True)
class Plan:
    """A run, foretold.

    Attributes:
        passes: how often a whole map is gone through.
        strips: into how many pieces these are cut, together.
        store: where maps lie: "memory", or "memory and file" where the budget keeps some out of memory; for an
            accelerator "device", "device and host", "device and file" or "device, host and file".
        peak_bytes: most working memory of the device at any time, beside weights, input and output.
        host_bytes: most bytes of maps in the host's memory, for an accelerator.
        file_bytes: most bytes in temporary files.
        arithmetic: multiplications and additions, counted as plain convolutions need them.
        pass_costs: the arithmetic of each pass, in their order.
        fast_share: the share of `arithmetic` that takes a kernel with fewer multiplications.
        map_limit: bytes of maps that may lie on the device; None for no limit.
        host_limit: bytes of the others that may lie in the host's memory, for an accelerator.
        strip_bytes: size of a strip where a kernel leaves it open.
    """

    passes: int
    strips: int
    store: str
    peak_bytes: int
    host_bytes: int
    file_bytes: int
    arithmetic: int
    pass_costs: tuple[int, ...]
    fast_share: float
    map_limit: int | None
    host_limit: int
    strip_bytes: int

    def times(self, runs: int) -> Plan:
        """The plan of so many runs, one after the other."""
        return replace(
            self,
            passes=self.passes * runs,
            strips=self.strips * runs,
            arithmetic=self.arithmetic * runs,
            pass_costs=self.pass_costs * runs,
        )


def plan_program(
    passes: list[Pass],
    settings: Settings,
    shape: tuple[int, int, int, int],
    output_shape: tuple[int, int, int, int],
    latent_rows: int,
    dtype: torch.dtype,
    budget: int | None,
) -> Plan:
    """Rehearse a program without computing anything.

    Args:
        shape, output_shape: of the input and the output, [B, C, H, W].
        budget: bytes of working memory beside weights, input and output; None for no limit.

    Raises:
        MemoryBudgetError: what a pass needs beside its maps is over the budget.
    """

    def rehearse(limit: int | None) -> tuple[Plan, int]:
        return _rehearse(passes, settings, shape, output_shape, latent_rows, dtype, limit)

    plan, workspace = rehearse(None)
    if budget is None or plan.peak_bytes <= budget:
        return plan
    budget -= _reserve(budget, settings)
    # What is left over by then goes to maps.
    while workspace > budget // 2 and settings.bytes_per_strip > _SMALLEST_STRIP:
        settings = replace(settings, strip_bytes=settings.bytes_per_strip // 4)
        workspace = rehearse(None)[1]
    if workspace > budget:
        needed = workspace
        while needed - _reserve(needed, settings) < workspace:
            needed += 2**20
        raise MemoryBudgetError(
            f"the memory budget is too small: after {budget / 2**20:.0f} MiB a single strip of this model still "
            f"does not fit. Give at least {math.ceil(needed / 2**20)} MiB."
        )
    return rehearse(budget - workspace)[0]


def _reserve(size: int, settings: Settings) -> int:
    limit, share = (_TRIMMED_LIMIT, _TRIMMED_SHARE) if settings.trim else (_KEPT_LIMIT, _KEPT_SHARE)
    return int(min(size / 4, limit) + share * size)


def _rehearse(
    passes: list[Pass],
    settings: Settings,
    shape: tuple[int, int, int, int],
    output_shape: tuple[int, int, int, int],
    latent_rows: int,
    dtype: torch.dtype,
    limit: int | None,
) -> tuple[Plan, int]:
    """The plan under a limit for maps, and the largest workspace of a pass."""
    host_limit = 0
    if settings.device.type != "cpu":
        host_limit = int((available_bytes(torch.device("cpu")) or 0) * DEFAULT_SHARE)
    store = MapStore(_META, limit, host_limit)
    run = Execution(passes, settings, store, dtype)
    strips = fast = peak = largest = 0
    pass_costs: list[int] = []
    workers = torch.get_num_threads()
    batch, output = (torch.empty(size, dtype=dtype, device=_META) for size in (shape, output_shape))
    for _, kernel in run.kernels(batch, output, latent_rows):
        count, cost = kernel.extent()
        strips += count
        pass_costs.append(cost)
        fast += cost if kernel.fast else 0
        workspace = kernel.workspace(workers)
        largest = max(largest, workspace)
        peak = max(peak, store.used["device"] + workspace)
    plan = Plan(
        passes=len(passes),
        strips=strips,
        store=_described(store, settings.device),
        peak_bytes=peak + _reserve(peak, settings),
        host_bytes=store.peak["host"],
        file_bytes=store.peak["file"],
        arithmetic=sum(pass_costs),
        pass_costs=tuple(pass_costs),
        fast_share=fast / sum(pass_costs),
        map_limit=limit,
        host_limit=host_limit,
        strip_bytes=settings.bytes_per_strip,
    )
    return plan, largest


def _described(store: MapStore, device: torch.device) -> str:
    """The places that maps lie in, in words."""
    names = ["memory" if device.type == "cpu" else "device"]
    names += [place for place in ("host", "file") if store.peak[place]]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
