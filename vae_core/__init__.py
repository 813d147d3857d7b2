"""vae_core: a complete, self-contained AutoencoderKL with the interface of diffusers' class of that name."""

from .adopt import from_diffusers
from .autoencoder_kl import AutoencoderKL
from .config import AutoencoderKLConfig
from .errors import (
    CheckpointError,
    ConfigError,
    DamagedWeightError,
    DatasetError,
    ImageError,
    MemoryBudgetError,
    MissingDependencyError,
    NonFiniteError,
    ShapeError,
    TilingError,
    UnsafeCheckpointError,
    VAEError,
)
from .loading import VAEInfo, inspect_vae, load_vae, save_single_file
from .outputs import AutoencoderKLOutput, DecoderOutput
from .posterior import DiagonalGaussianDistribution
from .running import decode, encode, plan_decode, plan_encode, prepare_decode, prepare_encode
from .streaming import Job, Options, Plan, Progress, kernels
from .tiling.grid import TileSpec

__version__ = "0.1.0"

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "CheckpointError",
    "ConfigError",
    "DamagedWeightError",
    "DatasetError",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "ImageError",
    "Job",
    "MemoryBudgetError",
    "MissingDependencyError",
    "NonFiniteError",
    "Options",
    "Plan",
    "Progress",
    "ShapeError",
    "TileSpec",
    "TilingError",
    "UnsafeCheckpointError",
    "VAEError",
    "VAEInfo",
    "__version__",
    "decode",
    "encode",
    "from_diffusers",
    "inspect_vae",
    "kernels",
    "load_vae",
    "plan_decode",
    "plan_encode",
    "prepare_decode",
    "prepare_encode",
    "save_single_file",
]
