"""The layers of FlaxAutoencoderKL, and their parameters: what there is of it without tiles, slices and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array
from jax.typing import DTypeLike

from ..config import AutoencoderKLConfig
from ..errors import ConfigError
from .decoder import FlaxDecoder
from .dtypes import floating_type
from .encoder import FlaxEncoder
from .layers import ParameterPath, conv, initial_values

CHANNELS_LAST = (0, 2, 3, 1)
CHANNELS_FIRST = (0, 3, 1, 2)


class FlaxNetwork(nn.Module):
    """Images to moments and latents to images, at once and as they are. See FlaxAutoencoderKL for the fields.

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
    dtype: DTypeLike = jnp.float32
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
        side = self.config.downscale_factor  # one latent: no shape depends on the size
        sample = jnp.zeros((1, self.in_channels, side, side), jnp.float32)
        init = partial(self.init, method=FlaxNetwork._roundtrip_plain)
        return initial_values(rng, jax.eval_shape(init, {"params": rng}, sample)["params"])

    def _roundtrip_plain(self, sample: Array) -> Array:
        mean, _ = jnp.split(self.encode_reference(sample), 2, axis=1)
        return self.decode_reference(mean)

    def encode_reference(self, sample: Array, deterministic: bool = True) -> Array:
        """Images to moments [B, 2 * latent_channels, h, w] at once, whatever tiling and slicing say."""
        x = self.encoder(jnp.transpose(jnp.asarray(sample, self.dtype), CHANNELS_LAST), deterministic=deterministic)
        moments = x if self.quant_conv is None else self.quant_conv(x)
        return jnp.transpose(moments, CHANNELS_FIRST)

    def decode_reference(self, latents: Array, deterministic: bool = True) -> Array:
        """Latents to images at once, whatever tiling and slicing say."""
        z = jnp.transpose(jnp.asarray(latents, self.dtype), CHANNELS_LAST)
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return jnp.transpose(self.decoder(z, deterministic=deterministic), CHANNELS_FIRST)


@lru_cache(maxsize=16)
def parameter_shapes(config: AutoencoderKLConfig) -> Mapping[ParameterPath, tuple[int, ...]]:
    """Path of a parameter -> its shape, for every parameter of a model of this config."""
    tree = jax.eval_shape(FlaxNetwork(**config.without_extras()).init_weights, jax.random.PRNGKey(0))
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree).items()}  # type: ignore[misc]


def latent_statistics(channels: int) -> dict[str, Array]:
    """FLUX.2's batch norm before any training: floats alone, so that all parameters can be differentiated."""
    return {
        "running_mean": jnp.zeros(channels, jnp.float32),
        "running_var": jnp.ones(channels, jnp.float32),
        "num_batches_tracked": jnp.zeros((), jnp.float32),
    }
