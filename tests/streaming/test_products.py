"""Matrix products that are compiled, by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vae_core.streaming import winograd
from vae_core.streaming.compiled_products import CompiledProducts
from vae_core.streaming.compiled_softmax import CompiledSoftmax

pytestmark = pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
SHAPES = [(1, 2, 1), (5, 16, 32), (12, 31, 33), (40, 128, 70), (30, 1, 96)]


def whole_numbers(*shape: int, most: int = 3, seed: int = 0) -> Tensor:
    """Whose products and sums are exact."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if request.param == torch.bfloat16 and not winograd.jit().BFLOAT16:
        pytest.skip("no instructions for bfloat16")
    return request.param


@pytest.mark.parametrize("way", ["weight", "matrix"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_products(way: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    left, matrix = whole_numbers(rows, inputs), whole_numbers(inputs, outputs, seed=1)
    if way == "matrix":
        packed = CompiledProducts.pack_matrix(matrix, dtype)
    else:
        packed = CompiledProducts.pack(matrix.t(), dtype)
    assert packed.weight.nbytes == CompiledProducts.bytes(outputs, inputs, dtype)
    assert torch.equal(packed(left[:, None])[:, 0], left @ matrix)


@pytest.mark.parametrize("rows", [1, 7, 12, 25])
@pytest.mark.parametrize("inputs", [32, 40, 64])
def test_a_product_of_a_product(rows: int, inputs: int, dtype: torch.dtype) -> None:
    """It is read where it is, if its rows lie as they have to; what it was made of stays as it is."""
    left, first, second = (whole_numbers(*shape, seed=1) for shape in ((rows, 16), (16, inputs), (inputs, 48)))
    between = CompiledProducts.pack_matrix(first, dtype)(left[:, None])[:, 0]
    before = between.clone()
    assert torch.equal(CompiledProducts.pack_matrix(second, dtype)(between[:, None])[:, 0], left @ first @ second)
    assert torch.equal(between, before)


def test_rows_that_end_with_their_memory_are_copied(dtype: torch.dtype) -> None:
    """Products are made of whole blocks of rows, and what is beyond the memory of these must not be read."""
    gap = winograd.jit().GAP
    memory = whole_numbers(5 * (32 + gap))
    left = memory.view(5, 32 + gap)[:, :32]
    matrix = whole_numbers(32, 32, seed=1)
    assert torch.equal(CompiledProducts.pack_matrix(matrix, dtype)(left[:, None])[:, 0], left @ matrix)


@pytest.mark.parametrize("keys", [1, 15, 16, 33, 100, 160])
@pytest.mark.parametrize("rows", [1, 7, 24])
def test_a_softmax_of_products(rows: int, keys: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(keys)
    query, key, value = (
        torch.randn(count, 32, generator=generator) for count in (rows, 2 * keys, 2 * keys)
    )  # scores have a deviation of 5.7, of -20 to 20
    softmax = CompiledSoftmax(rows, dtype)
    for block in (slice(keys), slice(keys, None)):
        values = CompiledProducts.pack_matrix(value[block], dtype)
        scores = CompiledProducts.pack(key[block], torch.float32)(query[:, None])[:, 0]
        softmax.add(scores, lambda weights, values=values: values(weights[:, None])[:, 0])
    wanted = torch.softmax(query.double() @ key.double().T, dim=1) @ value.double()
    error = (softmax.result().double() - wanted).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2) * value.abs().max()


def test_a_softmax_of_what_is_not_a_number() -> None:
    softmax = CompiledSoftmax(3, torch.float32)
    scores = torch.zeros(3, 64)
    scores[1, 20] = torch.nan
    scores[2, 20] = torch.inf
    softmax.add(scores[:, :40], lambda weights: weights[:, :8].clone())
    found = softmax.result()
    assert torch.allclose(found[0], torch.full((8,), 1 / 40)) and found[1:].isnan().all()
