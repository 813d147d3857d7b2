"""What tests of runs share: a size, a budget, an error to stop with, and the engine's threads."""

from __future__ import annotations

import threading

import vae_core
from vae_core import AutoencoderKL

SIZE = 24  # latent pixels along a side: enough for the engine to take it


class StoppedError(Exception):
    """What a callback of a test raises."""


def filing_budget(vae: AutoencoderKL, shape: tuple[int, ...]) -> int:
    """A budget under which maps go to a file."""
    free = vae_core.plan_decode(vae, shape).peak_bytes
    for tenths in range(9, 0, -1):
        budget = free * tenths // 10
        if vae_core.plan_decode(vae, shape, memory_budget=budget).places.disk:
            return budget
    raise AssertionError("no budget sends maps to a file")


def workers() -> list[str]:
    """Names of the engine's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("seamless-vae")]
