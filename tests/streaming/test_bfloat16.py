"""bfloat16 on a CPU: maps are stored in it, and passes compute in float32."""

from __future__ import annotations

import pytest
import torch
from given.inputs import image, latent
from given.models import ATTENTION_EVERYWHERE, fields, make

import vae_core
from vae_core import TileSpec
from vae_core.halves import decoder_half
from vae_core.streaming import choose, winograd
from vae_core.streaming.choose import KernelChoice, is_faster, kernels, may_be_faster
from vae_core.streaming.maps import PlannedMap
from vae_core.streaming.program import INPUT, OUTPUT, Convolve

CPU = torch.device("cpu")
WIDE = fields(32, 64, layers_per_block=1)
CONFIGS = {"usual": WIDE, "attention everywhere": ATTENTION_EVERYWHERE}


@pytest.mark.parametrize("choice", ["auto", "winograd"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
@pytest.mark.thorough
def test_errors_are_smaller_than_torchs_own(
    name: str, compiled: bool, choice: KernelChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and not winograd.compiled():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(winograd, "compiled", lambda: compiled)
    half, exact = make(CONFIGS[name]).bfloat16(), make(CONFIGS[name]).bfloat16().double()
    z, x = latent(2, 13, 10, model=half).bfloat16(), image(1, 24, 40, model=half).bfloat16()
    with kernels(choice):
        found = vae_core.decode(half, z), vae_core.encode(half, x).parameters
    torchs_own = half.decode_reference(z), half.encode_reference(x)
    wanted = exact.decode_reference(z.double()), exact.encode_reference(x.double())
    for ours, theirs, right in zip(found, torchs_own, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        ours, theirs = ((each.double() - right).square().mean().sqrt() for each in (ours, theirs))
        assert ours <= theirs


@torch.no_grad()
def test_what_is_stored_is_all_that_is_rounded() -> None:
    """With maps in float32 the same passes give float32's result, so the rest of the error is that of storing."""
    half, z = make(WIDE).bfloat16(), latent(1, 20, 12, model=make(WIDE)).bfloat16()
    wide = make(WIDE).bfloat16().float()
    assert torch.equal(vae_core.decode(half, z, dtype=torch.float32), vae_core.decode(wide, z.float()))


@pytest.mark.parametrize("options", [{"tiling": TileSpec(3)}, {"memory_budget": 2**23}, {"circular": "both"}])
@torch.no_grad()
def test_any_way_of_cutting(options: dict) -> None:
    """Sums of strips are in another order, by which a stored number may become its neighbour: no more error by that."""
    half, z = make(WIDE).bfloat16(), latent(1, 33, 20, model=make(WIDE)).bfloat16()
    axes = {key: value for key, value in options.items() if key == "circular"}
    wanted = vae_core.decode(half, z, **axes).float()
    found = vae_core.decode(half, z, **{**options, "tiling": options.get("tiling", TileSpec(5))}).float()
    exact = vae_core.decode(make(WIDE).bfloat16().double(), z.double(), **axes)
    error = (wanted - exact).abs()
    assert (found - exact).abs().mean() <= 1.1 * error.mean() and (found - exact).abs().max() <= 1.5 * error.max()
    assert (found - wanted).abs().mean() <= error.mean()


def test_maps_take_half_the_memory() -> None:
    vae = make(WIDE)
    wide = vae_core.plan_decode(vae, (1, 4, 128, 128), memory_budget=2**33)
    half = vae_core.plan_decode(vae.bfloat16(), (1, 4, 128, 128), memory_budget=2**33)
    assert 2 * half.places.device == wide.places.device
    assert half.fast_share == wide.fast_share > 0


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_models_own_method_takes_strips_where_they_are_faster(dtype: torch.dtype) -> None:
    vae = make(fields(128, 128, layers_per_block=1))
    half, x = decoder_half(vae.to(dtype)), latent(1, 64, 64, model=vae).to(dtype)
    assert may_be_faster(half, (1, 4, 64, 64), x.dtype, x.device)
    assert is_faster(half.program(), (1, 4, 64, 64), dtype, CPU, "auto")


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("instructions", [True, False])
def test_a_narrow_models_own_method_takes_strips_for_enough_work(
    dtype: torch.dtype, instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small image alone there is too little, unless the modules are slow in this precision."""
    monkeypatch.setattr("vae_core.streaming.choose.multiplies_bfloat16", lambda: instructions)
    half = decoder_half(make(fields(32, 64, 128, 128, layers_per_block=1)).to(dtype))
    shapes = [(1, 4, 32, 32), (4, 4, 32, 32), (1, 4, 64, 64)]
    faster = [is_faster(half.program(), shape, dtype, CPU, "auto") for shape in shapes]
    assert faster == [dtype == torch.bfloat16 and not instructions, True, True]


@pytest.mark.parametrize(
    ("channels", "side", "wins"),
    [((64, 32), 128, True), ((128, 128), 64, True), ((128, 128), 32, False), ((512, 512), 32, False)],
    ids=str,
)
def test_compiled_winograd_wins_sooner(channels: tuple[int, int], side: int, wins: bool) -> None:
    """As `benchmarks/kernels.py` measured it; in torch's operations none of these is worth it."""
    conv = torch.nn.Conv2d(*channels, 3, padding=1)
    step = Convolve(INPUT, OUTPUT, conv)
    target = PlannedMap.whole((1, side, side, channels[1]))
    assert choose._winograd_wins(step, channels[0], target, True) == wins
    assert not choose._winograd_wins(step, channels[0], target, False)
