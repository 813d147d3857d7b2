"""Telling the caller how far a run is, in FLOPs; of modules that run as they are, too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError, brief
from .devices import module_of
from .executed import Executed

# Operations that an accelerator may still have before it when the next one is queued: enough to keep it busy, and few
# enough that what is reported is true, and that an end comes soon.
_IN_FLIGHT = 2


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        done, total: FLOPs.
        pass_index: of the pass at work, from 1 to `passes`.
        passes: of the whole run, as planned.
    """

    done: int
    total: int
    pass_index: int
    passes: int


ProgressCallback = Callable[[Progress], None]


def check_progress(progress: Any) -> None:
    """Raise ConfigError for what cannot be called."""
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress is {brief(progress)}. Give a function that takes a Progress, or None.")


@dataclass
class Report:
    """Adds up the FLOPs done and reports them to the caller; keeps account of what is executed."""

    progress: ProgressCallback | None
    total: int = 0
    done: int = 0
    pass_index: int = 0
    passes: int = 0
    executed: Executed = field(default_factory=Executed)

    def expect(self, flops: int, passes: int) -> None:
        """So much more is to come: once for a run, and once more where it has to be done again."""
        self.total = self.done + flops
        self.passes = self.pass_index + passes

    def begin_pass(self) -> None:
        """The next pass is at work."""
        self.pass_index = min(self.pass_index + 1, self.passes)
        self.executed.passes += 1

    def finish(self) -> None:
        """Whatever was counted, all of it is done."""
        if self.done < self.total:
            self(self.total - self.done)

    def __call__(self, flops: int) -> None:
        self.done = min(self.done + flops, self.total)
        if self.progress is not None:
            self.progress(Progress(self.done, self.total, max(1, self.pass_index), self.passes))


class Watched(TorchFunctionMode):
    """Counts the FLOPs of what the calling thread does with torch within the block.

    Args:
        device: where it happens. On an accelerator operations are queued; they count when they are done.
        advance: called with the FLOPs done since the last time; what it raises comes out of the operation.
    """

    def __init__(self, device: torch.device, advance: Callable[[int], None]) -> None:
        super().__init__()
        self.device = device
        self.advance = advance
        self._queued: deque[tuple[Any, int]] = deque()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = _COSTS.get(func)
        if count is not None:
            self._add(count(result, *args, **(kwargs or {})))
        return result

    def _add(self, cost: int) -> None:
        runtime = None if self.device.type == "cpu" else module_of(self.device)
        if not hasattr(runtime, "Event"):
            self.advance(cost)
            return
        event = runtime.Event()  # type: ignore[union-attr]
        event.record()
        self._queued.append((event, cost))
        self._wait(_IN_FLIGHT)

    def _wait(self, left: int) -> None:
        while len(self._queued) > left:
            event, cost = self._queued.popleft()
            event.synchronize()
            self.advance(cost)

    def finish(self) -> None:
        """Wait for what is queued."""
        self._wait(0)


def _of_convolution(result: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * weight[0].numel() * result.numel()


def _of_linear(result: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * weight.shape[-1] * result.numel()


def _of_product(result: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    return 2 * left.shape[-1] * result.numel()


def _of_attention(result: Tensor, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    return 4 * key.shape[-2] * result.numel()


_COSTS: dict[Any, Callable[..., int]] = {
    torch.conv2d: _of_convolution,
    F.linear: _of_linear,
    F.scaled_dot_product_attention: _of_attention,
    **dict.fromkeys((torch.bmm, torch.matmul, Tensor.bmm, Tensor.matmul, Tensor.__matmul__), _of_product),
    torch.baddbmm: lambda result, added, left, *_, **__: _of_product(result, left),
}
