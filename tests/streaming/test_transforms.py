"""The matrices of the fast convolutions, exactly; and that what is compiled, and torch's path, compute with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_core.streaming import torch_transforms, winograd
from vae_core.streaming.transforms import DOWNSAMPLE, UPSAMPLE, WINOGRAD, Matrix, Transform, as_tensor
from vae_core.streaming.transforms import winograd as winograd_at

PAIRS = [(Fraction(2, 3), Fraction(3, 2)), (Fraction(1), Fraction(2)), (Fraction(1, 2), Fraction(5, 4))]
# A transform of an impulse is a product of two numbers of a matrix, made with at most three roundings. A constant with
# one digit wrong, 1e-6 of its value, would be beyond.
ROUNDINGS = 3 * 2.0**-24


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def unit(size: int, place: int) -> list[Fraction]:
    return [Fraction(each == place) for each in range(size)]


@pytest.mark.parametrize("transform", [*(winograd_at(*pair) for pair in PAIRS), UPSAMPLE, DOWNSAMPLE], ids=str)
def test_the_matrices_convolve_exactly(transform: Transform) -> None:
    """Both sides are linear in the kernel and in the inputs, so unit vectors prove it for all."""
    for k, i in itertools.product(range(3), range(transform.reach)):
        kernel, inputs = unit(3, k), unit(transform.reach, i)
        products = [
            a * b for a, b in zip(times(transform.kernel, kernel), times(transform.inputs, inputs), strict=True)
        ]
        # The outputs of an upsampling begin at the first copy of the second input, and reach one copy further.
        seen = [each for each in inputs for _ in range(2)][1:-1] if transform is UPSAMPLE else inputs
        stride = 2 if transform is DOWNSAMPLE else 1
        wanted = [sum((kernel[t] * seen[stride * y + t] for t in range(3)), Fraction(0)) for y in range(4)]
        assert times(transform.outputs, products) == wanted


def test_the_points_are_those_that_round_best() -> None:
    assert WINOGRAD.outputs[1] == (0, Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2), 0)


@pytest.fixture(params=["compiled", "torch"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param == "compiled" and not winograd.compiled():
        pytest.skip("numba is not installed")
    return request.param == "compiled"


def some(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Scratch memory of any part."""
    return torch.full(tuple(shape), torch.nan, dtype=dtype)


RESAMPLING = {UPSAMPLE: "upsample", DOWNSAMPLE: "downsample"}
FLOAT32 = np.float32(0)  # what the numbers of a map are


def rows_of(array: np.ndarray) -> np.ndarray:
    """Addresses of the rows of [rows, W, C], as the compiled functions take them: in numbers of four bytes."""
    return array.ctypes.data // 4 + np.arange(len(array), dtype=np.int64) * array[0].size


def begin(array: np.ndarray) -> int:
    return array.ctypes.data // 4


def inputs_of(transform: Transform, source: Tensor, compiled: bool, affine=None) -> Tensor:
    """What is multiplied, [n * n, C], of one tile whose first input is source[0, 0]; source is [rows, W, C]."""
    n, (_, width, channels) = transform.products, source.shape
    out = torch.full((1, 1, n * n, channels), torch.nan)
    if not compiled:
        tensors = affine and (torch.from_numpy(affine[0]), torch.from_numpy(affine[1]))
        torch_transforms.transform_inputs(transform, source, 0, 0, False, tensors, (1, 1), some, out)
        return out.reshape(n * n, channels)
    jit, ring, place = winograd.jit(), np.empty((channels // 16, 9, 9, 16), np.float32), begin(out.numpy())
    image = rows_of(source.numpy()), width, channels, FLOAT32
    if transform in RESAMPLING:
        inputs = getattr(jit, f"{RESAMPLING[transform]}_inputs")
        inputs(image, 0, 0, False, begin(ring), (place, channels, FLOAT32), (1, 1), channels)
    else:
        scale, shift = affine or (ring, ring)
        norm = begin(scale), begin(shift), affine is not None
        jit.transform_inputs(image, 0, 0, False, *norm, begin(ring), (place, channels, FLOAT32), (1, 1), channels)
    return out.reshape(n * n, channels)


def outputs_of(transform: Transform, products: Tensor, compiled: bool) -> Tensor:
    """Pixels [4, 4, K] of one tile of products [n * n, K]."""
    channels = products.shape[1]
    target, bias, sums = torch.full((4, 4, channels), torch.nan), torch.zeros(channels), np.zeros((2, channels))
    if not compiled:
        torch_transforms.transform_outputs(transform, products[None, None], bias, None, target, (1, 1), some, sums)
        return checked(target, sums)
    rows, products = rows_of(target.numpy()), products.contiguous()
    place, size, totals = (rows, (0, 0), channels, FLOAT32), (4, 4), tuple(each.ctypes.data // 8 for each in sums)
    if transform in RESAMPLING:
        outputs = getattr(winograd.jit(), f"{RESAMPLING[transform]}_outputs")
        outputs(begin(products.numpy()), channels, begin(bias.numpy()), place, size, channels, totals)
    else:
        nothing = False, rows, (0, 0), channels, FLOAT32
        winograd.jit().transform_outputs(
            begin(products.numpy()), channels, begin(bias.numpy()), nothing, place, size, channels, totals
        )
    return checked(target, sums)


def checked(target: Tensor, sums: np.ndarray) -> Tensor:
    """The target, whose sums and sums of squares these are."""
    np.testing.assert_allclose(sums[0], target.double().sum((0, 1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sums[1], target.double().square().sum((0, 1)), rtol=1e-6, atol=1e-6)
    return target


def impulses(count: int) -> Tensor:
    """[count, channels]: the channel of the same number is 1; as many channels as fill vectors."""
    return torch.eye(count, -(-count // 16) * 16)


@pytest.mark.parametrize("transform", [WINOGRAD, UPSAMPLE, DOWNSAMPLE], ids=["winograd", "upsample", "downsample"])
def test_inputs_are_transformed_by_the_matrix(transform: Transform, compiled: bool) -> None:
    reach = transform.reach
    matrix = as_tensor(transform.inputs)
    wanted = torch.kron(matrix, matrix)  # [n * n, k * k]
    found = inputs_of(transform, impulses(reach**2).unflatten(0, (reach, reach)), compiled)
    assert_rounded(found[:, : reach**2], wanted)
    assert not found[:, reach**2 :].any()


@pytest.mark.parametrize("transform", [WINOGRAD, UPSAMPLE, DOWNSAMPLE], ids=["winograd", "upsample", "downsample"])
def test_outputs_are_transformed_by_the_matrix(transform: Transform, compiled: bool) -> None:
    n = transform.products
    matrix = as_tensor(transform.outputs)
    found = outputs_of(transform, impulses(n * n), compiled).flatten(0, 1)
    assert_rounded(found[:, : n * n], torch.kron(matrix, matrix))


def assert_rounded(found: Tensor, wanted: Tensor) -> None:
    assert ((found.double() - wanted).abs() <= ROUNDINGS * wanted.abs()).all()  # and zeros are zeros


def test_silu_is_rounded_like_a_division(compiled: bool) -> None:
    """The first product of a tile is its first pixel, where the others are zero."""
    values = torch.cat([torch.linspace(-87, 87, 4081), torch.logspace(-30, 0, 15)])
    source = torch.zeros(6, 6, len(values))
    source[0, 0] = values
    scale, shift = np.full(len(values), 0.5, np.float32), np.zeros(len(values), np.float32)
    found = inputs_of(WINOGRAD, source, compiled, (scale, shift))[0].double()
    x = 0.5 * values.double()
    wanted = x / (1 + torch.exp(-x))
    # exp(-x) is rounded at its argument too, which is up to 44 for these: 2**-24 * 44 * log2(e) of its value.
    assert ((found - wanted).abs() <= 2**-24 * (4 + 1.5 * x.abs()) * wanted.abs()).all()


def test_what_is_not_a_number_stays_one(compiled: bool) -> None:
    source = torch.zeros(6, 6, 16)
    source[0, 0] = torch.nan
    ones = np.ones(16, np.float32)
    found = inputs_of(WINOGRAD, source, compiled, (ones, ones))
    assert found[0].isnan().all()


@pytest.mark.parametrize("transform", [WINOGRAD, UPSAMPLE, DOWNSAMPLE], ids=["same", "up", "down"])
@pytest.mark.parametrize(("out_channels", "channels"), [(16, 16), (48, 32), (64, 16), (80, 48)])
def test_weights_as_products_read_them(transform: Transform, out_channels: int, channels: int) -> None:
    """Made block by block, in any order; output channels that fill up the last block are zero."""
    jit = winograd.jit()
    if jit is None:
        pytest.skip("numba is not installed")
    blocks = -(-out_channels // jit.COLUMNS)
    kernels = torch.randn(out_channels, channels, 9, generator=torch.Generator().manual_seed(0))
    packed = np.full((transform.products**2, blocks, channels, jit.COLUMNS), np.nan, np.float32)
    for block in reversed(range(blocks)):
        of_block = kernels[block * jit.COLUMNS : (block + 1) * jit.COLUMNS].numpy()
        jit.pack(of_block, transform.of_kernel.numpy(), packed, block)
    found = torch.from_numpy(packed).transpose(2, 3).flatten(1, 2)  # [groups, K, C]
    matrix = as_tensor(transform.kernel)
    wanted = torch.einsum("gt,kct->gkc", torch.kron(matrix, matrix), kernels.double())
    torch.testing.assert_close(found[:, :out_channels].double(), wanted, rtol=0, atol=1e-6)
    assert not found[:, out_channels:].any()
