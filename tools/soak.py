"""Encode, decode, tile, swap, cancel, reload and save in one process: `python tools/soak.py --seconds 3600`.

Each round is drawn from a seed. At the end memory, open files, threads and files in the temporary folder must be what
they were after the first rounds; images must be, to the last bit, those of the first time. Prints a line a minute and
a table of what was run; ends with status 1 and a sentence for what grew.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak_samples import Sample, verdict

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from given.in_use import blocks_in_use, bytes_in_use  # noqa: E402
from given.models import BY_NAME, family_fields, make  # noqa: E402

import vae_core  # noqa: E402
from vae_core.streaming.memory import give_back_freed  # noqa: E402

WARM_ROUNDS = 30  # before the first sample: what is compiled and cached is there then
ROUNDS = 5  # from one sample to the next, at least
SAMPLES = 100  # in all: they are objects themselves, and should not be what grows
LEAST_SAMPLES = 12


class StoppedError(Exception):
    """What a user's cancellation raises."""


class Soak:
    """The rounds.

    Args:
        folder: for the models' files; the process's temporary folder is another one.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.paths = []
        for name in ("SDXL", "FLUX.1"):
            path = folder / f"{name}.safetensors"
            vae_core.save_single_file(make(family_fields(BY_NAME[name])), path)
            self.paths.append(path)
        self.folder, self.current = folder, 0
        self.vae = vae_core.load_vae(self.paths[0])
        self.results: dict[tuple[Any, ...], Any] = {}
        self.done: Counter[str] = Counter()
        self.kinds: list[Callable[[], None]] = [
            *(self.decode, self.encode, self.decode, self.encode),
            *(self.blended, self.cancelled, self.failed, self.reload, self.swap, self.save),
        ]

    def round(self) -> None:
        work = self.random.choice(self.kinds)
        work()
        self.done[work.__name__] += 1

    # What is run.

    def options(self) -> dict[str, Any]:
        chosen = {
            "tiling": self.random.choice([None, None, vae_core.TileSpec(size=4), vae_core.TileSpec(size=9)]),
            "memory_budget": self.random.choice([None, None, 4 << 20, 2 << 20]),
            "circular": self.random.choice(["none", "none", "x", "both"]),
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def latent(self) -> Any:
        height, width = self.random.choice([(4, 4), (8, 12), (24, 16)])
        batch = self.random.choice([1, 1, 2])
        generator = torch.Generator().manual_seed(height)
        return torch.randn(batch, self.vae.config.latent_channels, height, width, generator=generator)

    def image(self) -> Any:
        height, width = self.random.choice([(32, 32), (64, 96), (192, 128)])
        return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1

    def same(self, key: tuple[Any, ...], found: Any) -> None:
        """The result of the first time. Sums of other strips differ by rounding, so options are part of the key."""
        first = self.results.setdefault((self.current, *key), float(found.double().abs().sum()))
        now = float(found.double().abs().sum())
        if now != first:
            raise AssertionError(f"{key}: another result than at first, {now} instead of {first}")

    def decode(self) -> None:
        z, options = self.latent(), self.options()
        try:
            self.same(("decode", tuple(z.shape), repr(options)), vae_core.decode(self.vae, z, **options))
        except vae_core.MemoryBudgetError:
            self.done["refused for the budget"] += 1

    def encode(self) -> None:
        image, options = self.image(), self.options()
        try:
            found = vae_core.encode(self.vae, image, **options).parameters
            self.same(("encode", tuple(image.shape), repr(options)), found)
        except vae_core.MemoryBudgetError:
            self.done["refused for the budget"] += 1

    def blended(self) -> None:
        z = self.latent()
        tiling = vae_core.TileSpec(size=8, overlap=2, mode="blended")
        self.same(("blended", tuple(z.shape)), vae_core.decode(self.vae, z, tiling=tiling))

    def cancelled(self) -> None:
        left = self.random.randrange(12)

        def progress(_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise StoppedError

        with contextlib.suppress(StoppedError):
            vae_core.decode(self.vae, self.latent(), progress=progress, memory_budget=4 << 20)

    def failed(self) -> None:
        z = self.latent()
        z[0, 0, 0, 0] = float("nan")
        for wrong in (z, z[:, :1], z.to(torch.int64)):
            try:
                vae_core.decode(self.vae, wrong)
            except vae_core.VAEError:
                continue
            raise AssertionError("a wrong latent was decoded")

    def reload(self) -> None:
        self.vae = vae_core.load_vae(self.paths[self.current])

    def swap(self) -> None:
        self.current = 1 - self.current
        self.reload()

    def save(self) -> None:
        self.vae.save_pretrained(self.folder / "saved")
        vae_core.save_single_file(self.vae, self.folder / "saved.safetensors")

    # What must not grow.

    def sample(self, temporary: Path, seconds: float) -> Sample:
        gc.collect()
        give_back_freed()
        in_use, blocks = bytes_in_use(), blocks_in_use()
        models = sum(type(each) is vae_core.AutoencoderKL and each is not self.vae for each in gc.get_objects())
        held = {"in_use": in_use, "blocks": blocks, "models": models}
        return Sample.of(os.getpid(), seconds, sum(self.done.values()), temporary=temporary, **held)


def soak(seconds: float, seed: int, say: Callable[[str], object]) -> list[str]:
    """Run for so long.

    Returns:
        A sentence for each thing that grew; none if all is well.
    """
    with tempfile.TemporaryDirectory(prefix="seamless-soak-") as models, tempfile.TemporaryDirectory() as temporary:
        before, tempfile.tempdir = tempfile.tempdir, temporary
        try:
            return _soak(Soak(Path(models), seed), Path(temporary), seconds, say)
        finally:
            tempfile.tempdir = before


def _soak(run: Soak, temporary: Path, seconds: float, say: Callable[[str], object]) -> list[str]:
    for _ in range(WARM_ROUNDS):
        run.round()
    start = said = time.monotonic()
    samples = [run.sample(temporary, 0)]
    while (passed := time.monotonic() - start) < seconds or len(samples) < LEAST_SAMPLES:
        end = passed + seconds / SAMPLES
        for number in itertools.count():
            if number >= ROUNDS and time.monotonic() - start >= end:
                break
            run.round()
        samples.append(run.sample(temporary, time.monotonic() - start))
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            say(str(samples[-1]))
    say(f"{sum(run.done.values())} rounds in {time.monotonic() - start:.0f} s: {dict(run.done)}")
    say(f"first {samples[0]}, last {samples[-1]}, {threading.active_count()} threads of Python's")
    return verdict(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = soak(options.seconds, options.seed, lambda line: print(line, flush=True))
    print("\n".join(found) or "nothing grew")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
