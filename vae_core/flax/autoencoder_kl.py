"""FlaxAutoencoderKL: encoder, posterior and decoder joined, with the interface of diffusers' class of that name."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ..errors import ConfigError, ImageError, ShapeError
from ..tiling.grid import TileSpec
from .blend import run_blended, run_slices
from .network import FlaxNetwork
from .outputs import FlaxAutoencoderKLOutput, FlaxDecoderOutput
from .posterior import FlaxDiagonalGaussianDistribution
from .pretrained_mixin import FlaxPretrainedMixin
from .tiling_mixin import TilingMixin


class FlaxAutoencoderKL(FlaxPretrainedMixin, TilingMixin, FlaxNetwork):
    """A variational autoencoder between images [B, C, H, W] in [-1, 1] and raw latents z, as a flax.linen module.

    The fields up to `dtype` are those of diffusers v0.26.3's class, the next ones what `AutoencoderKLConfig` has had
    since. The module has no weights of its own: `model.apply({"params": params}, x, method=model.encode)`. Inside,
    maps are [B, H, W, C]; everything that goes in or comes out has its channels first.

    Attributes:
        dtype: of the computation and its results. The weights are converted to it as they are used; norms and softmax
            are in float32 at least.
        dropout: rate in the resnet blocks, with `deterministic=False` and a "dropout" key. No part of the config.
        use_slicing, use_tiling, tile_sample_min_size, tile_latent_min_size, tile_overlap_factor: how `encode` and
            `decode` work; as AutoencoderKL's, but set by `enable_tiling` and its like in a copy of the module.

    Raises:
        ConfigError: a field is out of its range.
    """

    def encode(
        self, sample: Array, deterministic: bool = True, return_dict: bool = True
    ) -> FlaxAutoencoderKLOutput | tuple[FlaxDiagonalGaussianDistribution]:
        """Encode images [B, in_channels, H, W] in [-1, 1].

        H and W of any size; what exceeds a multiple of the downscale factor at the right and the bottom is dropped.

        Args:
            deterministic: False applies `dropout`, with the key "dropout" of `apply`'s `rngs`.

        Returns:
            The posterior over z [B, latent_channels, H // factor, W // factor], as `.latent_dist`, or in a tuple.

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
        self._check_input(sample, "image", self.in_channels, minimum=self.config.downscale_factor)
        whole = self._is_whole(deterministic)
        tile = None if whole else self._encode_tile(sample)
        if tile is None and (whole or not self.use_slicing):
            moments = self.encode_reference(sample, deterministic)
        else:
            moments = self._in_pieces(FlaxAutoencoderKL.encode_reference, sample, tile, self.config.downscale_factor, 1)
        posterior = FlaxDiagonalGaussianDistribution(moments)
        return FlaxAutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, latents: Array, deterministic: bool = True, return_dict: bool = True
    ) -> FlaxDecoderOutput | tuple[Array]:
        """Decode raw latents [B, latent_channels, h, w].

        Args:
            deterministic: False applies `dropout`, with the key "dropout" of `apply`'s `rngs`.

        Returns:
            Images [B, out_channels, h * factor, w * factor], about [-1, 1], not clamped, as `.sample`, or in a tuple.

        Raises:
            ShapeError: not four dimensions, another number of channels or an empty batch.
        """
        latents = jnp.asarray(latents)
        self._check_input(latents, "latent", self.latent_channels, minimum=1)
        whole = self._is_whole(deterministic)
        tile = None if whole else self._decode_tile(latents)
        if tile is None and (whole or not self.use_slicing):
            sample = self.decode_reference(latents, deterministic)
        else:
            sample = self._in_pieces(FlaxAutoencoderKL.decode_reference, latents, tile, 1, self.config.downscale_factor)
        return FlaxDecoderOutput(sample=sample) if return_dict else (sample,)

    def __call__(
        self,
        sample: Array,
        sample_posterior: bool = False,
        deterministic: bool = True,
        return_dict: bool = True,
    ) -> FlaxDecoderOutput | tuple[Array]:
        """Encode and decode images, by the posterior's mean or by a sample of it (`sample_posterior`).

        Sampling takes the key "gaussian" of `apply`'s `rngs`.

        Raises:
            ConfigError: `sample_posterior` without a key.
            ShapeError, ImageError: as `encode`.
        """
        if sample_posterior and not (self.has_rng("gaussian") or self.has_rng("params")):
            raise ConfigError(
                'sample_posterior=True needs a key. Pass rngs={"gaussian": jax.random.PRNGKey(seed)} to `apply`.'
            )
        (posterior,) = self.encode(sample, deterministic=deterministic, return_dict=False)
        z = posterior.sample(self.make_rng("gaussian")) if sample_posterior else posterior.mode()
        return self.decode(z, deterministic=deterministic, return_dict=return_dict)

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
