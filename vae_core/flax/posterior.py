"""The encoder's output as a distribution: moments -> FlaxDiagonalGaussianDistribution -> z."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from ..config import LOGVAR_RANGE
from ..errors import ShapeError

CHANNELS = -3  # counted from the end, so that axes that vmap or pmap put in front change nothing
ITEM = (-3, -2, -1)  # the axes of one batch item


@struct.dataclass
class FlaxDiagonalGaussianDistribution:
    """A normal distribution per latent value. Crosses jit, vmap and pmap like an array.

    Args:
        parameters: moments [B, 2C, h, w]: the mean, then the logarithm of the variance, which is clamped to
            [-30, 20]. (diffusers' class of this name has its channels last.)
        deterministic: take every deviation as zero, so that a sample is the mean.

    Raises:
        ShapeError: by everything that is read off it, if there are under three dimensions or an odd number of
            channels. Not when it is made: JAX makes trees like it with other things in the array's place, such as
            derivatives, which have more axes.
    """

    parameters: Array
    deterministic: bool = struct.field(pytree_node=False, default=False)

    def _halves(self) -> list[Array]:
        shape = tuple(self.parameters.shape)
        if len(shape) < 3 or shape[CHANNELS] % 2:
            raise ShapeError(
                f"moments have shape {shape}; they are [B, 2C, h, w] with an even number of channels: the means, then "
                f"the log-variances."
            )
        return jnp.split(self.parameters, 2, axis=CHANNELS)

    @property
    def mean(self) -> Array:
        """[B, C, h, w]."""
        return self._halves()[0]

    @property
    def logvar(self) -> Array:
        """Logarithm of the variance, [B, C, h, w], in [-30, 20]."""
        return jnp.clip(self._halves()[1], *LOGVAR_RANGE)

    @property
    def std(self) -> Array:
        """Standard deviation, [B, C, h, w]; zero if deterministic."""
        return jnp.zeros_like(self.mean) if self.deterministic else jnp.exp(0.5 * self.logvar)

    @property
    def var(self) -> Array:
        """Variance, [B, C, h, w]; zero if deterministic."""
        return jnp.zeros_like(self.mean) if self.deterministic else jnp.exp(self.logvar)

    def mode(self) -> Array:
        """The most likely z, which is the mean."""
        return self.mean

    def sample(self, key: Array) -> Array:
        """Sample z = mean + std * noise, [B, C, h, w], with a key of `jax.random`."""
        mean = self.mean
        return mean + self.std * jax.random.normal(key, mean.shape, mean.dtype)

    def kl(self, other: FlaxDiagonalGaussianDistribution | None = None) -> Array:
        """Kullback-Leibler divergence to `other`, or to the standard normal: nats, summed per item, [B].

        Kingma & Welling, Auto-Encoding Variational Bayes, appendix B.
        """
        if self.deterministic:
            return jnp.zeros(1, self.mean.dtype)
        if other is None:
            return 0.5 * jnp.sum(self.mean**2 + self.var - 1.0 - self.logvar, axis=ITEM)
        return 0.5 * jnp.sum(
            (self.mean - other.mean) ** 2 / other.var + self.var / other.var - 1.0 - self.logvar + other.logvar,
            axis=ITEM,
        )

    def nll(self, sample: Array, axis: Sequence[int] = ITEM) -> Array:
        """Negative log-likelihood of `sample` [B, C, h, w] in nats, summed over `axis`."""
        if self.deterministic:
            return jnp.zeros(1, self.mean.dtype)
        squared = (sample - self.mean) ** 2 / self.var
        return 0.5 * jnp.sum(math.log(2.0 * math.pi) + self.logvar + squared, axis=tuple(axis))
