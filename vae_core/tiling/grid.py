"""Where tiles lie: integers only."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TilingError


@dataclass(frozen=True)
class TileSpec:
    """A square tile and how much of it the next tile covers again.

    Args:
        size: side of a tile, in latent positions.
        overlap: latent positions that two neighbours share; at least 0 and less than `size`.

    Raises:
        TilingError: a size or an overlap that makes no tiling.
    """

    size: int = 64
    overlap: int = 16

    def __post_init__(self) -> None:
        if self.size < 1:
            raise TilingError(f"a tile of size {self.size} holds nothing; give at least 1 latent position.")
        if not 0 <= self.overlap < self.size:
            raise TilingError(
                f"an overlap of {self.overlap} does not fit tiles of size {self.size}; "
                f"give 0 to {self.size - 1} latent positions."
            )

    @property
    def stride(self) -> int:
        """From the start of one tile to the start of the next, in latent positions."""
        return self.size - self.overlap


def spans(length: int, size: int, stride: int, minimum: int = 1) -> list[tuple[int, int]]:
    """Cut `length` into [start, stop) spans of `size`, one every `stride`; the last ones are cut off at the end.

    A rest shorter than `minimum` makes no span of its own.
    """
    return [(start, min(start + size, length)) for start in range(0, length, stride) if length - start >= minimum]
