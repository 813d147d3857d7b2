"""The small model of the engine's tests, and what goes into it."""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from vaes import fields, make

import vae_core
from vae_core import AutoencoderKL

CONFIG = fields(32, 32, layers_per_block=1)
SIZE = 24  # latent positions along a side: enough for the engine to take it


class StoppedError(Exception):
    """What a callback of a test raises."""


def small_vae() -> AutoencoderKL:
    return make(CONFIG)


def latent(batch: int = 1, height: int = SIZE, width: int = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))


def image(batch: int = 1, height: int = 2 * SIZE, width: int = 2 * SIZE, seed: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


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
