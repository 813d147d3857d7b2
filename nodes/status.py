"""How far a node is: the host's progress bar with a preview, a status for the front end, and whether to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ..vae_core import Progress
from . import host
from .answers import StatusEvent
from .previews import IMAGE_SIDE

BAR_STEPS = 1000
BAR_SECONDS = 0.1
STATUS_SECONDS = 0.25

Preview = Callable[[], Image.Image]


class NodeStatus:
    """Takes the progress of a node's runs; raises the host's own exception when the user has cancelled.

    Args:
        node_id: of the node that runs; None for what the host says.
        stages: shares of the whole that the runs will take, such as (0.3, 0.7) to encode and then decode.
    """

    def __init__(self, node_id: str | None = None, stages: Sequence[float] = (1.0,)) -> None:
        self.node_id = host.current_node(node_id)
        self._shares = [share / sum(stages) for share in stages]
        self._stage = -1
        self._bar = host.progress_bar(BAR_STEPS, self.node_id)
        self._shown = self._sent = float("-inf")
        self._preview: Preview | None = None
        self._device = torch.device("cpu")
        self._image: Sequence[int] = (0, 0, 0, 0)
        self._start = time.monotonic()

    def stage(self, preview: Preview | None = None) -> None:
        """The next of the stages begins."""
        self._stage = min(self._stage + 1, len(self._shares) - 1)
        self._preview = preview
        self._shown = float("-inf")

    def begin(self, device: torch.device, image: Sequence[int]) -> None:
        """A run begins on a device, or begins again, of images [B, C, H, W] that come in or out."""
        host.check_interrupted()
        self._device = device
        self._image = image
        self._start = time.monotonic()

    def __call__(self, step: Progress) -> None:
        """Called by a run; see `vae_core.Progress`."""
        host.check_interrupted()
        now = time.monotonic()
        is_done = step.done >= step.total
        if now - self._shown >= BAR_SECONDS or is_done:
            self._shown = now
            self._update(step.done / max(1, step.total))
        if now - self._sent >= STATUS_SECONDS:
            self._sent = now
            host.send_status(self._event(step, now - self._start))

    def show(self, result: Preview) -> None:
        """The stage has ended: what came of it takes the place of its preview."""
        self._preview = result
        self._update(1.0)

    def _update(self, done: float) -> None:
        """Move the bar to this share of the stage."""
        if self._bar is not None:
            stage = max(0, self._stage)
            share = sum(self._shares[:stage]) + self._shares[stage] * done
            self._bar(round(BAR_STEPS * share), self._take_preview())

    def _take_preview(self) -> tuple[str, Image.Image, int] | None:
        if self._preview is None:
            return None
        preview = self._preview
        self._preview = None  # the host keeps showing it
        return "JPEG", preview(), IMAGE_SIDE

    def _event(self, step: Progress, seconds: float) -> StatusEvent:
        return {
            "node": self.node_id,
            "done": step.done,
            "total": step.total,
            "pass": step.pass_index,
            "passes": step.passes,
            "memory": host.memory_in_use(self._device),
            "seconds_left": seconds * (step.total - step.done) / step.done if step.done else None,
            "width": self._image[3],
            "height": self._image[2],
            "batch": self._image[0],
        }
