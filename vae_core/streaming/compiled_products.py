"""Matrix products on a CPU by compiled code, in float32 or of what is rounded to bfloat16; sums are in float32.

Those of bfloat16 are for processors that have instructions for it (`winograd_jit.BFLOAT16`), and twice as fast there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..units import round_up
from . import winograd
from .numba_functions import KINDS, as_array


@dataclass(frozen=True)
class CompiledProducts:
    """A matrix [C, K], laid out for products; as `products.PackedProducts` of one group, for any number of rows.

    Attributes:
        weight: [1, blocks, C, COLUMNS] of float32 or of uint16, see `winograd_jit.pack`, C filled up to whole pairs.
        dtype: of what is multiplied.
    """

    weight: np.ndarray
    in_channels: int
    out_channels: int
    dtype: torch.dtype

    @classmethod
    def pack(cls, weight: Tensor, dtype: torch.dtype) -> CompiledProducts:
        """For x @ weight^T, of a weight [K, C] in float32."""
        jit = winograd.jit()
        out_channels, in_channels = weight.shape
        kernels = F.pad(weight, (0, in_channels % 2)).contiguous().numpy()[:, :, None]
        blocks = -(-out_channels // jit.COLUMNS)
        packed = np.empty((1, blocks, kernels.shape[1], jit.COLUMNS), KINDS[dtype])
        for block in range(blocks):
            jit.pack(kernels[block * jit.COLUMNS : (block + 1) * jit.COLUMNS], winograd.UNCHANGED, packed, block)
        return cls(packed, in_channels, out_channels, dtype)

    @classmethod
    def pack_matrix(cls, matrix: Tensor, dtype: torch.dtype) -> CompiledProducts:
        """For x @ matrix, of a matrix [C, K] in float32."""
        columns = winograd.jit().COLUMNS
        in_channels, out_channels = matrix.shape
        filled = F.pad(matrix, (0, -out_channels % columns, 0, in_channels % 2)).to(dtype)
        in_blocks = filled.unflatten(1, (-1, columns)).unflatten(0, (-1, 2))  # [C / 2, 2, blocks, COLUMNS]
        order = (2, 0, 1, 3) if dtype == torch.float32 else (2, 0, 3, 1)
        laid_out = as_array(in_blocks.permute(order).contiguous())
        return cls(laid_out.reshape(1, -1, len(filled), columns), in_channels, out_channels, dtype)

    @staticmethod
    def bytes(out_channels: int, in_channels: int, dtype: torch.dtype) -> int:
        """Of a matrix that is laid out."""
        return dtype.itemsize * round_up(out_channels, winograd.jit().COLUMNS) * round_up(in_channels, 2)

    def __call__(self, left: Tensor) -> Tensor:
        """[N, 1, C] -> [N, 1, K], in float32. Rows of the result lie apart as those that are multiplied have to."""
        jit = winograd.jit()
        count = len(left)
        rows = round_up(len(left), jit.ROWS)
        _, blocks, _, columns = self.weight.shape
        results = torch.empty(rows, blocks * columns + jit.GAP, dtype=torch.float32, device="cpu")
        jit.multiply(as_array(self._multiplied(left[:, 0], rows)), self.weight, results.view(-1).numpy(), rows)
        return results[:count, None, : self.out_channels]

    def _multiplied(self, left: Tensor, rows: int) -> Tensor:
        """What is multiplied, [rows, C and a gap] one after the other: that of another product as it is."""
        depth = self.weight.shape[2]
        apart = depth + winograd.jit().GAP
        if left.dtype == self.dtype and left.stride() == (apart, 1) and depth == self.in_channels:
            begin = left.storage_offset()
            if begin + rows * apart <= left.untyped_storage().nbytes() // left.itemsize:
                return left.as_strided((rows * apart,), (1,), begin)
        filled = torch.empty(rows, apart, dtype=self.dtype, device="cpu")
        filled[: len(left), : self.in_channels] = left
        filled[: len(left), self.in_channels : depth] = 0.0
        return filled.view(-1)
