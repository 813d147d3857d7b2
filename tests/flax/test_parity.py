"""The same numbers as AutoencoderKL, for the same weights."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given.inputs import image, latent
from given.pairs import CONFIGS, FULL_SIZE_SD
from given.thinned import mostly_slow
from given.twins import difference, jitted, twin_of, twins
from PIL import Image

import vae_core.flax.attention
import vae_core.flax.layers
from vae_core import AutoencoderKL, ConfigError, ImageError, ShapeError, TilingError, load_vae
from vae_core.cli.common import DEMO, DEMO_PHOTOGRAPH
from vae_core.flax import FlaxAutoencoderKL, from_torch
from vae_core.image import from_pil

# Outputs are of order one; the two differ by the order of additions alone.
TOLERANCE = 2e-5
# Through both halves the encoder's differences go on into the decoder.
FORWARD_TOLERANCE = 5e-5
# Of the models with trained or with many weights, where more additions add up.
WIDE_TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# What takes other lines of the code each: the others differ in numbers, and in what `test_convert.py` compares of all.
QUICK = ("attention in the levels", "no mid attention", "flux2 small decoder", "mish")


@pytest.mark.parametrize("name", mostly_slow(CONFIGS, *QUICK))
@pytest.mark.thorough
def test_encode_and_decode(name: str) -> None:
    vae, model, params = twins(name)
    factor = vae.config.downscale_factor
    x, z = image(2, 3 * factor, 5 * factor, vae.config.in_channels), latent(2, 3, 5, vae.config.latent_channels)

    @jax.jit
    def run(x: Any, z: Any) -> tuple[Any, Any]:
        variables = {"params": params}
        moments = model.apply(variables, x, method=model.encode).latent_dist.parameters
        return moments, model.apply(variables, z, method=model.decode).sample

    moments, decoded = run(x.numpy(), z.numpy())
    assert difference(moments, vae.encode(x).latent_dist.parameters) <= TOLERANCE
    assert difference(decoded, vae.decode(z).sample) <= TOLERANCE


@pytest.mark.parametrize("name", mostly_slow(CONFIGS, "grey"))
def test_forward(name: str) -> None:
    vae, model, params = twins(name)
    factor = vae.config.downscale_factor
    x = image(2, 3 * factor, 5 * factor, vae.config.in_channels)
    assert difference(jitted(model, "__call__")(params, x.numpy()), vae(x).sample) <= FORWARD_TOLERANCE


@pytest.mark.thorough
def test_float64_is_double_throughout() -> None:
    """Far closer than float32 could be: neither norms nor scores nor fresh parameters pass through another type."""
    vae, model, _ = twins("attention in the levels")
    vae = vae.double()
    x, z = image(1, 8, 12).double(), latent(1, 3, 5).double()
    before = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    jax.config.update("jax_enable_x64", True)
    try:
        model, params = model.clone(dtype=jnp.float64), from_torch(vae.state_dict(), vae.config)
        assert difference(jitted(model, "encode")(params, x.numpy()), vae.encode(x).latent_dist.parameters) <= 1e-12
        assert difference(jitted(model, "decode")(params, z.numpy()), vae.decode(z).sample) <= 1e-12
        fresh = jax.eval_shape(model.init_weights, jax.random.PRNGKey(0))
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(fresh)} == {"float32"}
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.mark.thorough
def test_the_demo_vae_on_its_photograph() -> None:
    vae = load_vae(DEMO, dtype="float32")
    model, params = FlaxAutoencoderKL.from_pretrained(DEMO)
    with Image.open(DEMO_PHOTOGRAPH) as photograph:
        x = from_pil(photograph.crop((120, 60, 216, 124))).pixels
    z = vae.encode(x).latent_dist.mode()
    assert (
        difference(jitted(model, "encode")(params, x.numpy()), vae.encode(x).latent_dist.parameters) <= WIDE_TOLERANCE
    )
    assert difference(jitted(model, "decode")(params, z.numpy()), vae.decode(z).sample) <= WIDE_TOLERANCE
    assert difference(jitted(model, "__call__")(params, x.numpy()), vae(x).sample) <= WIDE_TOLERANCE


@pytest.mark.slow
def test_full_size_sd() -> None:
    vae = AutoencoderKL(**FULL_SIZE_SD).eval()
    model, params = twin_of(vae)
    x, z = image(1, 64, 96), latent(1, 8, 12)
    assert (
        difference(jitted(model, "encode")(params, x.numpy()), vae.encode(x).latent_dist.parameters) <= WIDE_TOLERANCE
    )
    assert difference(jitted(model, "decode")(params, z.numpy()), vae.decode(z).sample) <= WIDE_TOLERANCE


def test_sides_that_are_no_multiple() -> None:
    vae, model, params = twins("f4")
    x = image(1, 27, 34)
    assert difference(jitted(model, "encode")(params, x.numpy()), vae.encode(x).latent_dist.parameters) <= TOLERANCE


def test_a_wrong_epsilon_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps so faint that their variance is near epsilon: 1e-5 in place of 1e-6 is far over the tolerance."""
    vae, *_ = twins("sd3")
    for name, parameter in vae.named_parameters():
        if any(layer in name for layer in ("conv_in", "conv2", "to_out")):
            parameter.mul_(1e-3)
    model, params = twin_of(vae)
    x = image(1, 24, 40)
    expected = vae.encode(x).latent_dist.parameters
    assert difference(jitted(model, "encode")(params, x.numpy()), expected) <= TOLERANCE
    monkeypatch.setattr(vae_core.flax.layers, "NORM_EPS", 1e-5)
    assert difference(jitted(model, "encode")(params, x.numpy()), expected) > 50 * TOLERANCE


def test_norms_keep_their_digits_far_from_zero() -> None:
    """Deviations of 1 around 1000. By mean(x^2) - mean(x)^2 the variance is off by a few percent."""
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)) + 1000
    expected = torch.nn.functional.group_norm(x.double(), 2, eps=1e-6).permute(0, 2, 3, 1).float()
    norm = vae_core.flax.layers.group_norm(2, jnp.float32)
    variables = norm.init(jax.random.PRNGKey(0), jnp.zeros((1, 1, 1, 8)))
    array = x.permute(0, 2, 3, 1).numpy()
    assert difference(norm.apply(variables, array), expected) < 2e-3  # 1000 itself is rounded by 3e-5
    usual = nn.GroupNorm(2).apply(variables, array)
    assert difference(usual, expected) > 2e-3, "this would not tell the two apart"


@pytest.mark.thorough
def test_attention_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [latent(2, 5, 7, channels=6, seed=i).flatten(2).mT for i in range(3)]  # [2, 35, 6]
    query, key, value = (jnp.asarray(tensor.numpy()) for tensor in tensors)

    def loss(query: Any, key: Any, value: Any) -> Any:
        return (vae_core.flax.attention.attend(query, key, value) ** 2).sum()

    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    whole = both(query, key, value)
    expected = torch.nn.functional.scaled_dot_product_attention(tensors[0], tensors[1], tensors[2])
    assert difference(vae_core.flax.attention.attend(query, key, value), expected) <= 1e-6
    for size in (1, 8, 34):
        monkeypatch.setattr(vae_core.flax.attention, "QUERIES_AT_ONCE", size)
        assert difference(vae_core.flax.attention.attend(query, key, value), expected) <= 1e-6
    pieces = both(query, key, value)
    for one, other in zip(jax.tree_util.tree_leaves(whole), jax.tree_util.tree_leaves(pieces), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sd3", "attention in the levels"])
@pytest.mark.thorough
def test_bfloat16_is_as_close_as_torchs(name: str) -> None:
    """Both round differently; neither may be further from the result in float32 than the other by much."""
    vae, model, params = twins(name)
    x, z = image(2, 24, 40), latent(2, 3, 5, vae.config.latent_channels)
    exact = {"encode": vae.encode(x).latent_dist.parameters, "decode": vae.decode(z).sample}
    vae, half = vae.to(torch.bfloat16), model.clone(dtype=jnp.bfloat16)
    theirs = {"encode": vae.encode(x.bfloat16()).latent_dist.parameters, "decode": vae.decode(z.bfloat16()).sample}
    for method, given in (("encode", x), ("decode", z)):
        for weights in (params, half.to_bf16(params)):
            ours = jitted(half, method)(weights, given.numpy())
            assert ours.dtype == jnp.bfloat16
            error, their_error = (
                (torch.from_numpy(np.array(each, np.float32)) - exact[method]).square().mean().sqrt().item()
                for each in (ours, theirs[method].float().numpy())
            )
            assert 1e-4 < error < 1.5 * their_error


class TestTiling:
    # Tiles of 32 pixels, a new one every 24: rests of several kinds, in one and in both directions.
    @pytest.mark.parametrize("size", [(64, 64), (33, 71)])
    @pytest.mark.thorough
    def test_blended_encodes(self, size: tuple[int, int]) -> None:
        vae, model, params = twins("no mid attention", sample_size=32)
        x = image(1, *size)
        untiled = vae.encode(x).latent_dist.parameters
        vae.enable_tiling(mode="blended")
        ours = jitted(model.enable_tiling(), "encode")(params, x.numpy())
        assert difference(ours, vae.encode(x).latent_dist.parameters) <= TOLERANCE
        assert difference(ours, untiled) > 1e-3, "the tiles were not used"

    @pytest.mark.parametrize("size", [(4, 5), (10, 10)])
    @pytest.mark.thorough
    def test_blended_decodes(self, size: tuple[int, int]) -> None:
        vae, model, params = twins("no mid attention")
        z = latent(1, *size)
        untiled = vae.decode(z).sample
        vae.enable_tiling(mode="blended")
        ours = jitted(model.enable_tiling(), "decode")(params, z.numpy())
        assert difference(ours, vae.decode(z).sample) <= TOLERANCE
        assert difference(ours, untiled) > 1e-3, "the tiles were not used"

    @pytest.mark.thorough
    def test_tiles_of_other_sizes_and_slices(self) -> None:
        vae, model, params = twins("mish")
        vae.enable_tiling(mode="blended")
        vae.enable_slicing()
        sizes = {"tile_sample_min_size": 11, "tile_latent_min_size": 5, "tile_overlap_factor": 0.4}
        for name, value in sizes.items():
            setattr(vae, name, value)
        model = model.clone(**sizes).enable_tiling().enable_slicing()
        x, z = image(2, 20, 8), latent(2, 8, 4)
        assert difference(jitted(model, "encode")(params, x.numpy()), vae.encode(x).latent_dist.parameters) <= TOLERANCE
        assert difference(jitted(model, "decode")(params, z.numpy()), vae.decode(z).sample) <= TOLERANCE

    def test_up_to_a_tile_nothing_is_cut(self) -> None:
        model = FlaxAutoencoderKL(sample_size=16).enable_tiling()
        params = model.init_weights(jax.random.PRNGKey(0))
        for size, cut in (((16, 16), False), ((17, 8), True)):
            x = jnp.zeros((1, 3, *size))
            traced = jax.make_jaxpr(lambda x: model.apply({"params": params}, x, method=model.encode).latent_dist)(x)
            assert ("scan" in str(traced)) is cut

    def test_slices(self) -> None:
        vae, model, params = twins("attention in the levels")
        x = image(3, 12, 20)
        run = jitted(model.enable_slicing(), "__call__")
        assert difference(run(params, x.numpy()), vae(x).sample) <= TOLERANCE

    def test_each_gives_a_copy(self) -> None:
        model = FlaxAutoencoderKL()
        assert model.enable_tiling().use_tiling and model.enable_slicing().use_slicing
        assert not model.use_tiling and not model.use_slicing
        assert model.enable_tiling().disable_tiling() == model == model.enable_slicing().disable_slicing()
        with pytest.raises(TilingError, match="'exact' exists in AutoencoderKL only"):
            model.enable_tiling(mode="exact")
        with pytest.raises(TilingError, match="'round'"):
            model.enable_tiling(mode="round")


@pytest.mark.parametrize(
    ("shape", "method", "says"),
    [
        ((3, 8, 8), "encode", "3 dimensions"),
        ((1, 4, 8, 8), "encode", "has 4 channels, but this VAE takes 3"),
        ((1, 8, 8, 3), "encode", "last: transpose"),
        ((1, 3, 3, 8), "encode", "one item of 4 by 4"),
        ((0, 3, 8, 8), "encode", "at least one item"),
        ((1, 16, 8, 8), "decode", "has 16 channels, but this VAE takes 4"),
        ((1, 8, 8, 4), "decode", "last: transpose"),
    ],
)
def test_what_does_not_fit(shape: tuple[int, ...], method: str, says: str) -> None:
    _, model, params = twins("f4")
    with pytest.raises(ShapeError, match=says):
        model.apply({"params": params}, jnp.zeros(shape), method=getattr(model, method))


def test_what_images_are_no_images() -> None:
    _, model, params = twins("f4")
    for dtype in (jnp.uint8, jnp.int32, jnp.complex64):
        with pytest.raises(ImageError, match="Divide bytes by 127.5 and subtract 1"):
            model.apply({"params": params}, jnp.zeros((1, 3, 8, 8), dtype), method=model.encode)
    with pytest.raises(ConfigError, match="dropout is 1.5"):
        FlaxAutoencoderKL(dropout=1.5)


@pytest.mark.thorough
def test_arrays_of_other_libraries_and_other_ways_to_call() -> None:
    vae, model, params = twins("f4")
    z = latent(1, 2, 3)
    expected = vae.decode(z).sample
    bound = model.bind({"params": params})
    for given in (z, z.numpy(), z.double().numpy(), z.tolist(), jnp.asarray(z.numpy())):
        assert difference(bound.decode(given).sample, expected) <= TOLERANCE
    sliced = model.enable_slicing().bind({"params": params})
    assert difference(sliced.decode(np.repeat(z.numpy(), 2, 0)).sample, expected.repeat(2, 1, 1, 1)) <= TOLERANCE
