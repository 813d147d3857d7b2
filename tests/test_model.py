"""The model by itself: configuration, shapes, constants, slicing and tiling, the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from given.inputs import image, latent
from given.pairs import model, narrow

from vae_core import (
    AutoencoderKL,
    AutoencoderKLConfig,
    ConfigError,
    DiagonalGaussianDistribution,
    ShapeError,
    TilingError,
    VAEError,
)
from vae_core.posterior import randn_like


class TestConfig:
    def test_reads_as_attributes_and_as_mapping(self) -> None:
        config = AutoencoderKL(**narrow(16, 16), scaling_factor=0.5).config
        assert config.scaling_factor == config["scaling_factor"] == config.get("scaling_factor") == 0.5
        assert config.get("nothing", 7) == 7 and "latent_channels" in config and "nothing" not in config
        assert dict(**config)["block_out_channels"] == (16, 16)
        assert AutoencoderKLConfig(**config) == config
        with pytest.raises(KeyError):
            config["nothing"]
        with pytest.raises(AttributeError):
            config.nothing  # type: ignore[attr-defined]  # noqa: B018

    def test_positional_arguments_are_diffusers_order(self) -> None:
        config = AutoencoderKL(1, 4, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), (32,), 2, "silu", 8).config
        assert (config.in_channels, config.out_channels, config.layers_per_block, config.latent_channels) == (
            1,
            4,
            2,
            8,
        )

    def test_from_config_overrides(self) -> None:
        config = AutoencoderKL(**narrow(16, 16)).config
        assert AutoencoderKL.from_config(config, latent_channels=6).config == config.replace(latent_channels=6)
        again = AutoencoderKL.from_config({**config.to_dict(), "_diffusers_version": "0.26.3"})
        assert again.config == config

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"block_out_channels": (30,)}, r"30.*norm_num_groups \(32\)"),
            ({"block_out_channels": (32, 32)}, "2 levels"),
            ({"down_block_types": ("DownBlock2D",)}, "DownBlock2D.*DownEncoderBlock2D"),
            ({"act_fn": "tanh"}, "tanh.*silu"),
            ({"latent_channels": 0}, "latent_channels is 0"),
            ({"latents_mean": (1.0,)}, "1 numbers.*4"),
            ({"sample_size": 0}, "sample_size is 0"),
            ({"widths": (32,)}, "widths.*block_out_channels"),
        ],
    )
    def test_errors_carry_the_values(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            AutoencoderKL(**fields)

    def test_another_class_is_refused_by_name(self) -> None:
        with pytest.raises(ConfigError, match="VQModel.*not an AutoencoderKL"):
            AutoencoderKL.from_config({"_class_name": "VQModel"})
        with pytest.raises(ConfigError, match="vq_embed_dim"):
            AutoencoderKL.from_config({"vq_embed_dim": 3})


class TestShapes:
    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda vae: vae.encode(image()[0]), "3 dimensions.*4 are needed"),
            (lambda vae: vae.encode(image(channels=4)), "4 channels, but this VAE takes 3"),
            (
                lambda vae: vae.decode(latent(channels=16)),
                r"16 channels \(SD3, FLUX.1\), but this VAE takes 4 channels \(SD",
            ),
            (lambda vae: vae.encode(image(0)), "at least one item"),
            (lambda vae: vae.encode(image(1, 7, 64)), "8 by 8"),
            (lambda vae: vae.decode(latent(1, 0, 5)), "1 by 1"),
            (lambda vae: vae.tiled_decode(latent(channels=3)), "3 channels"),
        ],
    )
    def test_errors_are_sentences(self, call: Callable[[AutoencoderKL], Any], says: str) -> None:
        with pytest.raises(ShapeError, match=says) as caught:
            call(model("sd"))
        assert isinstance(caught.value, VAEError) and isinstance(caught.value, ValueError)

    @pytest.mark.parametrize("size", [(8, 8), (9, 15), (16, 17), (23, 24), (25, 31)])
    def test_what_is_over_a_whole_latent_is_dropped(self, size: tuple[int, int]) -> None:
        vae = model("sd")
        x = image(1, *size)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            assert z.shape == (1, 4, size[0] // 8, size[1] // 8)
            assert vae.decode(z).sample.shape == (1, 3, size[0] // 8 * 8, size[1] // 8 * 8)

    @pytest.mark.parametrize("method", ["encode", "decode", "tiled_encode", "tiled_decode", "__call__"])
    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (None, "is a NoneType, not a tensor"),
            (np.zeros((1, 4, 8, 8), np.float32), "is a ndarray, not a tensor. Use from_numpy"),
            ([[1.0]], "is a list, not a tensor"),
            (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "has dtype uint8"),
            (torch.zeros(1, 3, 16, 16, dtype=torch.complex64), "has dtype complex64"),
            (torch.zeros(3, 16).to_sparse(), "is a tensor of the layout sparse_coo"),
        ],
    )
    def test_what_is_no_tensor_of_numbers(self, method: str, given: Any, says: str) -> None:
        with pytest.raises(VAEError, match=says):
            getattr(model("f4"), method)(given)

    def test_outputs_read_by_name_key_and_place(self) -> None:
        vae = model("f4")
        output = vae.decode(latent())
        assert output.sample is output["sample"] is output[0] is next(iter(output.values())) is output.to_tuple()[0]
        assert isinstance(vae.decode(latent(), return_dict=False), tuple)
        assert isinstance(vae.encode(image(), return_dict=False)[0], DiagonalGaussianDistribution)
        assert torch.equal(vae.decode(latent(), generator=torch.Generator()).sample, output.sample)


class TestConstants:
    def test_downsampling_pads_right_and_bottom(self) -> None:
        vae: Any = model("sd")
        down = vae.encoder.down_blocks[0].downsamplers[0]
        with torch.no_grad():
            down.conv.weight.zero_()
            down.conv.bias.zero_()
            down.conv.weight[0, 0] = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
            x = torch.zeros(1, 16, 2, 2)
            x[0, 0] = torch.tensor([[1.0, 10], [100, 1000]])
            assert down(x)[0, 0].item() == 1 * 1 + 10 * 2 + 100 * 4 + 1000 * 5  # the window starts at the first pixel

    def test_logvar_is_clamped_and_stays_differentiable(self) -> None:
        moments = torch.tensor([[0.0, -31.0], [0.0, 21.0], [0.0, 1.5]]).view(3, 2, 1, 1)
        assert DiagonalGaussianDistribution(moments).logvar.flatten().tolist() == [-30.0, 20.0, 1.5]

    def test_every_norm_has_the_small_epsilon(self) -> None:
        norms = [m for m in model("attention in the levels").modules() if isinstance(m, torch.nn.GroupNorm)]
        assert len(norms) > 20 and {norm.eps for norm in norms} == {1e-6}


class TestSlicingAndTiling:
    @pytest.mark.parametrize("name", ["sd", "sd3"])
    def test_slices_are_the_batch(self, name: str) -> None:
        vae = model(name)
        x, z = image(3, 16, 24), latent(3, 2, 3, vae.config.latent_channels)
        with torch.no_grad():
            together = vae.encode(x).latent_dist.parameters, vae.decode(z).sample
            vae.enable_slicing()
            apart = vae.encode(x).latent_dist.parameters, vae.decode(z).sample
            vae.disable_slicing()
            assert torch.equal(vae.decode(z).sample, together[1])
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("size", [(32, 36), (39, 97), (100, 50), (33, 33)])
    def test_rests_that_make_no_latent_are_dropped(self, size: tuple[int, int]) -> None:
        """Where a rest is smaller than a latent, diffusers' tiling fails inside a convolution."""
        vae = model("sd")
        vae.enable_tiling(mode="blended")
        with torch.no_grad():
            z = vae.encode(image(1, *size)).latent_dist.mode()
        assert z.shape[2:] == (size[0] // 8, size[1] // 8)

    @pytest.mark.parametrize("overlap", [0.0, 0.1, 1 / 3, 0.5, 0.9])
    @pytest.mark.parametrize("tile", [8, 24, 40, 44])
    def test_any_tile_gives_the_right_size(self, tile: int, overlap: float) -> None:
        vae = model("sd3")
        vae.enable_tiling(mode="blended")
        vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor = tile, tile // 8, overlap
        with torch.no_grad():
            assert vae.encode(image(1, 48, 72)).latent_dist.mode().shape == (1, 16, 6, 9)
            assert vae.decode(latent(1, 6, 9, 16)).sample.shape == (1, 3, 48, 72)

    def test_tile_sizes_come_from_the_config(self) -> None:
        vae = AutoencoderKL(**narrow(16, 16, 16, 16, sample_size=(512, 768)))
        assert (vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor) == (512, 64, 0.25)
        vae.enable_tiling(False)
        assert not vae.use_tiling
        vae.enable_tiling()
        assert vae.use_tiling
        vae.disable_tiling()
        assert not vae.use_tiling

    def test_exact_tiling_is_the_default_and_changes_nothing(self) -> None:
        vae = model("sd")
        x, z = image(2, 72, 48), latent(2, 9, 6)
        with torch.no_grad():
            untiled = vae.encode(x).latent_dist.parameters, vae.decode(z).sample
            vae.enable_tiling()
            tiled = vae.encode(x).latent_dist.parameters, vae.decode(z).sample
        assert vae.tiling_mode == "exact" and z.shape[2] > vae.tile_latent_min_size
        for one, other in zip(untiled, tiled, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
        with pytest.raises(TilingError, match="seamless"):
            vae.enable_tiling(mode="seamless")  # pyright: ignore[reportArgumentType]

    def test_an_overlap_that_makes_no_tiling(self) -> None:
        vae = model("sd")
        vae.tile_overlap_factor = -0.5
        with pytest.raises(TilingError, match="overlap of -2"):
            vae.tiled_decode(latent(1, 8, 8))


class TestPosterior:
    def distributions(self) -> tuple[DiagonalGaussianDistribution, DiagonalGaussianDistribution]:
        return tuple(DiagonalGaussianDistribution(latent(2, 3, 5, 8, seed)) for seed in (1, 2))  # type: ignore

    def normal(self, posterior: DiagonalGaussianDistribution) -> torch.distributions.Normal:
        return torch.distributions.Normal(posterior.mean, posterior.std)

    def test_temperature_and_repetition(self) -> None:
        one, _ = self.distributions()
        warm, twice = one.tempered(1.5), one.repeated(2)
        torch.testing.assert_close(warm.std, 1.5 * one.std, rtol=1e-6, atol=0)
        assert torch.equal(warm.mean, one.mean)
        assert torch.equal(twice.mean, torch.cat([one.mean, one.mean])) and torch.equal(twice.std[2:], one.std)

    def test_kl_is_torchs(self) -> None:
        one, other = self.distributions()
        standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        for mine, reference in ((one.kl(), standard), (one.kl(other), self.normal(other))):
            expected = torch.distributions.kl_divergence(self.normal(one), reference).sum((1, 2, 3))
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=0)
        assert one.kl(one).abs().max() < 1e-4
        assert DiagonalGaussianDistribution(torch.zeros(1, 8, 2, 2)).kl().item() == 0

    def test_nll_is_torchs(self) -> None:
        posterior, _ = self.distributions()
        sample = latent(2, 3, 5, 4, seed=6)
        expected = -self.normal(posterior).log_prob(sample)
        torch.testing.assert_close(posterior.nll(sample), expected.sum((1, 2, 3)), rtol=1e-5, atol=0)
        torch.testing.assert_close(posterior.nll(sample, dims=[2, 3]), expected.sum((2, 3)), rtol=1e-5, atol=1e-5)

    def test_samples_have_the_right_moments(self) -> None:
        moments = torch.tensor([2.0, math.log(9.0)]).view(1, 2, 1, 1).expand(1, 2, 300, 300)
        sample = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(0))
        assert abs(sample.mean().item() - 2) < 0.05 and abs(sample.std().item() - 3) < 0.05

    def test_a_generator_per_item_is_a_loop(self) -> None:
        posterior, _ = self.distributions()
        drawn = posterior.sample([torch.Generator().manual_seed(seed) for seed in (5, 6)])
        for i, seed in enumerate((5, 6)):
            alone = DiagonalGaussianDistribution(posterior.parameters[i : i + 1])
            assert torch.equal(drawn[i : i + 1], alone.sample(torch.Generator().manual_seed(seed)))
        with pytest.raises(ShapeError, match="3 generators.*batch of 2"):
            posterior.sample([torch.Generator() for _ in range(3)])

    def test_noise_keeps_type(self) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            like = torch.zeros(2, 3, dtype=dtype)
            assert randn_like(like, torch.Generator().manual_seed(0)).dtype == dtype

    def test_odd_moments_are_refused(self) -> None:
        with pytest.raises(ShapeError, match=r"\(1, 5, 2, 2\).*even"):
            DiagonalGaussianDistribution(torch.zeros(1, 5, 2, 2))


def test_counts_dtype_and_device() -> None:
    vae: Any = model("sd")
    assert vae.num_parameters() == sum(p.numel() for p in vae.parameters())
    vae.encoder.requires_grad_(False)
    trainable = sum(p.numel() for part in (vae.decoder, vae.quant_conv, vae.post_quant_conv) for p in part.parameters())
    assert vae.num_parameters(only_trainable=True) == trainable
    assert vae.to(torch.bfloat16).dtype == torch.bfloat16 and vae.device == torch.device("cpu")
