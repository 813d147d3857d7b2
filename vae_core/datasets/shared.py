"""A number that processes share, so that a DataLoader's workers follow when it is set."""

from __future__ import annotations

import contextlib

import torch

_DIGIT = 2**63


class SharedNumber:
    """A whole number, or None. Copies in other processes, forked or sent to them by torch, see each new value."""

    def __init__(self, value: int | None) -> None:
        self._parts = torch.zeros(3, dtype=torch.int64, device="cpu")  # whether there is one, and its digits
        with contextlib.suppress(RuntimeError):  # a system without shared memory
            self._parts.share_memory_()
        self.value = value

    @property
    def value(self) -> int | None:
        there, low, high = self._parts.tolist()
        return high * _DIGIT + low if there else None

    @value.setter
    def value(self, value: int | None) -> None:
        high, low = divmod(value or 0, _DIGIT)
        self._parts.copy_(torch.tensor([int(value is not None), low, high], dtype=torch.int64, device="cpu"))
