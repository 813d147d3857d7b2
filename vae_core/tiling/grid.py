"""Where tiles are: integers only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import TilingError, as_plain_int, brief, check_choice

MODES = ("exact", "blended")


@dataclass(frozen=True)
class TileSpec:
    """How an image is cut.

    Args:
        size: in latent pixels. Exact mode works in strips of at most so many latent rows; None lets each pass
            choose. Blended mode works in square tiles of this side.
        overlap: latent pixels that two neighbouring tiles share in blended mode; at least 0, less than `size`.
        mode: "exact", equal to a run without tiles, or "blended", diffusers' cross-faded tiles.

    Raises:
        TilingError: values that make no tiling.
    """

    size: int | None = 64
    overlap: int = 16
    mode: Literal["exact", "blended"] = "exact"

    def __post_init__(self) -> None:
        check_choice("the tiling mode", self.mode, MODES, TilingError)
        for name in ("size", "overlap"):
            object.__setattr__(self, name, as_plain_int(getattr(self, name)))
        if self.size is None:
            if self.mode == "blended":
                raise TilingError("blended tiling needs a tile size; give TileSpec(size=64, overlap=16).")
            return
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise TilingError(
                f"a tile of size {brief(self.size)} is empty or no whole number; give one of at least 1 latent pixel."
            )
        whole = isinstance(self.overlap, int) and not isinstance(self.overlap, bool)
        if self.mode == "blended" and not (whole and 0 <= self.overlap < self.size):
            raise TilingError(
                f"an overlap of {brief(self.overlap)} does not fit tiles of size {self.size}; "
                f"give 0 to {self.size - 1} latent pixels."
            )

    @property
    def stride(self) -> int:
        """From the start of one blended tile to the start of the next, in latent pixels."""
        assert self.size is not None
        return self.size - self.overlap


class Cuts(NamedTuple):
    """Where strips or tiles of a chosen size are, in latent pixels; none is listed before it is asked for.

    Attributes:
        height, width: of what is cut.
        tile: what the caller chose.
    """

    height: int
    width: int
    tile: TileSpec

    @property
    def rows(self) -> int:
        return len(range(0, self.height, self._stride))

    @property
    def columns(self) -> int:
        return len(range(0, self.width, self._stride)) if self.tile.mode == "blended" else 1

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def _stride(self) -> int:
        assert self.tile.size is not None
        return self.tile.stride if self.tile.mode == "blended" else self.tile.size

    def rectangles(self, most: int) -> list[tuple[int, int, int, int]]:
        """Left, top, width and height of each, row by row; nothing if there are more than `most`."""
        if self.count > most:
            return []
        size = self.tile.size
        assert size is not None
        down = spans(self.height, size, self._stride)
        across = spans(self.width, size, self._stride) if self.tile.mode == "blended" else [(0, self.width)]
        return [(left, top, right - left, bottom - top) for top, bottom in down for left, right in across]


def spans(length: int, size: int, stride: int, minimum: int = 1) -> list[tuple[int, int]]:
    """Cut `length` into [start, stop) spans of `size`, one every `stride`; the last ones are cut off at the end.

    A rest shorter than `minimum` makes no span of its own.
    """
    return [(start, min(start + size, length)) for start in range(0, length, stride) if length - start >= minimum]


def span_lengths(length: int, size: int, stride: int, minimum: int = 1) -> Counter[int]:
    """How many of `spans` have each length, without listing them: only those that are cut off differ from `size`."""
    count = max(0, (length - minimum) // stride + 1)
    whole = min(count, max(0, (length - size) // stride + 1))
    lengths = Counter(length - index * stride for index in range(whole, count))
    lengths[size] += whole
    return +lengths
