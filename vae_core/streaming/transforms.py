"""The matrices of the fast convolutions, as exact fractions: the one place where they are written down.

A fast convolution in one dimension makes four outputs of a kernel w of three and of k neighbours x by n products:

    outputs = A^T ((G w) * (B^T x))        (Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, 2016)

In two dimensions each matrix is applied along both axes, which takes n * n products for 4 x 4 outputs. The path in
torch operations (`torch_transforms.py`), the packing of weights (`compiled_winograd.py`) and
`benchmarks/winograd_points.py` take their matrices from here. The compiled path (`winograd_jit/`) has the same numbers
folded into its code; `tests/streaming/test_transforms.py` compares it with these, number by number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

TILE = 4  # outputs along one side of a tile

Matrix = tuple[tuple[Fraction, ...], ...]


def as_tensor(matrix: Matrix, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix of fractions, each rounded once."""
    return torch.tensor([[float(each) for each in row] for row in matrix], dtype=torch.float64, device="cpu").to(dtype)


@dataclass(frozen=True, eq=False)
class Transform:
    """A fast convolution in one dimension, for four outputs.

    Attributes:
        kernel: G [n, 3].
        inputs: B^T [n, k].
        outputs: A^T [4, n].
        step: positions of the source from one tile to the next: 4, or 2 where the source is doubled first, or 8 where
            outputs are those of every second position.
    """

    kernel: Matrix
    inputs: Matrix
    outputs: Matrix
    step: int

    @property
    def products(self) -> int:
        """n."""
        return len(self.kernel)

    @property
    def reach(self) -> int:
        """k: neighbours that a tile reads."""
        return len(self.inputs[0])

    @functools.cached_property
    def of_kernels(self) -> Tensor:
        """G in two dimensions, [n * n, 9] in float32: G w G^T is its product with the nine weights of a kernel w."""
        kernel = as_tensor(self.kernel)
        return torch.kron(kernel, kernel).float()

    @functools.cached_property
    def of_kernel(self) -> Tensor:
        """G in float32."""
        return as_tensor(self.kernel, torch.float32)

    @functools.cached_property
    def before(self) -> Tensor:
        """B^T in float32."""
        return as_tensor(self.inputs, torch.float32)

    @functools.cached_property
    def after(self) -> Tensor:
        """A^T in float32."""
        return as_tensor(self.outputs, torch.float32)


def winograd(a: Fraction, b: Fraction) -> Transform:
    """F(4, 3) at the points 0, a, -a, b, -b and infinity, for a and b that differ and are not zero."""
    points = (Fraction(0), a, -a, b, -b)
    kernel = []
    inputs = []
    for point in points:
        others = [other for other in points if other != point]
        norm = math.prod((point - other for other in others), start=Fraction(1))
        kernel.append(tuple(point**power / norm for power in range(3)))
        inputs.append(_polynomial(others))
    kernel.append((Fraction(0), Fraction(0), Fraction(1)))
    inputs.append(_polynomial(points))
    outputs = [(*(point**power for point in points), Fraction(power == TILE - 1)) for power in range(TILE)]
    return Transform(tuple(kernel), tuple(inputs), tuple(outputs), TILE)


def _polynomial(roots: Sequence[Fraction], count: int = 6) -> tuple[Fraction, ...]:
    """Coefficients of the product of (x - root), from the constant on, filled up to so many."""
    coefficients = [Fraction(1)] + [Fraction(0)] * (count - 1)
    for root in roots:
        coefficients = [
            before - root * each for before, each in zip([Fraction(0), *coefficients], coefficients, strict=False)
        ]
    return tuple(coefficients)


def _matrix(*rows: str) -> Matrix:
    return tuple(tuple(Fraction(each) for each in row.split()) for row in rows)


# Of all pairs of points tried, these round best: less than half the error of the usual 1 and 2
# (`benchmarks/winograd_points.py`). Their squares multiply to one.
WINOGRAD = winograd(Fraction(2, 3), Fraction(3, 2))

# A 3x3 convolution of a doubled map. In one dimension two kernels of two, one for each parity of the output, are
# applied to the map itself. With the kernel (w0, w1, w2) and four neighbours x0 ... x3, the four outputs over x1 and
# x2 are
#
#     p + q + w0 (x0 - x2),    p + r,    p - q,    p - r + w2 (x3 - x1)
#
#     p = (w0 + w1 + w2) / 2 (x1 + x2),  q = (w0 - w1 - w2) / 2 (x2 - x1),  r = (w2 - w1 - w0) / 2 (x2 - x1)
#
# which is Winograd's F(2, 2) at the points 0, 1, -1 for the even outputs and 1, -1 and infinity for the odd ones,
# where the product at 1 is the same. The transforms are differences, so this rounds like plain convolution.
UPSAMPLE = Transform(
    kernel=_matrix("1/2 1/2 1/2", "1/2 -1/2 -1/2", "1 0 0", "-1/2 -1/2 1/2", "0 0 1"),
    inputs=_matrix("0 1 1 0", "0 -1 1 0", "1 0 -1 0", "0 -1 1 0", "0 -1 0 1"),
    outputs=_matrix("1 1 1 0 0", "1 0 0 1 0", "1 -1 0 0 0", "1 0 0 -1 1"),
    step=2,
)


def _strided(a: Fraction, b: Fraction) -> Transform:
    """A 3x3 convolution with stride 2, in one dimension, for a and b that differ and are not zero.

    The taps w0 and w2 meet every second neighbour, from the first on, and are one kernel of two on these: Winograd's
    F(4, 2) at the points a, -a, b, -b and infinity. The tap w1 meets those between, and is multiplied as it is.
    """
    points = (a, -a, b, -b)
    nothing = Fraction(0)
    kernel = []
    inputs = []
    for point in points:
        others = [other for other in points if other != point]
        norm = math.prod((point - other for other in others), start=Fraction(1))
        kernel.append((1 / norm, nothing, point / norm))
        inputs.append(_polynomial(others, 5))
    kernel.append((nothing, nothing, Fraction(1)))
    inputs.append(_polynomial(points, 5))
    spread = [tuple(each for number in row for each in (number, nothing))[:9] for row in inputs]
    spread += [tuple(Fraction(each == 2 * place + 1) for each in range(9)) for place in range(TILE)]
    kernel += [(nothing, Fraction(1), nothing)] * TILE
    outputs = [
        (
            *(point**power for point in points),
            Fraction(power == TILE - 1),
            *(Fraction(place == power) for place in range(TILE)),
        )
        for power in range(TILE)
    ]
    return Transform(tuple(kernel), tuple(spread), tuple(outputs), 2 * TILE)


# In two dimensions 81 products for 16 outputs instead of 144. Of all pairs of points tried, these round best: to less
# than twice the error of plain convolution, and a third of F(4, 3)'s.
DOWNSAMPLE = _strided(Fraction(1, 2), Fraction(4, 3))

BY_SCALE = {"same": WINOGRAD, "up": UPSAMPLE, "down": DOWNSAMPLE}  # of a pass
