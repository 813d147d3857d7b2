"""Time and peak memory of one run in a fresh process (Linux only).

The process builds the model and the input, warms up on a small one in a thread of its own, so that what libraries
need once is there and no scratch memory is, and reports. Then its anonymous memory (RssAnon, and RssShmem for a
temporary folder that is in memory) is sampled from outside while it runs.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peers import CONFIGS, OURS, OURS_BUDGET, build, make_input, ours

import vae_core
from vae_core.streaming.memory import give_back_freed

SAMPLE_EVERY = 0.004  # seconds
WARM_UP_LATENTS = 16


@dataclass(frozen=True)
class Measured:
    """One run: its seconds, and by how many bytes memory grew at most, with the result counted."""

    seconds: float
    bytes: int


def measure(
    system: str,
    config: str,
    size: int,
    *,
    direction: str = "decode",
    budget: int = 0,
    save: Path | None = None,
    dtype: str = "float32",
) -> Measured:
    """Run a system once in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is the end of what it wrote.
    """
    command = [sys.executable, __file__, system, config, str(size), direction, str(budget), str(save or ""), dtype]
    threads = str(torch.get_num_threads())
    with subprocess.Popen(
        [*command, threads], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(process.stderr.read()[-400:])
        line, grown = asked(process, "go")
        process.stdin.close()
        if not line:
            raise RuntimeError(process.stderr.read()[-400:] or "the process was killed")
        return Measured(float(line), grown)


def asked(process: subprocess.Popen[str], line: str) -> tuple[str, int]:
    """What a process answers to a line ("" if it ended), and by how many bytes its memory grew at most meanwhile."""
    assert process.stdin and process.stdout
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(process.stdout.readline()))  # type: ignore[union-attr]
    before = peak = anonymous_bytes(process.pid)
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    waiting.start()
    while waiting.is_alive():
        peak = max(peak, anonymous_bytes(process.pid))
        waiting.join(SAMPLE_EVERY)
    return answers[0], peak - before


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that belongs to no file on a disk; 0 once it has ended."""
    total = 0
    try:
        with open(f"/proc/{pid}/status") as lines:
            for line in lines:
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return total


def _run_once(system: str, config_name: str, size: int, direction: str, budget: int, save: str, precision: str) -> None:
    config, dtype = CONFIGS[config_name], getattr(torch, precision)
    it = build(system, config, budget, dtype)
    x = make_input(config, direction, size).to(dtype)
    small = make_input(config, direction, WARM_UP_LATENTS * config.downscale_factor).to(dtype)

    @torch.inference_mode()
    def warm_up() -> None:
        if system in (OURS, OURS_BUDGET):  # without a budget, which a small one may not fit
            run = vae_core.encode if direction == "encode" else vae_core.decode
            run(ours(config, dtype), small)
        elif it.make is None:
            it.run(direction, small)
        else:  # runtimes keep what a run takes
            it.make(direction, x)

    thread = threading.Thread(target=warm_up)
    thread.start()
    thread.join()
    if not system.startswith(("Seamless", "reference")):
        ours.cache_clear()
    gc.collect()
    give_back_freed()
    print("ready", flush=True)
    sys.stdin.readline()
    with torch.inference_mode():
        start = time.perf_counter()
        result = it.run(direction, x)
        seconds = time.perf_counter() - start
    print(seconds, flush=True)
    sys.stdin.readline()
    if save:
        torch.save(result.clone(), save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("system", "config", "size", "direction", "budget", "save", "dtype", "threads"):
        parser.add_argument(name, nargs="?" if name == "save" else None)
    options = parser.parse_args()
    torch.set_num_threads(int(options.threads))
    _run_once(
        *(options.system, options.config, int(options.size), options.direction, int(options.budget)),
        *(options.save, options.dtype),
    )


if __name__ == "__main__":
    main()
