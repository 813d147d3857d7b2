"""Feature maps with their rows in bands, so that no single allocation grows with the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Far below 2**31 elements of any type, beyond which libraries' indices overflow. It is also how finely the store
# shares out memory: part of a map may be on the device and part in a file.
BAND_BYTES = 2**28
# A band's rows, but for the last one's, are a multiple of this: kernels write tiles of four rows.
BAND_UNIT = 4


def band_rows(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Rows of a band of a map [B, H, W, C]: as many as fit in `BAND_BYTES`, at least `BAND_UNIT`, at most all."""
    batch, height, width, channels = shape
    fitting = BAND_BYTES // (batch * width * channels * dtype.itemsize)
    return min(height, max(BAND_UNIT, fitting // BAND_UNIT * BAND_UNIT))


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces [..., rows, W, C] below one another, as one tensor; a single one as it is."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=-3)


@dataclass(frozen=True, eq=False)  # the same map is the same object
class FeatureMap:
    """A map [B, H, W, C] in bands of rows, which may be in different places and need not be contiguous.

    Attributes:
        bands: [B, rows, W, C] each, from the top; all but the last are of `band_rows`.
        shape: of the whole.
    """

    bands: tuple[Tensor, ...]
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> FeatureMap:
        """In one band."""
        return cls((tensor,), tensor.shape)

    @property
    def band_rows(self) -> int:
        return self.bands[0].shape[1]

    @property
    def band_count(self) -> int:
        return len(self.bands)

    @property
    def dtype(self) -> torch.dtype:
        return self.bands[0].dtype

    @property
    def devices(self) -> set[str]:
        """Types of the devices that bands are on."""
        return {band.device.type for band in self.bands}

    def narrowed(self, channels: int) -> FeatureMap:
        """The first channels, in the same memory."""
        return self._with(tuple(band[..., :channels] for band in self.bands))

    def item(self, index: int) -> FeatureMap:
        """One item of the batch, [1, H, W, C], in the same memory."""
        return self._with(tuple(band[index : index + 1] for band in self.bands))

    def tokens(self) -> FeatureMap:
        """Its positions below one another, [B, H * W, 1, C], in the same memory.

        Raises:
            RuntimeError: rows are not one after the other in memory.
        """
        batch, _, _, channels = self.shape
        return self._with(tuple(band.view(batch, -1, 1, channels) for band in self.bands))

    def _with(self, bands: tuple[Tensor, ...]) -> FeatureMap:
        batch, _, width, channels = bands[0].shape
        return FeatureMap(bands, torch.Size((batch, sum(band.shape[1] for band in bands), width, channels)))

    def pieces(self, first: int, stop: int) -> list[Tensor]:
        """Views of the rows [first, stop), which exist: one for each band that has some."""
        rows = self.band_rows
        return [
            self.bands[index][:, max(first - index * rows, 0) : stop - index * rows]
            for index in range(first // rows, -(-stop // rows))
        ]

    def rows(self, first: int, stop: int) -> Tensor:
        """The rows [first, stop) of bands on one device: a view where they are in one band, else a copy."""
        return joined(self.pieces(first, stop))

    def rows_on(self, device: torch.device, first: int, stop: int) -> Tensor:
        """The rows [first, stop) on a device, wherever their bands are."""
        return joined([piece.to(device) for piece in self.pieces(first, stop)])

    def around(self, first: int, stop: int, circular: bool) -> tuple[list[Tensor], int]:
        """Pieces of the rows [first, stop) as far as they exist, and the number of the first one.

        With `circular` the map continues at its other side, so all of them exist.
        """
        height = self.shape[1]
        if not circular:
            first = max(first, 0)
            return self.pieces(first, min(stop, height)), first
        pieces = []
        row = first
        while row < stop:
            begin = row % height
            end = min(begin + stop - row, height)
            pieces += self.pieces(begin, end)
            row += end - begin
        return pieces, first

    def write(self, first: int, values: Tensor) -> None:
        """Put rows [B, rows, W, C] where they belong."""
        for piece in self.pieces(first, first + values.shape[1]):
            piece.copy_(values[:, : piece.shape[1]])
            values = values[:, piece.shape[1] :]


@dataclass(frozen=True, eq=False)
class PlannedMap(FeatureMap):
    """A map of a dry run: how large it is and how it is cut into bands, but no memory.

    Attributes:
        rows_of_a_band: of all bands but the last.
        lots: the buffers of its bands; see `ledger.Ledger`.
    """

    rows_of_a_band: int = 0
    lots: tuple[Any, ...] = ()

    @classmethod
    def whole(cls, shape: Sequence[int]) -> PlannedMap:
        """[B, H, W, C] in one band."""
        return cls((), torch.Size(shape), shape[1])

    @property
    def band_rows(self) -> int:
        return self.rows_of_a_band

    @property
    def band_count(self) -> int:
        return -(-self.shape[1] // self.rows_of_a_band)

    @property
    def devices(self) -> set[str]:
        """Not known before the run."""
        return set()

    def narrowed(self, channels: int) -> PlannedMap:
        return replace(self, shape=torch.Size((*self.shape[:3], channels)))
