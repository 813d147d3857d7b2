"""What the inputs of a tiled node mean, as options of vae_core."""

from __future__ import annotations

from ..vae_core import Options, TileSpec
from ..vae_core.errors import TilingError
from ..vae_core.units import GIB
from . import checks

AUTOMATIC_TILE = 64  # latent pixels, of blended tiles


def options_of(
    unit: int,
    mode: str = "exact",
    tile_size: int = 0,
    overlap: int = 128,
    memory_budget: float = 0.0,
    circular: str = "none",
) -> Options:
    """How to run a VAE, from the inputs of a tiled node in pixels and GiB.

    Args:
        unit: pixels along one side of a latent pixel.

    Raises:
        TilingError: a choice that does not exist, a tile smaller than a latent pixel, an overlap that does not fit, or
            blended circular tiles.
        ConfigError: a number below 0.
    """
    checks.check_at_least(0, tile_size=tile_size, overlap=overlap, memory_budget=memory_budget)
    if tile_size and tile_size < unit:
        raise TilingError(
            f"a tile of {tile_size} pixels is smaller than one latent pixel of this VAE ({unit}x{unit} pixels). "
            f"Set tile_size to {unit} or more, or to 0 for automatic."
        )
    size = tile_size // unit or None
    shared = overlap // unit
    if mode == "exact":
        tiling = None if size is None else TileSpec(size=size)
        return Options(tiling, int(memory_budget * GIB) or None, circular)  # type: ignore[arg-type]
    size = size or AUTOMATIC_TILE
    fits = shared < size
    options = Options(TileSpec(size, shared if fits else 0, mode), circular=circular)  # type: ignore[arg-type]
    if not fits:
        raise TilingError(
            f"an overlap of {overlap} pixels does not fit tiles of {size * unit} pixels. Reduce the overlap, or use "
            f"larger tiles."
        )
    return options
