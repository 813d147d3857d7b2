"""Memory that kernels compute strips in: each worker's own, made once for a pass, and kept for the next one.

It comes straight from the system (`pages.py`). Were it asked of an allocator strip by strip, what a process has in the
end would depend on that allocator's habits: small results that stay between large temporaries keep it from giving these
back, or from using their place again.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..units import round_up
from .pages import kept_pages, mapped

_LINE = 64  # bytes; parts begin at a cache line
_EXCESS = 2**16  # bytes that are not worth giving back
_LINUX = sys.platform == "linux"


class Block:
    """Some memory of the run's, which stays where it is as long as passes need no more.

    Args:
        size: bytes that the first pass needs.
        room: bytes that a later one will need. Pages that nothing has written to are addresses alone, and those that
            passes before have written to need not be cleared again.
        keep: it is of `kept_pages`, which serve the next pass and the next run without room.
    """

    def __init__(self, size: int, room: int = 0, keep: bool = False) -> None:
        self._pages: mmap.mmap | None = None
        if keep:
            self.data = kept_pages(max(size, 1), "strips")
        else:
            self._pages = mapped(max(size, room if _LINUX else 0, 1), "strips")
            self.data = torch.frombuffer(self._pages, dtype=torch.uint8)
        self.used = size  # bytes from the beginning that may have been written to

    def fits(self, size: int) -> bool:
        """Make ready for a pass that needs so many bytes; False if they are more than there are.

        What a pass before this one has used beyond them goes back to the system.
        """
        if size > self.data.numel():
            return False
        if self.used > size + _EXCESS:
            if self._pages is None or not _LINUX:  # elsewhere it would stay, or not be usable any more
                return False
            start = round_up(size, mmap.PAGESIZE)
            # To the end: a large page may have been cleared beyond what was written to.
            self._pages.madvise(mmap.MADV_DONTNEED, start, len(self._pages) - start)
        self.used = size
        return True


class ScratchStore:
    """The blocks of a run, from pass to pass.

    Args:
        room: most bytes that a pass needs of one block.
        keep: see `Block`.
    """

    def __init__(self, room: int = 0, keep: bool = False) -> None:
        self.room = room
        self.keep = keep
        self._kept: list[Block] = []

    def lend(self, count: int, size: int) -> list[Block]:
        """So many blocks of so many bytes. Whatever else was kept goes back to the system."""
        kept = self._kept
        self._kept = []
        blocks = [block for block in kept[:count] if block.fits(size)]
        del kept
        while len(blocks) < count:
            blocks.append(Block(size, self.room, self.keep))
        return blocks

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(block.used for block in self._kept)

    def take_back(self, blocks: Sequence[Block]) -> None:
        """Keep blocks for the next pass."""
        self._kept.extend(blocks)

    def drop(self) -> None:
        """Give everything that is kept back to the system."""
        self._kept.clear()


class Spare:
    """Memory for the weights of a pass, which the next pass's take over: fresh pages cost as long as the packing.

    Args:
        room: most bytes that the weights of a pass have.
        keep: see `Block`.
    """

    def __init__(self, room: int = 0, keep: bool = False) -> None:
        self._store = ScratchStore(room, keep)
        self._taken = False

    def take(self, size: int) -> Tensor:
        """So many bytes, uninitialised, until the next pass."""
        blocks = self._store.lend(1, size)
        self._store.take_back(blocks)
        self._taken = True
        return blocks[0].data[:size]

    @property
    def held(self) -> int:
        """Bytes that it has of the system."""
        return self._store.held

    def give_back_untaken(self) -> None:
        """Give what no pass has taken since the last call back to the system."""
        if not self._taken:
            self._store.drop()
        self._taken = False


def fresh(size: int) -> Tensor:
    """So many bytes, uninitialised, of their own."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class Scratch:
    """A block in named parts, and whatever a worker makes of them once for a pass.

    Args:
        sizes: bytes of each part.
    """

    def __init__(self, block: Block, sizes: Mapping[str, int]) -> None:
        self.block = block
        self.sizes = dict(sizes)
        self.parts: dict[str, Tensor] = {}
        start = 0
        for name, size in sizes.items():
            self.parts[name] = block.data[start : start + size]
            start += round_up(size, _LINE)
        self.made: Any = None

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A part, or its beginning, uninitialised."""
        return self.parts[name][: math.prod(shape) * dtype.itemsize].view(dtype).view(*shape)

    def array(self, name: str, *shape: int) -> np.ndarray:
        """The same as an array of float32."""
        return self.tensor(name, shape).numpy()


class Scratches:
    """The scratch memory of a pass: one for each worker, lent to each strip while it is computed.

    Args:
        sizes: bytes of each part of one of them.
    """

    def __init__(self, store: ScratchStore, count: int, sizes: Mapping[str, int]) -> None:
        self._store = store
        self.sizes = dict(sizes)
        self._all = [Scratch(block, sizes) for block in store.lend(count, total(sizes))]
        self._free = list(self._all)  # popped and appended to atomically

    @property
    def allocated(self) -> dict[str, int]:
        """Bytes by what they are for, of all workers."""
        parts = [scratch.parts for scratch in self._all]
        return {name: sum(each[name].numel() for each in parts) for name in self.sizes}

    def take(self) -> Scratch:
        """One that is free, which the caller puts back."""
        return self._free.pop()

    def put_back(self, scratch: Scratch) -> None:
        self._free.append(scratch)

    def close(self) -> None:
        """Give the memory back, for the next pass."""
        self._store.take_back([scratch.block for scratch in self._all])
        self._all = []
        self._free = []


def total(sizes: Mapping[str, int]) -> int:
    """Bytes of a block with such parts."""
    return sum(round_up(size, _LINE) for size in sizes.values())
