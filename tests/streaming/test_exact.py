"""The engine against the reference path: every cut, size, batch, budget and kernel gives the same numbers."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from given.inputs import image, latent
from given.models import ATTENTION_EVERYWHERE, fields, make
from given.thinned import thinned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vae_core
from vae_core import AutoencoderKL, TileSpec
from vae_core.blocks import Downsample
from vae_core.streaming import winograd
from vae_core.streaming.executor import Execution

# The bound that the documentation promises, for images and for moments in units of their standard deviation. The
# reference path itself is about 1e-5 from float64 on these models.
TOLERANCE = 1e-4

CONFIGS = {
    "f4": fields(32, 64, layers_per_block=1),
    "f8": fields(
        32, 32, 64, 64, layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
    ),
    "no attention, odd widths": fields(24, 40, norm_num_groups=8, mid_block_add_attention=False),
    "attention in the levels": ATTENTION_EVERYWHERE,
    "grey": fields(32, 32, 32, in_channels=1, out_channels=1, layers_per_block=3),
    "mish": fields(32, 64, act_fn="mish"),
}


@cache
def vae_of(name: str) -> AutoencoderKL:
    return make(CONFIGS[name])


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def set_up(monkeypatch: pytest.MonkeyPatch, threads: int, transforms: str) -> None:
    """So many threads, and the fast kernels with or without numba."""
    torch.set_num_threads(threads)
    if transforms == "compiled" and not winograd.compiled():
        pytest.skip("numba is not installed")
    monkeypatch.setattr(winograd, "compiled", lambda: transforms == "compiled")


@torch.no_grad()
def assert_decodes_alike(vae: AutoencoderKL, z: Tensor, **options) -> None:
    difference = vae_core.decode(vae, z, **options) - vae.decode_reference(z)
    assert difference.abs().max() < TOLERANCE


@torch.no_grad()
def assert_encodes_alike(vae: AutoencoderKL, x: Tensor, **options) -> None:
    want = vae.encode_reference(x)
    difference = vae_core.encode(vae, x, **options).parameters - want
    assert difference.abs().max() < TOLERANCE * want.std()


WAYS = {"threads": [1, 3], "transforms": ["compiled", "torch"]}


@thinned(name=CONFIGS, size=[None, 1, 2, 5, 13, 64], **WAYS)
@pytest.mark.thorough
def test_any_strip(name, size, threads, transforms, monkeypatch):
    set_up(monkeypatch, threads, transforms)
    vae = vae_of(name)
    assert_decodes_alike(vae, latent(2, 13, 17, model=vae), tiling=TileSpec(size=size))
    factor = vae.config.downscale_factor
    assert_encodes_alike(vae, image(2, 13 * factor + 1, 17 * factor - 1, model=vae), tiling=TileSpec(size=size))


@thinned(name=CONFIGS, size=[(1, 4), (4, 1), (1, 9), (9, 1), (2, 3), (4, 4), (5, 4), (31, 33)], **WAYS)
@pytest.mark.thorough
def test_any_shape(name, size, threads, transforms, monkeypatch):
    set_up(monkeypatch, threads, transforms)
    vae = vae_of(name)
    assert_decodes_alike(vae, latent(1, *size, model=vae))
    assert_encodes_alike(vae, image(1, *(side * vae.config.downscale_factor for side in size), model=vae))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(2, 24),
    width=st.integers(1, 24),
    size=st.none() | st.integers(1, 24),
    budget=st.none() | st.integers(1, 40),
    kernels=st.sampled_from(["winograd", "reference"]),
)
def test_any_combination(batch, height, width, size, budget, kernels):
    vae = SHARED
    z = latent(batch, height, width, model=vae)
    with vae_core.kernels(kernels):
        try:
            budget_bytes = None if budget is None else budget * 2**20
            assert_decodes_alike(vae, z, tiling=TileSpec(size=size), memory_budget=budget_bytes)
        except vae_core.MemoryBudgetError as error:
            assert budget is not None and "at least" in str(error)


SHARED = make(CONFIGS["f4"])


def test_a_budget_sends_maps_to_a_file_and_changes_nothing():
    z = latent(1, 64, 64, model=SHARED)
    free = vae_core.plan_decode(SHARED, z.shape)
    assert not free.places.disk
    for tenths in range(9, 0, -1):  # smaller strips come first
        budget = free.peak_bytes * tenths // 10
        tight = vae_core.plan_decode(SHARED, z.shape, memory_budget=budget)
        assert tight.peak_bytes <= budget
        if tight.places.disk:
            break
    assert tight.places.disk > 0
    difference = vae_core.decode(SHARED, z) - vae_core.decode(SHARED, z, memory_budget=budget)
    assert difference.abs().max() < 1e-5  # matrix products round by where their operands are


@pytest.mark.parametrize("threads", WAYS["threads"])
def test_the_number_of_threads_changes_nothing(threads):
    torch.set_num_threads(threads)
    z = latent(2, 24, 24, model=SHARED)
    result = vae_core.decode(SHARED, z)
    torch.set_num_threads(2)
    assert (result - vae_core.decode(SHARED, z)).abs().max() < 1e-5  # some of torch's products depend on threads


def test_a_batch_equals_its_items():
    z = latent(5, 16, 12, model=SHARED)
    together = vae_core.decode(SHARED, z)
    alone = torch.cat([vae_core.decode(SHARED, item[None]) for item in z])
    assert (together - alone).abs().max() < 1e-5


GIVEN = {
    "float64": Tensor.double,
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}


@thinned(given=GIVEN, name=["f4", "f8", "grey"], kernels=["auto", "direct", "winograd"], **WAYS)
@pytest.mark.thorough
def test_what_is_given_goes_to_the_passes_as_it_is(given, name, kernels, threads, transforms, monkeypatch):
    """A copy of it, in another precision or order, would grow with the image beyond a memory budget."""
    set_up(monkeypatch, threads, transforms)
    vae = vae_of(name)
    taken = []
    run = Execution.run

    def spy(execution, part, *args):
        taken.append(part.data_ptr())
        return run(execution, part, *args)

    monkeypatch.setattr(Execution, "run", spy)
    z = GIVEN[given](latent(1, 13, 9, model=vae))
    x = GIVEN[given](image(1, 40, 24, model=vae))
    with vae_core.kernels(kernels):
        assert (vae_core.decode(vae, z) - vae.decode_reference(z.float())).abs().max() < TOLERANCE
        want = vae.encode_reference(x.float())
        assert (vae_core.encode(vae, x).parameters - want).abs().max() < TOLERANCE * want.std()
    assert taken == [z.data_ptr(), x.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_float32_than_the_reference_path(dtype):
    vae = make(CONFIGS["f8"])
    z = latent(1, 12, 10, model=vae)
    with torch.no_grad():
        want = vae.decode_reference(z)
        half = make(CONFIGS["f8"]).to(dtype)
        plain = (half.decode_reference(z.to(dtype)).float() - want).abs()
        ours = (vae_core.decode(half, z.to(dtype)).float() - want).abs()
    assert ours.mean() <= plain.mean() and ours.max() <= 1.2 * plain.max()  # the largest of few is noisy


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_double_precision_is_double_throughout(name):
    vae = make(CONFIGS[name]).double()
    z, factor = latent(2, 11, 9, model=vae).double(), vae.config.downscale_factor
    assert (vae_core.decode(vae, z) - vae.decode_reference(z)).abs().max() < 1e-12
    x = image(1, 7 * factor, 5 * factor, model=vae).double()
    assert (vae_core.encode(vae, x).parameters - vae.encode_reference(x)).abs().max() < 1e-12


class CircularConv(nn.Module):
    """A convolution whose image continues at its other side along some axes: the reference for `circular`."""

    def __init__(self, conv: nn.Conv2d, x: bool, y: bool) -> None:
        super().__init__()
        self.conv, self.x, self.y = conv, x, y

    def forward(self, image: Tensor) -> Tensor:
        before = 1 if self.conv.stride == (1, 1) else 0
        image = F.pad(image, (before, 1, 0, 0), mode="circular" if self.x else "constant")
        image = F.pad(image, (0, 0, before, 1), mode="circular" if self.y else "constant")
        return F.conv2d(image, self.conv.weight, self.conv.bias, self.conv.stride)


class CircularDownsample(nn.Module):
    def __init__(self, conv: CircularConv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


def made_circular(vae: AutoencoderKL, x: bool, y: bool) -> AutoencoderKL:
    for module in list(vae.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                setattr(module, name, CircularConv(child, x, y))
    for module in list(vae.encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Downsample):
                assert isinstance(child.conv, CircularConv)
                setattr(module, name, CircularDownsample(child.conv))
    return vae


@thinned(circular=["none", "x", "y", "both"], kernels=["winograd", "reference"], name=["f4", "f8"], **WAYS)
@torch.no_grad()
def test_circular_axes(circular, kernels, name, threads, transforms, monkeypatch):
    set_up(monkeypatch, threads, transforms)
    vae = make(CONFIGS[name])
    reference = made_circular(make(CONFIGS[name]), x=circular in ("x", "both"), y=circular in ("y", "both"))
    z = latent(1, 10, 13, model=vae)
    factor = vae.config.downscale_factor
    x = image(1, 6 * factor, 9 * factor, model=vae)
    with vae_core.kernels(kernels):
        decoded = vae_core.decode(vae, z, circular=circular, tiling=TileSpec(size=3))
        moments = vae_core.encode(vae, x, circular=circular, tiling=TileSpec(size=3)).parameters
    assert (decoded - reference.decode_reference(z)).abs().max() < TOLERANCE
    want = reference.encode_reference(x)
    assert (moments - want).abs().max() < TOLERANCE * want.std()


def test_the_reference_replaces_every_convolution_that_looks_around():
    reference = made_circular(make(CONFIGS["f4"]), x=True, y=True)
    assert sum(isinstance(module, CircularDownsample) for module in reference.modules()) == 1
    inside = {id(module.conv) for module in reference.modules() if isinstance(module, CircularConv)}
    kernels = [
        module for module in reference.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    assert all(id(kernel) in inside for kernel in kernels)
