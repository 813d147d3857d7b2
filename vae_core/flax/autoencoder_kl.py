"""FlaxAutoencoderKL: encoder, posterior and decoder joined, with the interface of diffusers' class of that name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ..config import AutoencoderKLConfig
from ..errors import ConfigError, ImageError, ShapeError
from ..tiling.grid import TileSpec
from .blend import run_blended, run_slices
from .convert import given_config
from .decoder import FlaxDecoder
from .dtypes import floating_type
from .encoder import FlaxEncoder
from .layers import conv, initial_values
from .outputs import FlaxAutoencoderKLOutput, FlaxDecoderOutput
from .posterior import FlaxDiagonalGaussianDistribution
from .pretrained_mixin import FlaxPretrainedMixin, PathLike
from .tiling_mixin import TilingMixin

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class FlaxAutoencoderKL(FlaxPretrainedMixin, TilingMixin, nn.Module):
    """A variational autoencoder between images [B, C, H, W] in [-1, 1] and raw latents z, as a flax.linen module.

    The fields up to `dtype` are those of diffusers v0.26.3's class, the next ones what `AutoencoderKLConfig` has had
    since. The module holds no weights: `model.apply({"params": params}, x, method=model.encode)`. Inside, maps are
    [B, H, W, C]; everything that goes in or comes out has its channels first.

    Attributes:
        dtype: of the computation and its results. The weights are converted to it as they are used; norms and softmax
            are in float32 at least.
        dropout: rate in the resnet blocks, with `deterministic=False` and a "dropout" key. No part of the config.
        use_slicing, use_tiling, tile_sample_min_size, tile_latent_min_size, tile_overlap_factor: how `encode` and
            `decode` work; as AutoencoderKL's, but set by `enable_tiling` and its like in a copy of the module.

    Raises:
        ConfigError: a field is out of its range.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    dtype: Any = jnp.float32
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    decoder_block_out_channels: tuple[int, ...] | None = None
    batch_norm_eps: float = 1e-4
    batch_norm_momentum: float = 0.1
    patch_size: tuple[int, int] | None = None
    dropout: float = 0.0
    use_slicing: bool = False
    use_tiling: bool = False
    tile_sample_min_size: int | None = None
    tile_latent_min_size: int | None = None
    tile_overlap_factor: float = 0.25

    if TYPE_CHECKING:  # Linen's own says that it may return a pair, which it does only for `mutable`

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def __post_init__(self) -> None:
        for name in (field.name for field in dataclasses.fields(AutoencoderKLConfig)):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "dtype", floating_type(self.dtype))
        _ = self.config  # raises ConfigError
        if not 0.0 <= self.dropout <= 1.0:
            raise ConfigError(f"dropout is {self.dropout!r}; it is a share of the activations, from 0 to 1.")
        super().__post_init__()

    @property
    def config(self) -> AutoencoderKLConfig:
        """The fields that make a `config.json`, as attributes and as a mapping."""
        names = (field.name for field in dataclasses.fields(AutoencoderKLConfig))
        return AutoencoderKLConfig(**{name: getattr(self, name) for name in names})

    @classmethod
    def from_config(
        cls, config: AutoencoderKLConfig | Mapping[str, Any] | PathLike, dtype: Any = jnp.float32, **overrides: Any
    ) -> FlaxAutoencoderKL:
        """A model of a config, its fields, a `config.json` or its folder; some fields replaced."""
        found = given_config(config)
        assert found is not None
        return cls(**found.replace(**overrides), dtype=dtype)

    def setup(self) -> None:
        config = self.config
        self.encoder = FlaxEncoder(config, self.dropout, self.dtype)
        self.decoder = FlaxDecoder(config, self.dropout, self.dtype)
        channels = config.latent_channels
        self.quant_conv = conv(2 * channels, 1, self.dtype) if config.use_quant_conv else None
        self.post_quant_conv = conv(channels, 1, self.dtype) if config.use_post_quant_conv else None
        if config.patch_size is not None:  # applied by latent.py, not by encode and decode
            packed = channels * config.patch_size[0] * config.patch_size[1]
            self.bn = self.param("bn", lambda _: latent_statistics(packed))

    def init_weights(self, rng: Array) -> dict[str, Any]:
        """Fresh parameters, in float32, from a key of `jax.random`."""
        side = self.config.spatial_ratio  # one latent: no shape depends on the size
        sample = jnp.zeros((1, self.in_channels, side, side), jnp.float32)
        return initial_values(rng, jax.eval_shape(self.init, {"params": rng}, sample)["params"])

    # Encoding and decoding.

    def encode(
        self, sample: Array, deterministic: bool = True, return_dict: bool = True
    ) -> FlaxAutoencoderKLOutput | tuple[FlaxDiagonalGaussianDistribution]:
        """Encode images [B, in_channels, H, W] in [-1, 1].

        H and W of any size; what is over a multiple of the spatial ratio at the right and the bottom is dropped.

        Args:
            deterministic: False applies `dropout`, with the key "dropout" of `apply`'s `rngs`.

        Returns:
            The posterior over z [B, latent_channels, H // ratio, W // ratio], as `.latent_dist`, or in a tuple.

        Raises:
            ShapeError: not four dimensions, another number of channels, an empty batch or a side under one latent.
            ImageError: whole or complex numbers.
        """
        sample = jnp.asarray(sample)
        if not jnp.issubdtype(sample.dtype, jnp.floating):
            raise ImageError(
                f"this image has numbers of type {sample.dtype}, but images are floating-point, in [-1, 1]. Divide "
                f"bytes by 127.5 and subtract 1."
            )
        self._check_input(sample, "image", self.in_channels, minimum=self.config.spatial_ratio)
        whole = self._is_whole(deterministic)
        tile = None if whole else self._encode_tile(sample)
        if tile is None and (whole or not self.use_slicing):
            moments = self.encode_plain(sample, deterministic)
        else:
            moments = self._in_pieces(FlaxAutoencoderKL.encode_plain, sample, tile, self.config.spatial_ratio, 1)
        posterior = FlaxDiagonalGaussianDistribution(moments)
        return FlaxAutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: Array, deterministic: bool = True, return_dict: bool = True
    ) -> FlaxDecoderOutput | tuple[Array]:
        """Decode raw latents [B, latent_channels, h, w].

        Args:
            deterministic: False applies `dropout`, with the key "dropout" of `apply`'s `rngs`.

        Returns:
            Images [B, out_channels, h * ratio, w * ratio], about [-1, 1] and not clamped, as `.sample`, or in a tuple.

        Raises:
            ShapeError: not four dimensions, another number of channels or an empty batch.
        """
        latents = jnp.asarray(latents)
        self._check_input(latents, "latent", self.latent_channels, minimum=1)
        whole = self._is_whole(deterministic)
        tile = None if whole else self._decode_tile(latents)
        if tile is None and (whole or not self.use_slicing):
            sample = self.decode_plain(latents, deterministic)
        else:
            sample = self._in_pieces(FlaxAutoencoderKL.decode_plain, latents, tile, 1, self.config.spatial_ratio)
        return FlaxDecoderOutput(sample=sample) if return_dict else (sample,)

    def __call__(
        self,
        sample: Array,
        sample_posterior: bool = False,
        deterministic: bool = True,
        return_dict: bool = True,
    ) -> FlaxDecoderOutput | tuple[Array]:
        """Encode and decode images, by the posterior's mode or by a draw from it (`sample_posterior`).

        A draw takes the key "gaussian" of `apply`'s `rngs`.

        Raises:
            ConfigError: `sample_posterior` without a key.
            ShapeError, ImageError: as `encode`.
        """
        if sample_posterior and not (self.has_rng("gaussian") or self.has_rng("params")):
            raise ConfigError('a draw needs a key. Pass rngs={"gaussian": jax.random.PRNGKey(seed)} to `apply`.')
        (posterior,) = self.encode(sample, deterministic=deterministic, return_dict=False)
        z = posterior.sample(self.make_rng("gaussian")) if sample_posterior else posterior.mode()
        return self.decode(z, deterministic=deterministic, return_dict=return_dict)

    def encode_plain(self, sample: Array, deterministic: bool = True) -> Array:
        """Images to moments [B, 2 * latent_channels, h, w] at once, whatever tiling and slicing say."""
        x = self.encoder(jnp.transpose(jnp.asarray(sample, self.dtype), CHANNELS_LAST), deterministic=deterministic)
        moments = x if self.quant_conv is None else self.quant_conv(x)
        return jnp.transpose(moments, CHANNELS_FIRST)

    def decode_plain(self, latents: Array, deterministic: bool = True) -> Array:
        """Latents to images at once, whatever tiling and slicing say."""
        z = jnp.transpose(jnp.asarray(latents, self.dtype), CHANNELS_LAST)
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return jnp.transpose(self.decoder(z, deterministic=deterministic), CHANNELS_FIRST)

    def _is_whole(self, deterministic: bool) -> bool:
        """Whether a call is never cut: each piece would drop other activations, and `init` makes the parameters."""
        return not deterministic or self.is_initializing()

    def _in_pieces(
        self, method: Callable[..., Array], x: Array, tile: TileSpec | None, in_unit: int, out_unit: int
    ) -> Array:
        """A method item by item, or tile by tile, or both. Loops of JAX take functions, so the module is unbound."""
        module, variables = self.unbind()

        def run(piece: Array) -> Array:
            return module.apply(variables, piece, method=method)  # type: ignore[return-value]

        def run_item(x: Array) -> Array:
            return run(x) if tile is None else run_blended(run, x, tile, in_unit, out_unit)

        return run_slices(run_item, x) if self.use_slicing and x.shape[0] > 1 else run_item(x)

    def _check_input(self, x: Array, what: str, channels: int, minimum: int) -> None:
        shape = tuple(x.shape)
        if len(shape) != 4:
            raise ShapeError(
                f"this {what} has {len(shape)} dimensions {shape}; 4 are needed: batch, channels, height, width."
            )
        if shape[1] != channels:
            last = shape[3] == channels
            remedy = "Its channels are last: transpose it." if last else f"Give an {what} with {channels} channels."
            raise ShapeError(
                f"this {what} of shape {shape} has {shape[1]} channels, but this VAE takes {channels}. {remedy}"
            )
        if shape[0] == 0 or min(shape[2:]) < minimum:
            raise ShapeError(f"this {what} has shape {shape}; at least one item of {minimum} by {minimum} is needed.")


def latent_statistics(channels: int) -> dict[str, Array]:
    """FLUX.2's batch norm before any training: floats alone, so that all parameters can be differentiated."""
    return {
        "running_mean": jnp.zeros(channels, jnp.float32),
        "running_var": jnp.ones(channels, jnp.float32),
        "num_batches_tracked": jnp.zeros((), jnp.float32),
    }
