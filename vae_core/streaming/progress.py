"""Telling the caller how far a run has come, in units of arithmetic; of modules run as they are, too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .attend import attention_cost
from .program import Attend, Pass, output_size
from .strips import convolution_cost

# Operations that an accelerator may still have before it when the next one is queued: enough to keep it busy, and few
# enough that what is told is true, and that an end comes soon.
_IN_FLIGHT = 2


Progress = Callable[[int, int], None]


@dataclass
class Report:
    """Adds up the arithmetic done and tells it to the caller."""

    progress: Progress | None
    total: int = 0
    done: int = 0

    def expect(self, cost: int) -> None:
        """So much more is to come: once for a run, and once more where it has to be done again."""
        self.total = self.done + cost

    def finish(self) -> None:
        """Whatever was counted, all of it is done."""
        if self.done < self.total:
            self(self.total - self.done)

    def __call__(self, cost: int) -> None:
        self.done = min(self.done + cost, self.total)
        if self.progress is not None:
            self.progress(self.done, self.total)


def program_cost(passes: Sequence[Pass], shape: tuple[int, int, int, int]) -> int:
    """The arithmetic of a program for an input [B, C, H, W], as convolutions and attention are counted everywhere."""
    batch, _, height, width = shape
    total = 0
    for step in passes:
        height, width = output_size(step, height, width)
        if isinstance(step, Attend):
            total += attention_cost(step.attention.group_norm.num_channels, height * width)
        else:
            total += convolution_cost(step, height * width)
    return batch * total


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of a model was compiled, into which nobody should look from outside."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


class Watched(TorchFunctionMode):
    """Counts the arithmetic of what the calling thread does with torch within the block.

    Args:
        device: where it happens. On an accelerator operations are queued; they count when they are done.
        advance: told of the arithmetic done since the last time; what it raises comes out of the operation.
    """

    def __init__(self, device: torch.device, advance: Callable[[int], None]) -> None:
        super().__init__()
        self.device, self.advance = device, advance
        self._queued: deque[tuple[Any, int]] = deque()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = _COSTS.get(func)
        if count is not None:
            self._add(count(result, *args, **(kwargs or {})))
        return result

    def _add(self, cost: int) -> None:
        runtime = getattr(torch, self.device.type, None)
        if self.device.type == "cpu" or not hasattr(runtime, "Event"):
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
