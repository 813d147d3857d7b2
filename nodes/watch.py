"""How far a node is: the host's progress bar with a preview, a status for the front end, and whether to stop."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ..vae_core import Progress
from . import host

STEPS = 1000
BAR_SECONDS, STATUS_SECONDS = 0.1, 0.25
PREVIEW_SIDE = 512

Preview = Callable[[], Image.Image]


class Watch:
    """Told by runs how far they are; raises the host's own exception when somebody has cancelled.

    Args:
        node_id: of the node at work; None for what the host says.
        stages: shares of the whole that the runs to come will take, such as (0.3, 0.7) to encode and to decode.
    """

    def __init__(self, node_id: str | None = None, stages: Sequence[float] = (1.0,)) -> None:
        self.node_id = host.current_node(node_id)
        self._shares = [share / sum(stages) for share in stages]
        self._stage = -1
        self._bar = host.progress_bar(STEPS, self.node_id)
        self._shown = self._sent = float("-inf")
        self._ends: list[int] = []
        self._repeats = 1
        self._preview: Preview | None = None
        self._device = torch.device("cpu")
        self._start = time.monotonic()

    def stage(self, preview: Preview | None = None) -> None:
        """The next of the stages begins."""
        self._stage = min(self._stage + 1, len(self._shares) - 1)
        self._preview = preview
        self._shown = float("-inf")

    def expect(self, pass_costs: Sequence[int], repeats: int, device: torch.device) -> None:
        """A run begins, or begins again: the arithmetic of its passes, and how often they are gone through."""
        host.check_interrupted()
        self._ends = list(itertools.accumulate(pass_costs))
        self._repeats = repeats
        self._device = device
        self._start = time.monotonic()

    def part(self, index: int, count: int) -> Callable[[Progress], None]:
        """The progress callback of one of `count` equal parts of a stage."""
        return lambda step: self(index * step.total + step.done, count * step.total)

    def __call__(self, done: int, total: int) -> None:
        host.check_interrupted()
        now, total = time.monotonic(), max(1, total)
        if self._bar is not None and (now - self._shown >= BAR_SECONDS or done >= total):
            self._shown = now
            stage = max(0, self._stage)
            share = sum(self._shares[:stage]) + self._shares[stage] * done / total
            self._bar(round(STEPS * share), self._take_preview())
        if now - self._sent >= STATUS_SECONDS:
            self._sent = now
            self._send(done, total, now - self._start)

    def _take_preview(self) -> tuple[str, Image.Image, int] | None:
        if self._preview is None:
            return None
        preview, self._preview = self._preview, None  # the host keeps showing it
        return "JPEG", preview(), PREVIEW_SIDE

    def _send(self, done: int, total: int, seconds: float) -> None:
        passes = max(1, len(self._ends) * self._repeats)
        if self._ends:
            once = self._ends[-1]
            repeat, rest = divmod(done * once * self._repeats // total, once)
            current = repeat * len(self._ends) + bisect.bisect_right(self._ends, rest) + 1
        else:
            current = done * passes // total + 1
        host.send_status(
            {
                "node": self.node_id,
                "done": done,
                "total": total,
                "pass": min(current, passes),
                "passes": passes,
                "memory": host.memory_in_use(self._device),
                "seconds_left": seconds * (total - done) / done if done else None,
            }
        )
