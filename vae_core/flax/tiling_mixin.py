"""Switches for tiles and slices: AutoencoderKL's methods, each returning a changed copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from jax import Array

from ..errors import TilingError
from ..tiling.grid import TileSpec

if TYPE_CHECKING:
    from ..config import AutoencoderKLConfig

Self = TypeVar("Self", bound="TilingMixin")


class TilingMixin:
    """enable_tiling and its like. A flax module never changes: each returns a copy, which takes the same parameters."""

    if TYPE_CHECKING:
        config: AutoencoderKLConfig
        use_tiling: bool
        tile_sample_min_size: int | None
        tile_latent_min_size: int | None
        tile_overlap_factor: float

        def clone(self: Self, **changes: Any) -> Self: ...

    def enable_tiling(self: Self, use_tiling: bool = True, mode: str = "blended") -> Self:
        """A copy that runs inputs larger than a tile in overlapping, blended tiles, with diffusers' numbers.

        Raises:
            TilingError: a mode other than "blended".
        """
        if TileSpec(mode=mode).mode != "blended":  # type: ignore[arg-type]
            raise TilingError(
                f"the tiling mode {mode!r} exists in AutoencoderKL only. Use mode='blended', or run the whole image."
            )
        return self.clone(use_tiling=use_tiling)

    def disable_tiling(self: Self) -> Self:
        """A copy that runs the whole input at once."""
        return self.clone(use_tiling=False)

    def enable_slicing(self: Self) -> Self:
        """A copy that runs the items of a batch one after the other: less memory, the same result."""
        return self.clone(use_slicing=True)

    def disable_slicing(self: Self) -> Self:
        """A copy that runs a batch at once."""
        return self.clone(use_slicing=False)

    def _sample_tile(self) -> int:
        size = self.config.sample_size
        return self.tile_sample_min_size or (size if isinstance(size, int) else size[0])

    def _encode_tile(self, x: Array) -> TileSpec | None:
        """The tile for these images, in latent pixels; None to run them whole."""
        side = self._sample_tile()
        if not self.use_tiling or max(x.shape[2:]) <= side:
            return None
        factor = self.config.downscale_factor
        return _tile(max(1, side // factor), int(side * (1 - self.tile_overlap_factor)) // factor)

    def _decode_tile(self, z: Array) -> TileSpec | None:
        """The tile for these latents; None to run them whole."""
        config = self.config
        first = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
        side = self.tile_latent_min_size or max(1, first // config.downscale_factor)
        if not self.use_tiling or max(z.shape[2:]) <= side:
            return None
        return _tile(side, int(side * (1 - self.tile_overlap_factor)))


def _tile(size: int, stride: int) -> TileSpec:
    return TileSpec(size=size, overlap=size - max(1, stride), mode="blended")
