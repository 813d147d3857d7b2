"""vae_core: a complete, self-contained AutoencoderKL with the interface of diffusers' class of that name."""

from .autoencoder_kl import AutoencoderKL
from .config import AutoencoderKLConfig
from .errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    ShapeError,
    TilingError,
    UnsafeCheckpointError,
    VAEError,
)
from .loading import VAEInfo, inspect_vae, load_vae, save_single_file
from .outputs import AutoencoderKLOutput, DecoderOutput
from .posterior import DiagonalGaussianDistribution

__version__ = "0.1.0"

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "CheckpointError",
    "ConfigError",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "ImageError",
    "ShapeError",
    "TilingError",
    "UnsafeCheckpointError",
    "VAEError",
    "VAEInfo",
    "__version__",
    "inspect_vae",
    "load_vae",
    "save_single_file",
]
