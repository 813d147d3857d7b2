"""Fuzz one entry that takes outside data: `python tools/fuzz.py TARGET [--cases N] [--seconds S] [--seed K]`.

The targets are those of `tests/fuzz`, which the tests run with a fixed seed. Where atheris is installed, coverage of
`vae_core` and `nodes` guides it: where a case is one file, it changes the bytes of files that hypothesis has made; else
it changes the bytes from which hypothesis makes a case. Without atheris, hypothesis draws at random from the seed.
Nothing is kept from one run to the next.

Ends with a line: target, engine, cases, seconds. The first case that takes too long, too much memory, or raises
anything but a VAEError ends it with a traceback and, from hypothesis, the smallest such case.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LONGEST_CASE = 8192  # bytes from which hypothesis makes a case


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a name of fuzz.TARGETS, or `list`")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["auto", "atheris", "hypothesis"], default="auto")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atheris: Any = None
    if options.engine != "hypothesis":
        try:
            import atheris  # pyright: ignore[reportMissingImports]
        except ImportError:
            if options.engine == "atheris":
                raise
    if atheris is None:
        target = loaded(options.target)
        by_hypothesis(target, options)
        return
    with atheris.instrument_imports(include=["vae_core", "nodes"]):
        target = loaded(options.target)
    by_atheris(atheris, target, options)


def loaded(name: str) -> Any:
    import logging

    import torch
    from fuzz import TARGETS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    if name not in TARGETS:
        raise SystemExit("\n".join(TARGETS))
    return TARGETS[name]


class Count:
    """Cases that were run, and when to stop."""

    def __init__(self, options: argparse.Namespace, engine: str) -> None:
        self.options, self.engine, self.cases, self.start = options, engine, 0, time.monotonic()

    def add(self, cases: int) -> bool:
        """Whether there is more to do."""
        self.cases += cases
        return self.cases < self.options.cases and time.monotonic() - self.start < self.options.seconds

    def report(self) -> None:
        seconds = time.monotonic() - self.start
        print(f"{self.options.target}: {self.engine}, {self.cases} cases in {seconds:.0f} s", flush=True)


def rule(cases: int) -> Any:
    from hypothesis import HealthCheck, settings

    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
    )


def by_hypothesis(target: Any, options: argparse.Namespace) -> None:
    from hypothesis import seed

    count, rounds = Count(options, "hypothesis"), random.Random(options.seed)
    more = True
    while more:
        cases = min(500, options.cases - count.cases)
        target._hypothesis_internal_use_settings = rule(cases)  # a test takes settings once, and here each round
        seed(rounds.getrandbits(32))(target)()
        more = count.add(cases)
        if count.cases % 5000 < cases:
            count.report()
    count.report()


def by_atheris(atheris: Any, target: Any, options: argparse.Namespace) -> None:
    from fuzz import CHECKS, limits

    corpus = []
    if options.target in CHECKS:
        corpus.append(recorded(target, options.seed))
        name, check = CHECKS[options.target]
    count = Count(options, "atheris")

    def case(raw: bytes) -> None:
        if corpus:
            check(limits.put(name, raw))
            done = True
        else:
            done = target.hypothesis.fuzz_one_input(raw) is not None  # None if the bytes do not make a case
        if not count.add(int(done)):
            count.report()
            sys.stdout.flush()
            shutil.rmtree(limits.folder(), ignore_errors=True)
            os._exit(0)
        if done and count.cases % 5000 == 0:
            count.report()

    arguments = [f"-seed={options.seed}", f"-max_len={LONGEST_CASE}", "-len_control=0", "-verbosity=0", *corpus]
    atheris.Setup([sys.argv[0], *arguments, "-timeout=60", "-rss_limit_mb=4096"], case)
    atheris.Fuzz()


def recorded(target: Any, number: int) -> str:
    """A folder with the files of a few hundred cases of hypothesis's."""
    from fuzz import limits
    from hypothesis import seed

    limits.recorded = {}
    target._hypothesis_internal_use_settings = rule(300)
    seed(number)(target)()
    folder = limits.folder() / "corpus"
    folder.mkdir()
    for index, raw in enumerate(limits.recorded):
        (folder / str(index)).write_bytes(raw)
    limits.recorded = None
    return str(folder)


if __name__ == "__main__":
    main()
