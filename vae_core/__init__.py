"""vae_core: a complete, self-contained AutoencoderKL with the interface of diffusers' class of that name.

All is imported on the first use of a name, so that the command line can take an interrupt from its first moment on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Where each public name is.
_HOMES = {
    "AutoencoderKL": ".autoencoder_kl",
    "AutoencoderKLConfig": ".config",
    "AutoencoderKLOutput": ".outputs",
    "CheckpointError": ".errors",
    "ConfigError": ".errors",
    "DamagedWeightError": ".errors",
    "DatasetError": ".errors",
    "DecoderOutput": ".outputs",
    "DiagonalGaussianDistribution": ".posterior",
    "ImageError": ".errors",
    "Job": ".streaming",
    "MemoryBudgetError": ".errors",
    "MissingDependencyError": ".errors",
    "NonFiniteError": ".errors",
    "Options": ".streaming",
    "Plan": ".streaming",
    "Progress": ".streaming",
    "ShapeError": ".errors",
    "TileSpec": ".tiling.grid",
    "TilingError": ".errors",
    "UnsafeCheckpointError": ".errors",
    "VAEError": ".errors",
    "VAEInfo": ".loading",
    "decode": ".running",
    "encode": ".running",
    "from_diffusers": ".adopt",
    "inspect_vae": ".loading",
    "kernels": ".streaming",
    "load_vae": ".loading",
    "plan_decode": ".running",
    "plan_encode": ".running",
    "prepare_decode": ".running",
    "prepare_encode": ".running",
    "save_single_file": ".loading",
}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package. The first use imports all that has one."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for public, home in _HOMES.items():
        globals().setdefault(public, getattr(import_module(home, __name__), public))
    if name not in globals():
        try:
            globals()[name] = import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
