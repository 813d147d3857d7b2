"""The JAX/Flax twin of the model: diffusers' FlaxAutoencoderKL with everything that AutoencoderKL has had since.

Needs the extra `flax`. Nothing else of vae_core imports it.
"""

try:
    import flax  # noqa: F401
    import jax  # noqa: F401
except ImportError as error:
    from ..errors import MissingDependencyError, in_one_line

    raise MissingDependencyError(
        f"vae_core.flax needs JAX and Flax, and {error.name or 'one of them'} cannot be imported "
        f"({in_one_line(error)}). Install them with `pip install seamless-vae[flax]`, or `pip install jax flax` "
        f"beside it.",
        name=error.name,
    ) from error

from .autoencoder_kl import FlaxAutoencoderKL
from .convert import from_torch, to_torch
from .latent import from_diffusion, to_diffusion
from .loading import load_vae
from .outputs import FlaxAutoencoderKLOutput, FlaxDecoderOutput
from .posterior import FlaxDiagonalGaussianDistribution

__all__ = [
    "FlaxAutoencoderKL",
    "FlaxAutoencoderKLOutput",
    "FlaxDecoderOutput",
    "FlaxDiagonalGaussianDistribution",
    "from_diffusion",
    "from_torch",
    "load_vae",
    "to_diffusion",
    "to_torch",
]
