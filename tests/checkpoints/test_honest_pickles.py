"""What training scripts leave beside the weights in a pickle, by every protocol that torch writes: the weights load."""

from __future__ import annotations

import contextlib
import datetime
import io
import pickle
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.files import assert_same_weights, refusal
from given.models import fields, make

from vae_core import AutoencoderKL, inspect_vae, load_vae
from vae_core.checkpoints.open_file import open_tensor_file

PROTOCOLS = (2, 3, 4, 5)

NUMPY: dict[str, Callable[[], Any]] = {
    "an array": lambda: np.arange(6.0).reshape(2, 3),
    "an array of columns": lambda: np.asfortranarray(np.ones((2, 3))),
    "an array with its axes moved": lambda: np.ones((2, 3, 4)).transpose(1, 2, 0),
    "an empty array": lambda: np.zeros((0, 3)),
    "a read-only array": lambda: np.broadcast_to(np.ones(1), (3,)).copy(),
    "a big-endian array": lambda: np.ones(2, ">f4"),
    "an array of texts": lambda: np.array(["a", "bc"]),
    "an array of bytes": lambda: np.array([b"a"]),
    "an array of objects": lambda: np.array(["a", None], object),
    "an array of records": lambda: np.zeros(2, [("a", "f4")]),
    "an array of dates": lambda: np.array(["2024-01-01"], "M8[D]"),
    "a complex array": lambda: np.ones(2, complex),
    "numbers": lambda: [np.float64(0.5), np.float32(1), np.int64(2), np.bool_(True), np.datetime64("2024-01-01")],
    "a number type": lambda: np.dtype("float32"),
    "a state of the old generator": np.random.get_state,
    "generators": lambda: [
        np.random.Generator(kind(0))
        for kind in (
            np.random.PCG64,
            np.random.MT19937,
            np.random.Philox,
            np.random.SFC64,
            np.random.PCG64DXSM,
        )
    ],
    "a generator of the old kind": lambda: np.random.RandomState(0),
}
_EXPONENTS = getattr(torch, "float8_e8m0fnu", torch.float8_e5m2)  # torch < 2.7 has no such type


def _written(*dtypes: torch.dtype) -> list[torch.Tensor]:
    """Tensors of those types that this torch can write: before 2.5 not all of its own."""
    found = []
    for dtype in dtypes:
        with contextlib.suppress(KeyError):
            torch.save(torch.ones(2, dtype=dtype), io.BytesIO())
            found.append(torch.ones(2, dtype=dtype))
    return found


TORCH: dict[str, Callable[[], Any]] = {
    "number types": lambda: [torch.uint16, torch.uint32, torch.uint64, torch.complex32, _EXPONENTS],
    "tensors of rare types": lambda: _written(torch.uint16, torch.uint64, torch.complex64, torch.complex128),
    "8-bit exponents": lambda: torch.ones(2).to(_EXPONENTS),
    "layouts": lambda: [torch.strided, torch.sparse_coo],
    "sparse tensors": lambda: [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()],
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "a tensor without memory": lambda: torch.ones(2, device="meta"),
    "the state of its generator": torch.get_rng_state,
    "a device and a size": lambda: [torch.device("cpu"), torch.Size([1, 2])],
    "a parameter": lambda: torch.nn.Parameter(torch.ones(1)),
}
PYTHON: dict[str, Callable[[], Any]] = {
    "no bytes": lambda: [b"", bytearray()],
    "bytes": lambda: [b"a" * 300, bytearray(b"a")],
    "numbers": lambda: [1 + 2j, 2**200, -(2**70), float("nan"), Decimal("1.5"), Fraction(1, 3)],
    "containers": lambda: [{1}, frozenset((1,)), range(3), slice(1), OrderedDict(a=1), defaultdict(list), Counter("a")],
    "dates": lambda: [datetime.datetime(2024, 1, 1), datetime.timedelta(1)],
    "paths": lambda: Path("a"),
    "the state of its generator": random.getstate,
}
BESIDE = {"numpy": NUMPY, "torch": TORCH, "python": PYTHON}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return make(fields(32))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_beside_the_weights_does_not_matter(
    kind: str, protocol: int, vae: AutoencoderKL, tmp_path: Path
) -> None:
    beside = {name: thing() for name, thing in BESIDE[kind].items()}
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": vae.state_dict(), "beside": beside}, path, pickle_protocol=protocol)
    assert_same_weights(load_vae(path), vae)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_weights_that_are_arrays_of_numpy(protocol: int, vae: AutoencoderKL, tmp_path: Path) -> None:
    """In the order of their memory, columns first, and with axes in any other order."""
    orders: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        np.ascontiguousarray,
        np.asfortranarray,
        lambda w: np.moveaxis(np.ascontiguousarray(np.moveaxis(w, 0, -1)), -1, 0),
    )
    for number, order in enumerate(orders):
        path = tmp_path / f"{number}.pt"
        torch.save({key: order(w.numpy()) for key, w in vae.state_dict().items()}, path, pickle_protocol=protocol)
        assert_same_weights(load_vae(path), vae)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_another_byte_order_are_no_weights(protocol: int, tmp_path: Path) -> None:
    arrays = {"a": np.arange(3, dtype=">f4"), "b": np.arange(3, dtype="<f4")}
    torch.save(arrays, tmp_path / "a.pt", pickle_protocol=protocol)
    source = open_tensor_file(tmp_path / "a.pt")
    assert {name: tensor.tolist() for name, tensor in source.read(source.tensors).items()} == {"b": [0, 1, 2]}


@pytest.mark.parametrize("count", [65_535, 65_536, 65_537])
def test_how_often_a_number_may_be_repeated(count: int, tmp_path: Path) -> None:
    """As often as a bias may have it; numbers that are there may be as many as they are."""
    torch.save({"a": torch.zeros(count)}, tmp_path / "a.pt")
    assert open_tensor_file(tmp_path / "a.pt").tensors["a"].shape == (count,)
    torch.save({"a": torch.zeros(1).expand(count)}, tmp_path / "b.pt")
    if count <= 65_536:
        assert open_tensor_file(tmp_path / "b.pt").tensors["a"].shape == (count,)
    else:
        assert "reaches beyond the end of its storage" in refusal(tmp_path / "b.pt")


def test_weights_that_repeat_numbers(vae: AutoencoderKL, tmp_path: Path) -> None:
    """torch saves what `expand` makes as the few numbers that it repeats."""
    for weights in (vae.decoder.conv_norm_out, vae.encoder.conv_norm_out):
        torch.nn.init.zeros_(weights.bias)
    repeated = {
        key: torch.zeros(1).expand(weight.shape) if key.endswith("conv_norm_out.bias") else weight
        for key, weight in vae.state_dict().items()
    }
    path = tmp_path / "a.pt"
    torch.save(repeated, path)
    assert_same_weights(load_vae(path), vae)
    torch.save({**repeated, "decoder.conv_in.weight": torch.zeros(1).expand(2**40)}, path)
    assert "reaches beyond the end of its storage" in refusal(path)


@pytest.mark.parametrize("name", ["epoch=3, loss: 0.1.ckpt", "vae (1).pt", "日本 VAE.pt", "a..pt", "-.pt", "a'b\"c.pt"])
def test_whatever_a_file_is_called(name: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    """torch names the folder in its archive after the file."""
    path = tmp_path / name
    torch.save(vae.state_dict(), path)
    assert_same_weights(load_vae(path), vae)
    assert inspect_vae(path).problem is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_state_dict_saved_by_pickle_says_how_to_save_it(protocol: int, vae: AutoencoderKL, tmp_path: Path) -> None:
    """Its tensors are files of their own, which are not opened; nothing calls it dangerous."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(vae.state_dict(), protocol))
    said = refusal(path)
    assert "saved by Python's pickle and not by torch.save" in said and "Do not trust" not in said
