"""The encoder's output as a distribution: moments -> DiagonalGaussianDistribution -> z."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import LOGVAR_RANGE
from .errors import ConfigError, ShapeError, brief
from .tensor_kinds import check_given

MAX_SEED = 2**64 - 1  # the largest that a generator of torch takes


def seeded(seed: int, index: int = 0) -> torch.Generator:
    """The source of randomness of item `index` of a batch: that of `seed + index`; after the largest seed comes 0."""
    return torch.Generator().manual_seed((seed + index) % (MAX_SEED + 1))


class DiagonalGaussianDistribution:
    """A normal distribution per latent value, with the interface of diffusers' class of that name.

    Args:
        parameters: moments [B, 2C, h, w]: the mean, then the logarithm of the variance, which is clamped
            to [-30, 20].
        deterministic: take every deviation as zero, so that a sample is the mean.

    Attributes:
        mean, logvar: [B, C, h, w].
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        check_given(parameters, "the tensor of moments", ShapeError)
        if parameters.ndim < 2 or parameters.shape[1] % 2:
            raise ShapeError(
                f"moments have shape {tuple(parameters.shape)}; their second dimension must be even: "
                f"the means, then the log-variances."
            )
        self.parameters = parameters
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)
        self.deterministic = deterministic

    @property
    def std(self) -> Tensor:
        """Standard deviation, [B, C, h, w]; zero if deterministic."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance, [B, C, h, w], in float32 at least, because half precision ends before it; zero if deterministic."""
        return torch.zeros_like(_wide(self.mean)) if self.deterministic else torch.exp(_wide(self.logvar))

    def mode(self) -> Tensor:
        """The most likely z, which is the mean."""
        return self.mean

    def tempered(self, temperature: float) -> DiagonalGaussianDistribution:
        """The same means, and deviations `temperature` times as large; more than 0."""
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise ConfigError(f"the temperature is {brief(temperature)}; give a number above 0.")
        logvar = self.logvar + 2 * math.log(temperature)
        return DiagonalGaussianDistribution(torch.cat([self.mean, logvar], dim=1), self.deterministic)

    def repeated(self, count: int) -> DiagonalGaussianDistribution:
        """The batch `count` times, one after the other: [count * B, C, h, w]."""
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"the count is {brief(count)}; give a whole number, at least 1.")
        parameters = torch.cat([self.mean, self.logvar], dim=1)
        return DiagonalGaussianDistribution(parameters.repeat(count, 1, 1, 1), self.deterministic)

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """Draw z = mean + std * noise, [B, C, h, w].

        Args:
            generator: one generator, or one per batch item. Noise is drawn on the generator's own device, so a
                CPU generator gives the same z on every device.
        """
        return self.mean + self.std * randn_like(self.mean, generator)

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Kullback-Leibler divergence to `other`, or to the standard normal: nats, summed per item, [B].

        Computed in float32 at least: a half-precision variance overflows long before the clamp at exp(20).
        Kingma & Welling, Auto-Encoding Variational Bayes, appendix B.
        """
        if other is not None and not hasattr(other, "logvar"):
            raise ConfigError(f"other is {brief(other)}. Give a DiagonalGaussianDistribution, or None.")
        if self.deterministic:
            return self.mean.new_zeros(1)
        dims = tuple(range(1, self.mean.ndim))
        mean = _wide(self.mean)
        logvar = _wide(self.logvar)
        if other is None:
            return 0.5 * torch.sum(mean.pow(2) + logvar.exp() - 1.0 - logvar, dim=dims)
        self._check_shape(other.mean, "the other distribution")
        other_mean = _wide(other.mean)
        other_logvar = _wide(other.logvar)
        return 0.5 * torch.sum(
            (mean - other_mean).pow(2) / other_logvar.exp()
            + (logvar - other_logvar).exp()
            - 1.0
            - logvar
            + other_logvar,
            dim=dims,
        )

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of `sample` [B, C, h, w] in nats, summed over `dims`, in float32 at least."""
        check_given(sample, "the sample", ShapeError)
        if self.deterministic:
            return self.mean.new_zeros(1)
        self._check_shape(sample, "the sample")
        logvar = _wide(self.logvar)
        squared = (_wide(sample) - _wide(self.mean)).pow(2) / logvar.exp()
        return 0.5 * torch.sum(math.log(2.0 * math.pi) + logvar + squared, dim=tuple(dims))

    def _check_shape(self, given: Tensor, what: str) -> None:
        """Raise ShapeError for values of other latents than these; a batch of one goes with any."""
        mine = tuple(self.mean.shape)
        theirs = tuple(given.shape)
        if mine[1:] != theirs[1:] or (mine[0] != theirs[0] and 1 not in (mine[0], theirs[0])):
            raise ShapeError(f"{what} has the shape {theirs}, and this one {mine}. Give one of the same shape.")


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def randn_like(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`.

    With a sequence of generators, item i of the batch is drawn from generator i alone.
    """
    if isinstance(generator, int):
        raise ConfigError(f"generator is the number {generator}. Pass torch.Generator().manual_seed({generator}).")
    if isinstance(generator, Sequence) and not isinstance(generator, str | bytes):
        if len(generator) == 1:
            return randn_like(like, generator[0])
        if len(generator) != like.shape[0]:
            raise ShapeError(
                f"{len(generator)} generators were given for a batch of {like.shape[0]}. Give one, or one per item."
            )
        return torch.cat([randn_like(item[None], each) for item, each in zip(like, generator, strict=True)])
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ConfigError(f"generator is {brief(generator)}. Give a torch.Generator, one for each item, or None.")
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
