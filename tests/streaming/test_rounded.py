"""Products in bfloat16, on processors that have instructions for them; sums, and everything else, are in float32."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given.inputs import image, latent
from given.models import fields, make
from given.passes import in_bands, joined, pass_inputs, run_pass
from torch import Tensor, nn

import vae_core
from vae_core import TileSpec
from vae_core.halves import decoder_half, encoder_half
from vae_core.streaming import choose, winograd
from vae_core.streaming.compiled_products import CompiledProducts
from vae_core.streaming.compiled_winograd import CompiledWinograd
from vae_core.streaming.direct import DirectConvolution
from vae_core.streaming.maps import PlannedMap
from vae_core.streaming.numba_functions import as_array
from vae_core.streaming.options import Axes
from vae_core.streaming.packed_attention import PackedAttention
from vae_core.streaming.program import Convolve

BF16 = torch.bfloat16
FOUR_LEVELS = fields(32, 32, 64, 64, layers_per_block=1)
needs_instructions = pytest.mark.skipif(
    not (winograd.compiled() and winograd.jit().BFLOAT16), reason="no numba, or no instructions for bfloat16"
)


def whole_numbers(*shape: int, most: int = 3, seed: int = 0) -> Tensor:
    """Whose products and sums are exact."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@needs_instructions
def test_what_is_multiplied_is_rounded_to_nearest_even() -> None:
    """And nothing else is: of each factor its nearest number, and their sum in float32."""
    left, matrix = torch.randn(7, 64), torch.randn(32, 64)
    found = CompiledProducts.pack(matrix, BF16)(left[:, None])[:, 0]
    wanted = left.to(BF16).double() @ matrix.to(BF16).double().t()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def convolve(scale: str, size: tuple[int, int], channels: tuple[int, int], **options: Any) -> tuple[Tensor, Tensor]:
    """A convolution of whole numbers by the kernel, and in float64."""
    inputs, outputs = channels
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    conv.weight.data = 4 * whole_numbers(*conv.weight.shape, most=1)
    conv.bias.data = whole_numbers(outputs, seed=2)  # type: ignore[union-attr]
    circular = options.pop("circular", "")
    bands = options.pop("bands", None)
    x = whole_numbers(1, *size, inputs, seed=3)
    height, width = (side * (2 if scale == "up" else 1) for side in size)
    target = in_bands(torch.full((1, height, width, outputs), torch.nan, dtype=torch.float32).to(BF16), bands)
    step = Convolve("source", "target", conv, scale=scale)  # type: ignore[arg-type]
    kernel = CompiledWinograd(
        pass_inputs(
            step,
            in_bands(x.to(BF16), bands),
            target,
            dtype=BF16,
            map_dtype=BF16,
            circular=Axes(y="y" in circular, x="x" in circular),
            **options,
        )
    )
    run_pass(kernel)
    y = x.permute(0, 3, 1, 2).double()
    y = F.interpolate(y, scale_factor=2.0, mode="nearest") if scale == "up" else y
    for axes, pad in (("x", (1, 1, 0, 0)), ("y", (0, 0, 1, 1))):
        y = F.pad(y, pad, mode="circular" if axes in circular else "constant")
    wanted = F.conv2d(y, conv.weight.double(), conv.bias.double())  # type: ignore[union-attr]
    return joined(target).float(), wanted.permute(0, 2, 3, 1)


@needs_instructions
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 7), (16, 16)])
@pytest.mark.parametrize("channels", [(16, 16), (32, 48), (144, 16)])
@pytest.mark.parametrize("circular", ["", "x", "y", "xy"])
@torch.no_grad()
def test_a_doubled_map(size: tuple[int, int], channels: tuple[int, int], circular: str) -> None:
    """Its transforms are sums of two or four numbers, so whole numbers come out exactly, rounded once to be stored."""
    found, wanted = convolve("up", size, channels, circular=circular)
    assert torch.equal(found, wanted.to(BF16).float())


@needs_instructions
@pytest.mark.parametrize("options", [{}, {"circular": "xy"}, {"bands": 3}, {"max_rows": 4}])
@pytest.mark.parametrize("size", [(1, 1), (9, 7), (30, 21)])
@torch.no_grad()
def test_winograd(size: tuple[int, int], options: dict[str, Any]) -> None:
    """Rounding the transforms costs a hundredth of the result's deviation; a bit less of each would cost twice that."""
    found, wanted = convolve("same", size, (64, 48), **options)
    error = (found - wanted) / (16 * 2 / 3 * 4 * 64 * 9) ** 0.5  # the deviation by the numbers' variances
    assert error.square().mean().sqrt() < 2e-2 and error.abs().max() < 0.1


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
def test_which_passes_multiply_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a doubled map, at the end of a decode, and of what is stored as it is, where weights are of it too."""
    monkeypatch.setattr(winograd.jit(), "BFLOAT16", True)
    monkeypatch.setattr(choose, "multiplies_bfloat16", lambda: True)

    def rounded(half: Any, shape: tuple[int, int, int, int]) -> list[str]:
        passes = half.program()
        last = choose.last_positions(passes, shape)
        names = []
        for step, _, target in choose.map_shapes(passes, shape):
            kind: Any = PackedAttention
            if isinstance(step, Convolve):
                kind = DirectConvolution if step.scale == "down" else CompiledWinograd
            dtype = choose.pass_dtype(step, kind, torch.float32, BF16, target[1] * target[2] == last)
            assert choose.pass_dtype(step, kind, torch.float32, torch.float32, True) == torch.float32
            if dtype == BF16:
                names.append("attention" if not isinstance(step, Convolve) else step.scale)
        return names

    four, two = make(FOUR_LEVELS).to(BF16), make(fields(32, 64, layers_per_block=1)).to(BF16)
    assert sorted(rounded(decoder_half(four), (1, 4, 16, 16))) == ["attention", *["same"] * 5, *["up"] * 3]
    assert sorted(rounded(encoder_half(four), (1, 3, 128, 128))) == ["attention", *["down"] * 3]
    assert sorted(rounded(decoder_half(two), (1, 4, 16, 16))) == ["attention", "up"]
    assert rounded(encoder_half(make(FOUR_LEVELS)), (1, 3, 128, 128)) == ["attention"]
    monkeypatch.setattr(winograd.jit(), "BFLOAT16", False)
    monkeypatch.setattr(choose, "multiplies_bfloat16", lambda: False)
    assert not rounded(decoder_half(four), (1, 4, 16, 16)) and not rounded(encoder_half(four), (1, 3, 128, 128))


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("weights", [torch.float32, BF16])
@pytest.mark.parametrize("instructions", [False, True])
def test_a_stride_of_what_is_stored_is_left_to_instructions(
    weights: torch.dtype, instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "multiplies_bfloat16", lambda: instructions)
    step = Convolve("source", "target", nn.Conv2d(128, 128, 3, dtype=weights), scale="down")
    source, target = (PlannedMap.whole(torch.Size((1, side, side, 128))) for side in (512, 256))
    for maps in (torch.float32, BF16):
        rounds = instructions and maps == weights == BF16
        found = choose.choose_kernel(step, source, target, torch.float32, maps, torch.device("cpu"), "auto")
        assert found is (DirectConvolution if rounds else CompiledWinograd)


SMALLER = {
    "no AVX": {"NUMBA_ENABLE_AVX": "0"},
    "another processor": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"},
    "any processor": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}
DECODE = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
from given.inputs import latent
from given.models import fields, make
import vae_core
vae = make(fields(32, 32, 64, 64, layers_per_block=1)).bfloat16()
z = latent(1, 9, 8, model=vae).bfloat16()
with torch.no_grad(), vae_core.kernels("winograd"):
    found, wanted = vae_core.decode(vae, z).float(), vae.decode_reference(z).float()
assert (found - wanted).abs().mean() < 0.02, (found - wanted).abs().mean()
print("done")
"""


@pytest.mark.skipif(not winograd.compiled(), reason="numba is not installed")
@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.thorough
def test_what_numba_compiles_for_is_asked(name: str, tmp_path: Path) -> None:
    """Not what this processor is: LLVM ends the process for an instruction that the other one does not have."""
    root = Path(__file__).resolve().parents[2]
    variables = {**os.environ, **SMALLER[name], "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DECODE, str(root), str(root / "tests")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-2000:]


@pytest.mark.parametrize("device", ["meta"])
def test_a_default_device_while_the_package_is_imported(device: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    code = f"import torch; torch.set_default_device({device!r}); import vae_core; vae_core.streaming.choose\n"
    code += "torch.set_default_device('cpu')\n" + DECODE
    command = [sys.executable, "-c", code, str(root), str(root / "tests")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-2000:]


@needs_instructions
@pytest.mark.parametrize("tiling", [None, TileSpec(3)])
@torch.no_grad()
def test_errors_of_a_model_are_smaller_than_torchs_own(tiling: TileSpec | None) -> None:
    half, exact = make(FOUR_LEVELS).bfloat16(), make(FOUR_LEVELS).bfloat16().double()
    z, x = latent(1, 33, 20, model=half).to(BF16), image(1, 200, 136, model=half).to(BF16)
    with vae_core.kernels("winograd"):
        found = vae_core.decode(half, z, tiling=tiling), vae_core.encode(half, x, tiling=tiling).parameters
    torchs_own = half.decode_reference(z), half.encode_reference(x)
    wanted = exact.decode_reference(z.double()), exact.encode_reference(x.double())
    for ours, theirs, right in zip(found, torchs_own, wanted, strict=True):
        ours, theirs = ((each.double() - right).square().mean().sqrt() for each in (ours, theirs))
        assert ours <= theirs


def test_numbers_of_bfloat16_as_compiled_functions_take_them() -> None:
    numbers = torch.tensor([1.0, -2.5, 3e38, torch.inf]).to(BF16)
    assert np.array_equal(as_array(numbers).astype(np.uint32) << 16, numbers.float().numpy().view(np.uint32))
