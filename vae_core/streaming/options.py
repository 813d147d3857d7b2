"""How to run: the one record of it, which checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from ..errors import ConfigError, MemoryBudgetError, TilingError, as_plain_int, brief, check_choice
from ..tiling.grid import TileSpec
from .devices import good_at_bfloat16

Circular = Literal["none", "x", "y", "both"]
CIRCULAR: tuple[str, ...] = get_args(Circular)
Precision = torch.dtype | Literal["auto"] | None
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Axes(NamedTuple):
    """Along which axes an image continues at its other side, instead of ending in zeros."""

    y: bool = False
    x: bool = False


NO_AXES = Axes()


@dataclass(frozen=True)
class Options:
    """How to encode or decode.

    Args:
        tiling: None for strips that suit each pass. See TileSpec.
        memory_budget: bytes of working memory beside weights, input and output; feature maps beyond it are offloaded
            to disk, or from an accelerator to CPU memory first. None: a share of what is free. Strips keep to it; the
            reference path, which runs blended tiles and patched models, cannot, and a warning says so.
        circular: axes along which the image continues at its other side, for seamless (tileable) textures.
        dtype: precision of the computation and of feature maps; None for that of the weights, "auto" for bfloat16 on
            accelerators that are good at it and float32 elsewhere. On a CPU bfloat16 is that of feature maps, which
            then take half the memory; passes compute in float32, and multiply in bfloat16 where the processor has
            instructions for it and the error allows it.
        max_items: most items of a batch that run at once; None for as many as are fast and fit.

    Raises:
        TilingError: not a TileSpec, another name of axes, or blended tiles that are to be circular.
        MemoryBudgetError: a budget that is not a positive whole number.
        ConfigError: another precision, or a number of items that is not positive.
    """

    tiling: TileSpec | None = None
    memory_budget: int | None = None
    circular: Circular = "none"
    dtype: Precision = None
    max_items: int | None = None

    def __post_init__(self) -> None:
        if self.tiling is not None and not isinstance(self.tiling, TileSpec):
            raise TilingError(f"tiling is {brief(self.tiling)}; give a TileSpec, such as TileSpec(size=64), or None.")
        check_choice("circular", self.circular, CIRCULAR, TilingError)
        if self.blended and self.circular != "none":
            raise TilingError("blended tiles cannot be circular. Set the mode to exact, or circular to none.")
        for name in ("memory_budget", "max_items"):
            object.__setattr__(self, name, as_plain_int(getattr(self, name)))
        budget = self.memory_budget
        if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget <= 0):
            raise MemoryBudgetError(
                f"a memory budget of {brief(budget)} bytes leaves nothing to work in, or is not a whole number; "
                f"give a whole number, such as 2**30 for a GiB, or None."
            )
        items = self.max_items
        if items is not None and (not isinstance(items, int) or isinstance(items, bool) or items <= 0):
            raise ConfigError(f"max_items is {brief(items)}; give a whole number, at least 1, or None.")
        if self.dtype is not None and self.dtype != "auto" and self.dtype not in PRECISIONS:
            names = ", ".join(map(str, PRECISIONS))
            raise ConfigError(f"dtype is {brief(self.dtype)}; the computation can be in {names}, or 'auto', or None.")

    @property
    def blended(self) -> bool:
        """Whether blended tiles are asked for, which are not exact."""
        return self.tiling is not None and self.tiling.mode == "blended"

    @property
    def tile(self) -> int:
        """Side of a blended tile in latent pixels."""
        assert self.blended and self.tiling is not None and self.tiling.size is not None
        return self.tiling.size

    @property
    def strip_latents(self) -> int | None:
        """Most rows of latent pixels in a strip; None for what suits each pass."""
        return None if self.tiling is None else self.tiling.size

    @property
    def axes(self) -> Axes:
        """`circular` as a switch for each axis."""
        return Axes(y=self.circular in ("y", "both"), x=self.circular in ("x", "both"))

    def precision(self, weights: torch.dtype, device: torch.device) -> torch.dtype:
        """The precision of the computation on a device, for weights of a type."""
        if self.dtype is None:
            return weights
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        return torch.bfloat16 if good_at_bfloat16(device) else torch.float32
