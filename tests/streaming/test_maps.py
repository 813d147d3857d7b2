"""Maps in bands: what is read and written is what one tensor would hold, and nothing large is ever made whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from given.allocations import LargestAllocation
from given.inputs import image, latent
from given.models import ATTENTION_EVERYWHERE, fields, make
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vae_core
from vae_core import AutoencoderKL, TileSpec
from vae_core.streaming import maps
from vae_core.streaming.kernel import cut
from vae_core.streaming.maps import FeatureMap
from vae_core.streaming.pages import pages
from vae_core.streaming.store import MapStore
from vae_core.threads import torch_threads

CPU = torch.device("cpu")
CONFIG = fields(32, 40, layers_per_block=1, norm_num_groups=8)  # with shortcuts that narrow and that widen


def banded(height: int, band_rows: int, batch: int = 2, width: int = 3, channels: int = 5) -> tuple[FeatureMap, Tensor]:
    """A map, and the same in one tensor of its own."""
    whole = torch.arange(float(batch * height * width * channels)).view(batch, height, width, channels)
    bands = tuple(band.clone() for band in whole.split(band_rows, dim=1))
    return FeatureMap(bands, whole.shape), whole


@given(height=st.integers(1, 12), band_rows=st.integers(1, 12), data=st.data())
def test_rows_are_those_of_one_tensor(height: int, band_rows: int, data: st.DataObject) -> None:
    bands, whole = banded(height, band_rows)
    first = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(first + 1, height))
    assert torch.equal(bands.rows(first, stop), whole[:, first:stop])
    assert torch.equal(bands.item(1).rows(first, stop), whole[1:, first:stop])
    assert torch.equal(bands.narrowed(2).rows(first, stop), whole[:, first:stop, :, :2])
    values = -torch.rand(2, stop - first, 3, 5)
    bands.write(first, values)
    whole[:, first:stop] = values
    assert torch.equal(bands.rows(0, height), whole)


@given(height=st.integers(1, 9), band_rows=st.integers(1, 9), first=st.integers(-12, 8), count=st.integers(1, 20))
def test_rows_around_a_strip(height: int, band_rows: int, first: int, count: int) -> None:
    bands, whole = banded(height, band_rows)
    pieces, begin = bands.around(first, first + count, True)
    assert begin == first
    assert torch.equal(maps.joined(pieces), whole[:, torch.arange(first, first + count) % height])
    if first < height and first + count > 0:  # some exist
        pieces, begin = bands.around(first, first + count, False)
        assert begin == max(first, 0)
        assert torch.equal(maps.joined(pieces), whole[:, begin : first + count])


@given(height=st.integers(1, 9), band_rows=st.integers(1, 9), data=st.data())
def test_tokens_are_positions(height: int, band_rows: int, data: st.DataObject) -> None:
    bands, whole = banded(height, band_rows)
    tokens, positions = bands.tokens(), whole.flatten(1, 2)
    assert tokens.shape == (2, 3 * height, 1, 5)
    start = data.draw(st.integers(0, 3 * height - 1))
    stop = data.draw(st.integers(start + 1, 3 * height))
    assert torch.equal(tokens.rows(start, stop)[:, :, 0], positions[:, start:stop])
    tokens.item(0).write(start, -torch.ones(1, stop - start, 1, 5))
    assert (bands.rows(0, height).flatten(1, 2)[0, start:stop] == -1).all()


@given(length=st.integers(1, 60), size=st.integers(1, 60), multiple=st.integers(1, 4), bands=st.integers(1, 15))
def test_spans_stay_within_bands(length: int, size: int, multiple: int, bands: int) -> None:
    within = 4 * bands
    spans = cut(length, size, multiple, within)
    assert [row for span in spans for row in range(*span)] == list(range(length))
    assert all(start // within == (stop - 1) // within for start, stop in spans)
    lengths = [stop - start for start, stop in spans]
    assert max(lengths) == lengths[0] <= max(size, multiple)


@pytest.mark.parametrize(
    ("shape", "dtype", "want"),
    [
        ((1, 2048, 2048, 256), torch.float32, 128),
        ((1, 2048, 2048, 256), torch.bfloat16, 256),
        ((2, 100, 1000, 128), torch.float32, 100),
        ((1, 10_000, 10_001, 512), torch.float32, 12),
        ((1, 10_000, 300_000, 512), torch.float32, 4),
    ],
)
def test_rows_of_a_band(shape: tuple[int, int, int, int], dtype: torch.dtype, want: int) -> None:
    assert maps.band_rows(shape, dtype) == want


# The engine on many bands.


@pytest.fixture(params=[2**13, 2**16], ids=["four rows a band", "some rows a band"])
def small_bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(maps, "BAND_BYTES", request.param)
    return request.param


@pytest.fixture(scope="module", params=["narrow", "attention in the levels"])
def model(request: pytest.FixtureRequest) -> AutoencoderKL:
    return make(CONFIG if request.param == "narrow" else ATTENTION_EVERYWHERE)


@pytest.mark.usefixtures("small_bands", "transforms", "threads")
@pytest.mark.parametrize("kernels", ["winograd", "reference"])
@pytest.mark.parametrize("size", [None, 5])
@torch.no_grad()
@pytest.mark.thorough
def test_bands_change_nothing(model: AutoencoderKL, kernels: Any, size: int | None) -> None:
    z = latent(2, 19, 13)
    factor = model.config.downscale_factor
    x = image(1, 17 * factor, 11 * factor)
    with vae_core.kernels(kernels):
        decoded = vae_core.decode(model, z, tiling=TileSpec(size=size))
        moments = vae_core.encode(model, x, tiling=TileSpec(size=size)).parameters
    assert (decoded - model.decode_reference(z)).abs().max() < 1e-4
    want = model.encode_reference(x)
    assert (moments - want).abs().max() < 1e-4 * want.std()


@pytest.mark.usefixtures("transforms")
@pytest.mark.parametrize("circular", ["x", "y", "both"])
@torch.no_grad()
def test_bands_change_nothing_along_circular_axes(
    model: AutoencoderKL, circular: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = latent(1, 19, 13)
    want = vae_core.decode(model, z, circular=circular)
    monkeypatch.setattr(maps, "BAND_BYTES", 2**12)
    assert (vae_core.decode(model, z, circular=circular) - want).abs().max() < 1e-5


@pytest.mark.usefixtures("small_bands")
@torch.no_grad()
def test_bands_in_half_precision(model: AutoencoderKL) -> None:
    z = latent(1, 19, 13)
    want = model.decode_reference(z)
    got = vae_core.decode(model, z, dtype=torch.bfloat16).float()
    plain = make(CONFIG if len(model.config.block_out_channels) == 2 else ATTENTION_EVERYWHERE).bfloat16()
    assert (got - want).abs().mean() <= (plain.decode_reference(z.bfloat16()).float() - want).abs().mean()


def test_a_budget_is_filled_to_the_last_band(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map need not fit whole: what has room stays in memory."""
    monkeypatch.setattr(maps, "BAND_BYTES", 2**16)
    store = MapStore(CPU, limit=5 * 2**16)
    lent = store.allocate((1, 64, 64, 32), torch.float32)  # eight bands
    assert len(lent.bands) == 8
    assert store.used == {"device": 5 * 2**16, "cpu": 0, "disk": 3 * 2**16}
    store.release(lent)
    other = store.allocate((1, 61, 63, 32), torch.float32)  # its full bands are a little smaller, and fit
    assert store.peak == {"device": 5 * 2**16, "cpu": 0, "disk": 3 * 2**16}
    store.release(other)
    store.drop_free()
    assert not any(store.used.values())


def test_bands_of_a_map_that_cannot_be_had_whole_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "BAND_BYTES", 2**16)
    store, made = MapStore(CPU), []

    def refuse(size: int, what: str) -> Tensor:
        if len(made) == 3:
            raise MemoryError
        made.append(pages(size, what))
        return made[-1]

    monkeypatch.setattr("vae_core.streaming.store.pages", refuse)
    with pytest.raises(MemoryError):
        store.allocate((1, 64, 64, 32), torch.float32)
    assert not store.lent
    store.drop_free()
    assert not any(store.used.values())


@pytest.mark.parametrize("direct", [False, True])
@torch.no_grad()
@pytest.mark.thorough
def test_nothing_is_made_that_is_as_large_as_a_map(
    vae: AutoencoderKL, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bands a thousandth of their size the engine makes nothing much larger than one; so with the true ones."""
    monkeypatch.setattr(maps, "BAND_BYTES", 2**18)
    for name in ("packed_attention.PACKED_KEYS", "stored_attention.KEY_BLOCK"):
        monkeypatch.setattr(f"vae_core.streaming.{name}", 2**8)
    z = latent(1, 128)
    largest_map = 4 * 256 * 256 * 32
    with LargestAllocation() as seen, torch_threads(1), vae_core.kernels("reference" if direct else "winograd"):
        result = vae_core.decode(vae, z, tiling=TileSpec(size=4))
    assert result.nbytes == 4 * 256 * 256 * 3 <= seen.bytes < largest_map // 4
