"""For all tests: one thread each, because models this narrow gain nothing from more, and every core at work.

`pytest` alone, the whole suite, runs in as many processes as there are cores, up to four, where pytest-xdist is
installed. A file named on the command line runs in one; `-n` says otherwise, and `-n 0` or `-p no:xdist` means one.
What shares something that starts slowly, or that there can be only one of, stays in one process: see `GROUPS`.
"""

from __future__ import annotations

import os
from typing import Any

# XLA's own optimisations take most of the time of a test in JAX, and change no sum.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import pytest
import torch

torch.set_num_threads(1)

MOST_PROCESSES = 4
# Tests whose names begin so are run by one process, one after another; of the others, each file is.
GROUPS = {
    "tests/web/": "pages",  # one browser, and one server for each release of the front end
    "tests/test_preview": "pages",
    "tests/e2e/": "host",
    "tests/datasets/test_ray.py": "ray",  # `ray stop` stops every cluster of the machine
    "tests/datasets/test_docs.py": "ray",
}
# Files of many independent tests that would be the last to end.
SCATTERED = (
    "tests/fuzz/test_targets.py",
    "tests/flax/test_parity.py",
    "tests/flax/test_loading.py",
    "tests/streaming/test_exact.py",
)


def group_of(test: str) -> str:
    """What runs in one process with a test, by its node id."""
    for start, group in GROUPS.items():
        if test.startswith(start):
            return group
    return test if test.startswith(SCATTERED) else test.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    options = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and options.numprocesses is None and options.dist == "no" and not (options.tx or options.usepdb):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options.numprocesses = min(cores, MOST_PROCESSES) if cores > 1 else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)
