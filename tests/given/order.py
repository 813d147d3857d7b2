"""A happens-before checker for queues that run beside one another: a vector clock each, and what each buffer saw.

An actor is the CPU or a queue of a device. The CPU queues work; work of one queue runs in its order; an event that
is waited for orders two queues. Two accesses to the same bytes, one of them a write, must be ordered by this.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

CPU = "CPU"
Clock = dict[str, int]


class Access(NamedTuple):
    """Bytes [start, stop) of a buffer."""

    buffer: Hashable
    start: int
    stop: int


class _Past(NamedTuple):
    start: int
    stop: int
    write: bool
    actor: str
    time: int


@dataclass
class Order:
    """What has been queued so far.

    Attributes:
        faults: what was not in order, in words.
    """

    faults: list[str] = field(default_factory=list)
    clocks: dict[str, Clock] = field(default_factory=lambda: {CPU: {}})
    past: dict[Hashable, list[_Past]] = field(default_factory=dict)

    def work(self, actor: str, reads: Iterable[Access], writes: Iterable[Access], what: str = "work") -> None:
        """An operation on a queue, after what the CPU has waited for; or one of the CPU's own."""
        clock = self.clocks.setdefault(actor, {})
        self._join(actor, self.clocks[CPU])
        clock[actor] = clock.get(actor, 0) + 1
        for write, accesses in ((False, reads), (True, writes)):
            for access in accesses:
                self._check(actor, access, write, what)

    def event(self, actor: str) -> Clock:
        """All that a queue has before it now."""
        return dict(self.clocks.setdefault(actor, {}))

    def wait(self, actor: str, event: Clock) -> None:
        """What an actor does from now on comes after an event."""
        self._join(actor, event)

    def free(self, buffer: Hashable, actor: str, known: Iterable[str] = ()) -> None:
        """Its memory may now serve what `actor` does next; the allocator waits for the queues that it knows of."""
        clock = self.clocks.setdefault(actor, {})
        seen = self.clocks[CPU] if actor == CPU else clock | {name: 1 << 62 for name in (actor, *known)}
        for past in self.past.pop(buffer, []):
            if past.time > max(seen.get(past.actor, 0), self.clocks[CPU].get(past.actor, 0)):
                self.faults.append(f"{buffer} is freed for {actor} while {past.actor} still uses it")

    def is_done(self, buffer: Hashable) -> bool:
        """Whether the CPU knows that nothing uses a buffer any more."""
        cpu = self.clocks[CPU]
        return all(past.time <= cpu.get(past.actor, 0) for past in self.past.get(buffer, []))

    def _join(self, actor: str, other: Clock) -> None:
        clock = self.clocks.setdefault(actor, {})
        for name, time in other.items():
            if time > clock.get(name, 0):
                clock[name] = time

    def _check(self, actor: str, access: Access, write: bool, what: str) -> None:
        clock, cpu, kept = self.clocks[actor], self.clocks[CPU], []
        for past in self.past.get(access.buffer, []):
            if past.time <= cpu.get(past.actor, 0):
                continue  # the CPU knows that it is done, so it is before whatever is queued from now on
            ordered = past.time <= clock.get(past.actor, 0)
            overlaps = past.start < access.stop and access.start < past.stop
            if overlaps and not ordered and (write or past.write):
                verbs = ["writes" if each else "reads" for each in (write, past.write)]
                self.faults.append(
                    f"{what} on {actor} {verbs[0]} {access.buffer} [{access.start}, {access.stop}) while {past.actor} "
                    f"{verbs[1]} it"
                )
            covered = access.start <= past.start and past.stop <= access.stop
            # Whatever is ordered after this access is ordered after what it covers, too.
            if not (ordered and covered and (write or not past.write)):
                kept.append(past)
        kept.append(_Past(access.start, access.stop, write, actor, clock[actor]))
        self.past[access.buffer] = kept
