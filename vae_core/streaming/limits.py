"""How much more memory this process may take: limits of its cgroups (containers, services) and of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

try:
    import resource
except ImportError:  # Windows
    resource = None

_NO_LIMIT = 2**60  # version 1 has no word for none: it is an impossible number of pages


def free_within_limits(root: Path = Path("/")) -> int | None:
    """Bytes that are free within the narrowest limit; None where there is none.

    Args:
        root: of the file system with `proc`, and with the mounted cgroups.
    """
    found = [*_free_in_cgroups(root), *_free_of_own(root)]
    return max(0, min(found)) if found else None


def free_within_own(root: Path = Path("/")) -> int | None:
    """Bytes that are free within the limits of this process, beyond which allocations fail; None where it has none."""
    return max(0, min(found)) if (found := list(_free_of_own(root))) else None


# Control groups.


def _free_in_cgroups(root: Path) -> Iterator[int]:
    """Bytes free in each memory group that this process is in, from its own to the outermost that can be seen."""
    mounts = _mounts(root)
    for line in _lines(root / "proc/self/cgroup"):
        if line.count(":") < 2:  # what a container's stand-in for it says is not always what Linux says
            continue
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2 if not controllers else 0
        if version not in mounts:
            continue
        mounted, at = mounts[version]
        for group in _up_to(root / at.lstrip("/"), _below(path, mounted)):
            free = _free_in_old_group(group) if version == 1 else _free_in_group(group)
            if free is not None:
                yield free


def _mounts(root: Path) -> dict[int, tuple[str, str]]:
    """By version: the group that is mounted, and where."""
    found: dict[int, tuple[str, str]] = {}
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        if fields.count(" ") < 4 or rest.count(" ") < 2:
            continue
        _, _, _, mounted, at, *_ = (_unescaped(field) for field in fields.split(" "))
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault(2, (mounted, at))
        elif kind == "cgroup" and "memory" in options.split(","):
            found.setdefault(1, (mounted, at))
    return found


def _unescaped(field: str) -> str:
    return re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), field)


def _below(path: str, mounted: str) -> PurePosixPath:
    """A group's path below the mounted one. A container may see its path outside of it, or none."""
    group = PurePosixPath("/", path)
    return group.relative_to(mounted if group.is_relative_to(mounted) else "/")


def _up_to(top: Path, below: PurePosixPath) -> Iterator[Path]:
    if ".." not in below.parts:  # a group outside of the namespace
        for each in [below, *below.parents][:-1]:
            yield top / each
    yield top


def _free_in_group(group: Path) -> int | None:
    limits = [limit for name in ("memory.max", "memory.high") if (limit := _number(group / name)) is not None]
    used = _number(group / "memory.current")
    if not limits or used is None:
        return None
    return min(limits) - used + _statistics(group).get("inactive_file", 0)


def _free_in_old_group(group: Path) -> int | None:
    limit = _number(group / "memory.limit_in_bytes")
    used = _number(group / "memory.usage_in_bytes")
    statistics = {}
    if limit is None or used is None:
        return None
    statistics = _statistics(group)
    limit = min(limit, statistics.get("hierarchical_memory_limit", limit))  # of groups that cannot be seen, too
    if limit >= _NO_LIMIT:
        return None
    return limit - used + statistics.get("total_inactive_file", statistics.get("inactive_file", 0))


def _statistics(group: Path) -> dict[str, int]:
    """`memory.stat`. Pages of files that were not used lately ("inactive_file") are given up before memory runs out."""
    pairs = (line.split(" ") for line in _lines(group / "memory.stat"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _is_number(pair[1])}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", or no file."""
    for line in _lines(path):
        return int(line) if _is_number(line) else None
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


# The process's own limits (ulimit -v, -d).


def _free_of_own(root: Path) -> Iterator[int]:
    if resource is None:
        return
    for line in _lines(root / "proc/self/statm"):
        fields = [int(pages) * resource.getpagesize() for pages in line.split()]
        for limit, used in ((resource.RLIMIT_AS, fields[0]), (resource.RLIMIT_DATA, fields[5])):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                yield most - used
