"""What a run has done, counted while it ran: the plan says the same before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class PassRecord(NamedTuple):
    """One pass of a program.

    Attributes:
        strips: into how many it was cut.
        held: bytes that the engine had for it at once, by the names that its kernel's `workspace` and the plan have for
            them. What an operation of torch's takes while it computes a strip is not among them.
    """

    strips: int
    held: Mapping[str, int]


@dataclass
class Executed:
    """A run, or what has been done of it.

    Attributes:
        passes, tiles: as a Plan has them.
        records: of the passes of a program, in their order.
        places: most bytes of feature maps by place, idle buffers included.
    """

    passes: int = 0
    tiles: int = 0
    records: list[PassRecord] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    @property
    def strips(self) -> int:
        return sum(record.strips for record in self.records)

    @property
    def peak_bytes(self) -> int:
        """Most bytes that the engine had at once."""
        return max((sum(record.held.values()) for record in self.records), default=0)
