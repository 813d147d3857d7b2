"""The same numbers as diffusers' AutoencoderKL, for the same weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import attention_processor as their_processors
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as TheirDistribution
from given.inputs import image, latent
from given.pairs import CONFIGS, FULL_SIZE_SD, ours_like, pair, theirs_of

from vae_core import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution

# Outputs are of order one; they differ in the order of a few additions at most.
TOLERANCE = 1e-5
# Through both halves the encoder's rounding goes on into the decoder, and both are about 1e-5 from float64.
FORWARD_TOLERANCE = 3e-5
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert theirs.float().std() > 0.01, "a flat result proves nothing"
    assert (ours.float() - theirs.float()).abs().max().item() <= tolerance


def inputs(theirs: Any, batch: int = 2, size: tuple[int, int] = (3, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, latents) that the model takes, of `size` latents."""
    factor = 2 ** (len(theirs.config.block_out_channels) - 1)
    height, width = size
    return (
        image(batch, height * factor, width * factor, theirs.config.in_channels),
        latent(batch, height, width, theirs.config.latent_channels),
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.thorough
def test_encode_decode_forward(name: str) -> None:
    ours, theirs = pair(name)
    x, z = inputs(theirs)
    assert_same(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
    assert_same(ours.encode(x, return_dict=False)[0].mode(), theirs.encode(x, return_dict=False)[0].mode())
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)
    assert_same(ours.decode(z, return_dict=False)[0], theirs.decode(z, return_dict=False)[0])
    assert_same(ours(x).sample, theirs(x).sample)
    drawn = [
        each(x, sample_posterior=True, return_dict=False, generator=torch.Generator().manual_seed(3))[0]
        for each in (ours, theirs)
    ]
    assert_same(*drawn)
    assert not torch.equal(drawn[0], ours(x).sample)


@pytest.mark.thorough
def test_full_size_sd() -> None:
    theirs = theirs_of(FULL_SIZE_SD)
    ours = ours_like(theirs)
    assert ours.num_parameters() == theirs.num_parameters() == 83_653_863
    x, z = image(1, 32, 48), latent(1, 4, 6)
    found = [(each.encode(x).latent_dist.parameters, each.decode(z).sample) for each in (ours, theirs)]
    # Sums over 512 channels: how far from float64 they are depends on the processor, and on the memory format, which
    # our attention leaves as channels_last.
    last = torch.channels_last
    theirs, x, z = theirs.to(memory_format=last), x.to(memory_format=last), z.to(memory_format=last)
    found.append((theirs.encode(x).latent_dist.parameters, theirs.decode(z).sample))
    exact = ours.double()
    wanted = exact.encode(x.double()).latent_dist.parameters, exact.decode(z.double()).sample
    for by_ours, *by_theirs, value in zip(*found, wanted, strict=True):
        assert_same(by_ours, by_theirs[0], FORWARD_TOLERANCE)
        worst = max((each - value).abs().max() for each in by_theirs)
        assert (by_ours - value).abs().max() <= 1.5 * worst < 1.5 * FORWARD_TOLERANCE


@pytest.mark.parametrize("name", ["sd", "sd3", "attention in the levels"])
def test_slicing(name: str) -> None:
    ours, theirs = pair(name)
    x, z = inputs(theirs, batch=3)
    for model in (ours, theirs):
        model.enable_slicing()
    assert_same(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)
    assert_same(ours(x).sample, theirs(x).sample)


def enable_blended(model: Any) -> None:
    """diffusers' tiling, which is our other mode."""
    model.enable_tiling(**({"mode": "blended"} if isinstance(model, AutoencoderKL) else {}))


# Tiles of 32 pixels, a new one every 24. Sizes over, at and under a tile, and rests of every kind that diffusers runs.
@pytest.mark.parametrize(
    "size", [(32, 33), (40, 40), (64, 64), (33, 71), (96, 16), (8, 104), (57, 58), (80, 111), (72, 48)]
)
@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.thorough
def test_blended_tiling_encodes(name: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(name)
    x = image(1, *size)
    untiled = ours.encode(x).latent_dist.parameters
    for model in (ours, theirs):
        enable_blended(model)
    tiled = ours.encode(x).latent_dist.parameters
    assert_same(tiled, theirs.encode(x).latent_dist.parameters)
    assert_same(ours.tiled_encode(x).latent_dist.parameters, theirs.tiled_encode(x).latent_dist.parameters)
    assert (tiled - untiled).abs().max() > 1e-3, "the tiles were not used"


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (8, 8), (9, 4), (3, 7), (12, 2), (1, 10), (10, 10), (6, 13)])
@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.thorough
def test_blended_tiling_decodes(name: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(name)
    z = latent(1, *size, channels=theirs.config.latent_channels)
    untiled = ours.decode(z).sample
    for model in (ours, theirs):
        enable_blended(model)
    tiled = ours.decode(z).sample
    assert_same(tiled, theirs.decode(z).sample)
    assert_same(ours.tiled_decode(z).sample, theirs.tiled_decode(z).sample)
    assert (tiled - untiled).abs().max() > 1e-3, "the tiles were not used"


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.25), (32, 0.5), (64, 0.125), (32, 0.0), (64, 0.75)])
@pytest.mark.thorough
def test_blended_tiling_with_other_tiles(tile: int, overlap: float) -> None:
    ours, theirs = pair("sd")
    x, z = inputs(theirs, batch=2, size=(13, 9))
    for model in (ours, theirs):
        enable_blended(model)
        model.tile_sample_min_size, model.tile_latent_min_size = tile, tile // 8
        model.tile_overlap_factor = overlap
    assert_same(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)
    for model in (ours, theirs):
        model.enable_slicing()
    assert_same(ours(x).sample, theirs(x).sample, FORWARD_TOLERANCE)
    for model in (ours, theirs):
        model.disable_tiling()
    assert_same(ours(x).sample, theirs(x).sample, FORWARD_TOLERANCE)


def test_blend_functions() -> None:
    ours, theirs = pair("f4")
    a, b = image(2, 6, 9), image(2, 6, 9, seed=5)
    for extent in (0, 1, 4, 6, 20):
        for method in ("blend_v", "blend_h"):
            expected = getattr(theirs, method)(a, b.clone(), extent)  # diffusers writes into its argument
            assert_same(getattr(ours, method)(a, b, extent), expected, 1e-6)


@pytest.mark.parametrize("name", ["sd", "attention in the levels", "f4"])
def test_fused_qkv(name: str) -> None:
    ours, theirs = pair(name)
    x, z = inputs(theirs)
    plain = ours.decode(z).sample
    ours.fuse_qkv_projections()
    theirs.fuse_qkv_projections()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_same(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)
    ours.unfuse_qkv_projections()
    theirs.unfuse_qkv_projections()
    assert torch.equal(ours.decode(z).sample, plain)
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)


@pytest.mark.parametrize("processor", ["AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor"])
def test_their_attention_processors_run_in_our_model(processor: str) -> None:
    ours, theirs = pair("sd")
    _, z = inputs(theirs)
    arguments = (2,) if processor == "SlicedAttnProcessor" else ()
    for model in (ours, theirs):
        model.set_attn_processor(getattr(their_processors, processor)(*arguments))
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)
    ours.set_default_attn_processor()
    if arguments == ():
        theirs.set_default_attn_processor()
    assert_same(ours.decode(z).sample, theirs.decode(z).sample)


def test_their_fused_processor_and_processors_by_name() -> None:
    ours, theirs = pair("sd")
    _, z = inputs(theirs)
    expected = theirs.decode(z).sample
    ours.fuse_qkv_projections()
    ours.set_attn_processor(their_processors.FusedAttnProcessor2_0())
    assert_same(ours.decode(z).sample, expected)
    ours.unfuse_qkv_projections()

    assert ours.attn_processors.keys() == theirs.attn_processors.keys()
    by_name = {name: their_processors.AttnProcessor() for name in theirs.attn_processors}
    ours.set_attn_processor(dict(by_name))
    assert ours.attn_processors == by_name
    assert_same(ours.decode(z).sample, expected)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux2"])
def test_bfloat16_within_its_own_spacing(name: str) -> None:
    ours, theirs = (model.to(torch.bfloat16) for model in pair(name))
    x, z = (each.to(torch.bfloat16) for each in inputs(theirs))
    for mine, other in (
        (ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters),
        (ours.decode(z).sample, theirs.decode(z).sample),
    ):
        # 8 bits of mantissa: neighbours are 2^-7 of a value's binade apart.
        spacing = torch.exp2(other.float().abs().clamp_min(2**-7).log2().floor()) * 2**-7
        assert mine.dtype == torch.bfloat16
        assert ((mine.float() - other.float()).abs() <= spacing).all()


def test_small_epsilon_is_in_every_norm() -> None:
    ours, theirs = pair("attention in the levels")
    epsilons = [
        {name: module.eps for name, module in model.named_modules() if isinstance(module, torch.nn.GroupNorm)}
        for model in (ours, theirs)
    ]
    assert epsilons[0] == epsilons[1]
    assert set(epsilons[0].values()) == {1e-6}


def test_a_wrong_epsilon_would_show() -> None:
    """Maps so faint that their variance is near epsilon: 1e-5 in place of 1e-6 is far over the tolerance."""
    ours, theirs = pair("sd3")
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            if any(layer in name for layer in ("conv_in", "conv2", "to_out")):
                parameter.mul_(1e-3)
    x, z = inputs(theirs)

    def differences() -> list[float]:
        results = (model.encode(x).latent_dist.parameters for model in (ours, theirs))
        images = (model.decode(z).sample for model in (ours, theirs))
        return [float((mine - other).abs().max()) for mine, other in (results, images)]

    assert max(differences()) < TOLERANCE
    for part in (ours.encoder, ours.decoder):
        part.conv_norm_out.eps = 1e-5
    assert min(differences()) > 50 * TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dicts_move_both_ways(name: str) -> None:
    ours, theirs = pair(name, seed=4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    fresh = type(theirs)(**CONFIGS[name]).eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    _, z = inputs(theirs)
    assert torch.equal(fresh.decode(z).sample, theirs.decode(z).sample)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }


def test_constructor_defaults_are_theirs() -> None:
    theirs = inspect.signature(diffusers.AutoencoderKL.__init__).parameters
    defaults = AutoencoderKLConfig()
    names = [name for name in theirs if name != "self"]
    assert list(defaults)[: len(names)] == names, "positional arguments must mean the same"
    for name in names:
        assert defaults[name] == theirs[name].default, name
    config = AutoencoderKL().config
    for name, value in diffusers.AutoencoderKL().config.items():
        if not name.startswith("_"):
            assert config[name] == value, name


def test_flux2_defaults_are_theirs() -> None:
    theirs = inspect.signature(diffusers.AutoencoderKLFlux2.__init__).parameters
    config = AutoencoderKLConfig.from_dict({"_class_name": "AutoencoderKLFlux2"})
    for name, parameter in theirs.items():
        if name != "self":
            assert config[name] == parameter.default, name


@pytest.mark.parametrize("name", ["sd", "sd3", "flux2 small decoder"])
def test_their_class_is_built_from_our_config(name: str) -> None:
    ours, theirs = pair(name)
    values = ours.config.to_dict()
    assert values["_class_name"] == type(theirs).__name__
    rebuilt = type(theirs).from_config(values)
    rebuilt.load_state_dict(ours.state_dict(), strict=True)


def written(method: Callable[..., object]) -> Callable[..., object]:
    """A method as its class writes it. Before diffusers 0.42 what it puts around one says nothing of its arguments."""
    around = inspect.getclosurevars(method).nonlocals.get("method")
    return method if around is None or hasattr(method, "__wrapped__") else around


def test_signatures_are_theirs() -> None:
    for method in ("encode", "decode", "forward", "tiled_encode", "tiled_decode", "blend_v", "blend_h"):
        mine = inspect.signature(getattr(AutoencoderKL, method)).parameters
        theirs = inspect.signature(written(getattr(diffusers.AutoencoderKL, method))).parameters
        assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in theirs.values()], method
    ours, other = pair("sd")
    for name in ("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor", "use_slicing", "use_tiling"):
        assert getattr(ours, name) == getattr(other, name), name
    assert ours.num_parameters() == other.num_parameters()
    assert ours.dtype == other.dtype and ours.device == other.device
    other_copy = copy.deepcopy(ours)  # pipelines copy their parts
    assert torch.equal(other_copy.decode(latent()).sample, ours.decode(latent()).sample)


class TestPosterior:
    def distributions(self, deterministic: bool = False) -> tuple[DiagonalGaussianDistribution, Any]:
        moments = latent(2, 5, 3, channels=8) * 20  # far enough for both ends of the clamp
        return (
            DiagonalGaussianDistribution(moments, deterministic),
            TheirDistribution(moments.clone(), deterministic),
        )

    def moderate(self) -> tuple[DiagonalGaussianDistribution, Any]:
        moments = latent(2, 5, 3, channels=8, seed=9)
        return DiagonalGaussianDistribution(moments), TheirDistribution(moments.clone())

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_attributes(self, deterministic: bool) -> None:
        ours, theirs = self.distributions(deterministic)
        for name in ("parameters", "mean", "logvar", "std", "var", "deterministic"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(mine, other) if isinstance(other, torch.Tensor) else mine == other, name
        assert ours.logvar.min() == -30 and ours.logvar.max() == 20
        assert torch.equal(ours.mode(), theirs.mode())

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_sample(self, deterministic: bool) -> None:
        ours, theirs = self.distributions(deterministic)
        drawn = [each.sample(torch.Generator().manual_seed(1)) for each in (ours, theirs)]
        assert torch.equal(*drawn)
        torch.manual_seed(7)
        mine = ours.sample()
        torch.manual_seed(7)
        assert torch.equal(mine, theirs.sample())

    def test_divergence_and_likelihood(self) -> None:
        (ours, theirs), (our_other, their_other) = self.distributions(), self.moderate()
        sample = latent(2, 5, 3, seed=4)
        torch.testing.assert_close(ours.kl(), theirs.kl(), rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.kl(our_other), theirs.kl(their_other), rtol=1e-6, atol=0)
        torch.testing.assert_close(our_other.nll(sample), their_other.nll(sample), rtol=1e-6, atol=0)
        torch.testing.assert_close(our_other.nll(sample, [1]), their_other.nll(sample, [1]), rtol=1e-6, atol=1e-6)
        ours, theirs = self.distributions(deterministic=True)
        assert torch.equal(ours.kl(), theirs.kl()) and torch.equal(ours.nll(sample), theirs.nll(sample))
