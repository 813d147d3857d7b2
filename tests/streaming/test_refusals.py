"""What the engine refuses or works around: wrong arguments, and numbers that are not finite."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from given.inputs import image, latent
from given.models import SMALL, make
from given.runs import SIZE

import vae_core
from vae_core import AutoencoderKL, ConfigError, NonFiniteError, ShapeError, TileSpec, TilingError

# Numbers that are not finite.


def overflowing(scale: float) -> AutoencoderKL:
    """A half-precision model whose middle overflows for a large scale, and whose output does not."""
    vae = make(SMALL)
    with torch.no_grad():
        vae.decoder.mid_block.resnets[0].conv2.weight.mul_(scale)  # type: ignore[union-attr, operator]
    return vae.half()


@torch.no_grad()
def test_an_overflow_in_half_precision_is_redone_wider(caplog: pytest.LogCaptureFixture) -> None:
    vae, z = overflowing(1e7**0.5 * 1e2), latent(1, SIZE).half()
    assert not vae.decode_reference(z).isfinite().all()
    result = vae_core.decode(vae, z)
    assert result.dtype == torch.float16 and result.isfinite().all()
    assert "out of the range of float16" in caplog.text and "now run in float32" in caplog.text
    want = vae.float().decode_reference(z.float())
    assert (result.float() - want).abs().max() < 2e-2 * want.abs().max()


@torch.no_grad()
def test_half_precision_without_overflow_stays(caplog: pytest.LogCaptureFixture) -> None:
    vae, z = overflowing(1.0), latent(1, SIZE).half()
    result = vae_core.decode(vae, z)
    assert result.dtype == torch.float16 and not caplog.text
    assert (result.float() - vae.float().decode_reference(z.float())).abs().max() < 2e-2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_input_that_is_not_finite(value: float, vae: AutoencoderKL) -> None:
    z, x = latent(1, SIZE), image(1, 2 * SIZE)
    z[0, 0, 0, :3], x[0, 0, 0, :5] = value, value
    with pytest.raises(NonFiniteError, match=f"latent already has 3 values .* of {z.numel()}"):
        vae_core.decode(vae, z)
    with pytest.raises(NonFiniteError, match=f"image already has 5 values .* of {x.numel()}"):
        vae_core.encode(vae, x)


@pytest.mark.parametrize(
    "tiling", [None, *(TileSpec(size, overlap=2, mode="blended") for size in (4, SIZE, 64))], ids=str
)
@pytest.mark.parametrize("scale", [1e4, 1e15, 1e20, 1e25, 1e30, -5e37])
def test_large_values_are_right_or_refused(scale: float, tiling: TileSpec | None, vae: AutoencoderKL) -> None:
    """The variance of values above 1e19 is infinite in float32; divided by it they are finite and wrong."""
    z, x = latent(1, SIZE) * scale, image(1, 2 * SIZE) * scale
    if abs(scale) > 1e16:
        for run, given in ((vae_core.decode, z), (vae_core.encode, x)):
            with pytest.raises(NonFiniteError, match="the range of"):
                run(vae, given, tiling=tiling)
        return
    wide = AutoencoderKL.from_config(vae.config).double()
    wide.load_state_dict(vae.state_dict())
    want = vae_core.decode(wide, z.double(), tiling=tiling)
    assert (vae_core.decode(vae, z, tiling=tiling) - want).abs().max() < 2e-5 * want.abs().max()


# Wrong arguments.


def test_tensors_without_values(vae: AutoencoderKL) -> None:
    for run, given in ((vae_core.decode, latent(1, 8)), (vae_core.encode, image(1, 16))):
        with pytest.raises(ShapeError, match="meta device"):
            run(vae, given.to("meta"))


@pytest.mark.parametrize("shape", [None, 5, "1488", [1, 4, 8.0, 8], torch.Size, {"a": 1}], ids=str)
def test_what_is_no_shape(shape: Any, vae: AutoencoderKL) -> None:
    for plan in (vae_core.plan_decode, vae_core.plan_encode, vae_core.prepare_decode):
        with pytest.raises(ShapeError, match="Give four whole numbers"):
            plan(vae, shape)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"circular": "z"}, "circular is 'z'"),
        ({"circular": None}, "circular is None"),
        ({"circular": "x", "tiling": TileSpec(size=8, overlap=2, mode="blended")}, "blended tiles cannot be circular"),
    ],
)
def test_wrong_circular_axes(options: dict[str, Any], said: str, vae: AutoencoderKL) -> None:
    with pytest.raises(TilingError, match=said):
        vae_core.decode(vae, latent(1, SIZE), **options)
    with pytest.raises(TilingError, match=said):
        vae_core.encode(vae, image(1, 2 * SIZE), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size 0"),
        ({"size": -3}, "size -3"),
        ({"mode": "exactly"}, "'exactly'"),
        ({"size": None, "mode": "blended"}, "needs a tile size"),
        ({"size": 8, "overlap": 8, "mode": "blended"}, "overlap of 8"),
        ({"size": 8, "overlap": -1, "mode": "blended"}, "overlap of -1"),
    ],
)
def test_wrong_tiles(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TilingError, match=said):
        TileSpec(**options)


@pytest.mark.parametrize("dtype", ["float23", torch.int64, 16])
def test_a_precision_that_is_none(dtype: Any, vae: AutoencoderKL) -> None:
    with pytest.raises(ConfigError, match=f"dtype is {dtype!r}; the computation can be in .*, or 'auto', or None"):
        vae_core.decode(vae, latent(1, SIZE), dtype=dtype)


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 3, 8, 8), (0, 4, 8, 8), (1, 4, 0, 8)])
def test_wrong_shapes(shape: tuple[int, ...], vae: AutoencoderKL) -> None:
    with pytest.raises(vae_core.ShapeError, match="latent"):
        vae_core.decode(vae, torch.zeros(shape))
    with pytest.raises(vae_core.ShapeError, match="latent"):
        vae_core.plan_decode(vae, shape)  # type: ignore[arg-type]


# Blended tiles.


def test_blended_tiles_are_those_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    from given.pairs import pair

    ours, theirs = pair("sd")
    theirs.tile_latent_min_size, theirs.tile_sample_min_size, theirs.tile_overlap_factor = 8, 64, 0.25
    theirs.enable_tiling()
    tiling = TileSpec(size=8, overlap=2, mode="blended")
    with torch.no_grad():
        want = theirs.decode(latent(1, 13, 19)).sample
        moments = theirs.encode(image(1, 104, 152)).latent_dist.parameters
    decoded = vae_core.decode(ours, latent(1, 13, 19), tiling=tiling)
    assert (decoded - want).abs().max() < 1e-5
    encoded = vae_core.encode(ours, image(1, 104, 152), tiling=tiling).parameters
    assert (encoded - moments).abs().max() < 1e-5
    assert (decoded - vae_core.decode(ours, latent(1, 13, 19))).abs().max() > 1e-3  # which exact tiles are not


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 2**40, 2**40), (2**40, 4, 8, 8), (2**70, 4, 8, 8), (1, 4, 10**4000, 16), (1, 4, 10**5000, 16)],
    ids=["a side", "a batch", "beyond 64 bits", "digits", "too many digits to write"],
)
@pytest.mark.parametrize("plan", [vae_core.plan_decode, vae_core.prepare_decode])
def test_what_no_machine_has_is_not_planned(plan: Any, shape: tuple[int, ...]) -> None:
    start = time.perf_counter()
    with pytest.raises(ShapeError, match="2\\^44 numbers"):
        plan(make(SMALL), shape)
    assert time.perf_counter() - start < 1


def test_the_largest_that_is_planned() -> None:
    start = time.perf_counter()
    assert vae_core.plan_decode(make(SMALL), (1, 4, 2**20, 2**20), memory_budget=2**40).flops > 2**60
    assert time.perf_counter() - start < 20
