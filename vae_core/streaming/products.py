"""Matrix products for float32 on a CPU with weights that are packed in advance.

All products of a strip are one grouped 1x1 convolution of oneDNN. That runs at the machine's rate for any number of
rows; torch's own matrix product does not on every processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..units import round_up
from . import internals

VECTOR = 16  # channels that oneDNN's products work on at a time


def whole_vectors(channels: int) -> int:
    """So many channels, filled up to whole vectors."""
    return round_up(channels, VECTOR)


def padded(x: Tensor, zeros: int) -> Tensor:
    """x with so many zeros more in its last dimension; x itself for none, which `F.pad` would copy."""
    return F.pad(x, (0, zeros)) if zeros else x


@dataclass(frozen=True)
class PackedProducts:
    """`groups` matrices [C, K], laid out as oneDNN wants them for products of `rows` rows.

    With another number of rows it may want another layout and make it in every call, which takes a hundred times as
    long; so fewer rows are filled up. `in_channels` is C padded to whole vectors.
    """

    weight: Tensor
    rows: int
    groups: int
    in_channels: int
    out_channels: int

    @classmethod
    def pack(cls, matrices: Tensor, rows: int) -> PackedProducts:
        """Pack matrices [groups, K, C], for products of up to `rows` rows. C is padded to whole vectors with zeros."""
        matrices = padded(matrices, -matrices.shape[2] % VECTOR)
        groups, out_channels, in_channels = matrices.shape
        weight = matrices.reshape(groups * out_channels, in_channels, 1, 1)
        packed = internals.pack(weight, groups, (1, groups * in_channels, 1, rows))
        return cls(packed, rows, groups, in_channels, out_channels)

    def __call__(self, left: Tensor) -> Tensor:
        """[N, groups, C] -> [N, groups, K], for N of up to `rows`."""
        count = left.shape[0]
        if count < self.rows:
            left = F.pad(left, (0, 0, 0, 0, 0, self.rows - count))
        y = internals.multiply(self.as_image(left), self.weight, self.groups)
        return y.permute(0, 2, 3, 1).view(self.rows, self.groups, self.out_channels)[:count]

    def add_to(self, out: Tensor, left: Tensor) -> None:
        """out += left @ matrices, for `rows` rows: [rows, groups, C] -> [rows, groups, K], both contiguous."""
        internals.add_products(self.as_image(out), self.as_image(left), self.weight, self.groups)

    def as_image(self, matrices: Tensor) -> Tensor:
        """[rows, groups, C] as the image that a convolution takes."""
        return matrices.view(1, 1, self.rows, -1).permute(0, 3, 1, 2)
