"""`softmax.OnlineSoftmax` on a CPU by compiled code, which leaves the weights as the next product takes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..units import round_up
from . import winograd
from .numba_functions import as_array


class CompiledSoftmax:
    """softmax(scores) @ values for rows of queries, from one block of keys after another.

    Args:
        dtype: that the weights of a block are multiplied in; all else is in float32.
    """

    def __init__(self, rows: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._attended = torch.zeros((), dtype=torch.float32, device="cpu")
        self._total = torch.zeros(rows, 1, dtype=torch.float32, device="cpu")
        self._largest = np.full(rows, -np.inf, np.float32)

    def add(self, scores: Tensor, weigh: Callable[[Tensor], Tensor]) -> None:
        """Take in the scores [rows, keys] of a block, as `CompiledProducts` leaves them, which may be overwritten."""
        jit = winograd.jit()
        rows, keys = scores.shape
        weights = scores
        if self._dtype != scores.dtype:
            apart = round_up(keys, 2) + jit.GAP
            weights = torch.empty(round_up(rows, jit.ROWS), apart, dtype=self._dtype, device="cpu")[:rows, :keys]
        shrink = torch.empty(rows, 1, dtype=torch.float32, device="cpu")
        total, factors = (each.view(-1).numpy() for each in (self._total, shrink))
        jit.soften(
            _flat(scores), scores.stride(0), keys, _flat(weights), weights.stride(0), self._largest, total, factors
        )
        self._attended = weigh(weights).addcmul_(self._attended, shrink)

    def result(self) -> Tensor:
        return self._attended.div_(self._total)


def _flat(matrix: Tensor) -> np.ndarray:
    """The memory of a matrix from its first number on."""
    return as_array(matrix.as_strided((matrix.shape[0] * matrix.stride(0),), (1,)))
