"""Free memory is the smallest of the machine's, the cgroups' and the process's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae_core.streaming import memory
from vae_core.streaming.limits import free_within_limits

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix")
MIB = 2**20
V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory\n"
OTHERS = (
    "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:14 - cgroup cgroup rw,cpu,cpuacct\n"
)
UNLIMITED = 9223372036854771712  # what version 1 says for none


def tree(root: Path, group: str, mounts: str, files: dict[str, str | int]) -> Path:
    """A file system with the cgroups of this process. Paths of `files` are below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    (root / "proc/self/mountinfo").write_text(OTHERS + mounts)
    for name, value in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n" if isinstance(value, int) else value)
    return root


def test_a_container_of_version_2(tmp_path: Path) -> None:
    files = {"memory.max": 512 * MIB, "memory.current": 200 * MIB, "memory.stat": "anon 5\ninactive_file 1048576\n"}
    assert free_within_limits(tree(tmp_path, "0::/\n", V2.format(root="/"), files)) == 313 * MIB


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        (("max", 900, "max"), 800),
        ((300, 900, "max"), 200),
        ((1000, 300, "max"), 200),
        ((1000, 900, 250), 150),
        (("max", "max", "max"), None),
        ((50, 900, "max"), 0),  # used beyond a limit that was lowered
    ],
)
def test_the_narrowest_of_nested_groups(limits: tuple[int | str, ...], free: int | None, tmp_path: Path) -> None:
    files: dict[str, str | int] = {}
    for folder, limit in zip(("a.slice/b.service/", "a.slice/", ""), limits, strict=True):
        files[f"{folder}memory.max"] = f"{limit}\n" if isinstance(limit, str) else limit * MIB
        files[f"{folder}memory.current"] = 100 * MIB
    root = tree(tmp_path, "0::/a.slice/b.service\n", V2.format(root="/"), files)
    assert free_within_limits(root) == (None if free is None else free * MIB)


def test_where_the_kernel_begins_to_hold_back(tmp_path: Path) -> None:
    files = {"memory.max": "max\n", "memory.high": 64 * MIB, "memory.current": 4 * MIB}
    assert free_within_limits(tree(tmp_path, "0::/\n", V2.format(root="/"), files)) == 60 * MIB


@pytest.mark.parametrize(
    ("group", "mounted"),
    [("/docker/0123", "/docker/0123"), ("/docker/0123", "/"), ("/", "/"), ("/elsewhere", "/docker/0123")],
)
def test_a_container_of_version_1(group: str, mounted: str, tmp_path: Path) -> None:
    """Its own group is mounted, or the whole tree is; or its path is one outside of the container."""
    below = "docker/0123/" if (group, mounted) == ("/docker/0123", "/") else ""
    files: dict[str, str | int] = {
        "memory/memory.limit_in_bytes": UNLIMITED,
        "memory/memory.usage_in_bytes": 900 * MIB,
        f"memory/{below}memory.limit_in_bytes": 512 * MIB,
        f"memory/{below}memory.usage_in_bytes": 200 * MIB,
        f"memory/{below}memory.stat": "cache 7\ninactive_file 1\ntotal_inactive_file 1048576\n",
    }
    lines = f"4:memory:{group}\n1:cpu:/\n0::/\n"
    assert free_within_limits(tree(tmp_path, lines, V1.format(root=mounted), files)) == 313 * MIB


def test_groups_of_version_1_that_cannot_be_seen(tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "memory/memory.limit_in_bytes": UNLIMITED,
        "memory/memory.usage_in_bytes": 10 * MIB,
        "memory/memory.stat": f"hierarchical_memory_limit {100 * MIB}\n",
    }
    assert free_within_limits(tree(tmp_path, "4:memory:/\n", V1.format(root="/"), files)) == 90 * MIB


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    """As systemd's hybrid: memory is with version 1, and version 2 has no files of it."""
    files: dict[str, str | int] = {
        "memory/memory.limit_in_bytes": 100 * MIB,
        "memory/memory.usage_in_bytes": 10 * MIB,
        "unified/cgroup.procs": "1\n",
    }
    mounts = V1.format(root="/") + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    assert free_within_limits(tree(tmp_path, "4:memory:/\n0::/\n", mounts, files)) == 90 * MIB


@pytest.mark.parametrize(
    ("group", "mounts"),
    [
        ("", ""),
        ("0::/\n", ""),
        ("0::/../other\n", V2.format(root="/")),
        ("0::/gone\n", V2.format(root="/")),
        ("4:memory:/\n", V1.format(root="/a\\040b")),
    ],
)
def test_no_limit_is_known(group: str, mounts: str, tmp_path: Path) -> None:
    assert free_within_limits(tree(tmp_path, group, mounts, {})) is None


def test_no_proc_at_all(tmp_path: Path) -> None:
    assert free_within_limits(tmp_path) is None


@pytest.mark.parametrize(("machine", "limits", "free"), [(5, 3, 3), (3, 5, 3), (None, 5, 5), (5, None, 5)])
def test_the_smallest_counts(
    machine: int | None, limits: int | None, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_of_machine", lambda: machine)
    monkeypatch.setattr(memory, "free_within_limits", lambda: limits)
    assert memory.available_bytes(torch.device("cpu")) == free


OWN = """
import resource, runpy  # without torch, which takes seconds to import
free_within_limits = runpy.run_path("vae_core/streaming/limits.py")["free_within_limits"]
for limit, field in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
    used = int(open("/proc/self/statm").read().split()[field]) * resource.getpagesize()
    resource.setrlimit(limit, (used + 2**28, resource.RLIM_INFINITY))
    assert 2**28 - 2**24 < free_within_limits() <= 2**28, free_within_limits()
    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_limits_of_the_process() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", OWN], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ODD: dict[str, tuple[str, str, str]] = {  # the group, mounts before the real one, statistics
    "an empty line": ("\n0::/\n", "\n", "\n"),
    "words": ("odd\n0::/\n", "odd\n", "odd\n"),
    "too few fields": ("0:\n0::/\n", "1 2 - cgroup2\n1 2 3 4 5 - cgroup2\n", "inactive_file\n"),
    "no numbers": ("0::/\n", "", "inactive_file max\nanon \u00b2\na b c\n"),
    "a group without a root": ("0::odd\n", "", ""),
    "a group beside the root": ("0::../odd\n", "", ""),
}


@pytest.mark.parametrize("case", ODD)
def test_files_that_linux_does_not_write(case: str, tmp_path: Path) -> None:
    group, mounts, statistics = ODD[case]
    files: dict[str, str | int] = {"memory.max": 9 * MIB, "memory.current": MIB, "memory.stat": statistics}
    assert free_within_limits(tree(tmp_path, group, mounts + V2.format(root="/"), files)) == 8 * MIB


@pytest.mark.parametrize("limit", ["", "\u00b2\n", "-1\n", "odd\n"])
def test_a_limit_that_is_no_number(limit: str, tmp_path: Path) -> None:
    files: dict[str, str | int] = {"memory.max": limit, "memory.current": MIB}
    assert free_within_limits(tree(tmp_path, "0::/\n", V2.format(root="/"), files)) is None
