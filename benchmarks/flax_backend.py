"""JAX on this machine beside torch: the streaming engine and the reference path, on the same weights and inputs.

    python benchmarks/flax_backend.py [--rows NAME ...] [--runs 3] [--threads 2] [--quick]

Each row runs its systems in turns, in one process, every turn beginning with another one; figures are medians.
Compilation is done before and reported beside. The table goes between the markers of docs/benchmarks-flax.md; with
--quick, which tries everything on a tiny model, to build/ instead. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from engine import in_turns, machine
from peers import CONFIGS, OURS, PLAIN, ROOT, build, make_input, ours
from report import duration, table
from torch import Tensor

from vae_core.flax import FlaxAutoencoderKL, from_torch

JAX = "JAX"
BEGIN, END = "<!-- begin: written by benchmarks/flax_backend.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One input, run by every system."""

    name: str
    title: str
    direction: str
    size: int
    config: str = "full"
    batch: int = 1


ROWS = (
    Row("decode-512", "decode 512x512", "decode", 512),
    Row("encode-512", "encode 512x512", "encode", 512),
    Row("decode-256", "decode 256x256", "decode", 256),
    Row("batch", "decode 4 x 256x256", "decode", 256, batch=4),
    Row("narrow-512", "decode 512x512, demo VAE's widths", "decode", 512, config="narrow"),
    Row("narrow-encode-512", "encode 512x512, demo VAE's widths", "encode", 512, config="narrow"),
)


def compiled(row: Row, x: Tensor) -> tuple[Callable[[], Tensor], float]:
    """A function that runs a row in JAX, and the seconds that its compilation took."""
    vae = ours(CONFIGS[row.config])
    model = FlaxAutoencoderKL.from_config(vae.config)
    params, array = from_torch(vae.state_dict(), vae.config), jnp.asarray(x.numpy())

    def run(params: Any, x: Any) -> Any:
        if row.direction == "encode":
            return model.apply({"params": params}, x, method=model.encode).latent_dist.mode()
        return model.apply({"params": params}, x, method=model.decode).sample

    start = time.perf_counter()
    executable = jax.jit(run).lower(params, array).compile()
    seconds = time.perf_counter() - start
    return lambda: torch.from_numpy(np.array(executable(params, array))), seconds


@torch.inference_mode()
def run_row(row: Row, turns: int, limit: float) -> dict[str, Any]:
    """Median seconds of every system, the largest difference of JAX's result to the others', and compilation."""
    config = CONFIGS[row.config]
    x = make_input(config, row.direction, row.size, row.batch)
    in_jax, compiling = compiled(row, x)
    torchs = {name: build(name, config, budget=0) for name in (OURS, PLAIN)}
    results: dict[str, Tensor] = {}

    def of_torch(name: str) -> Callable[[], None]:
        return lambda: results.__setitem__(name, torchs[name].run(row.direction, x))

    runs = {JAX: lambda: results.__setitem__(JAX, in_jax()), **{name: of_torch(name) for name in torchs}}
    warm_up = make_input(config, row.direction, min(row.size, 128), row.batch)
    for system in torchs.values():
        system.run(row.direction, warm_up)
    in_jax()
    seconds = in_turns(list(runs.values()), turns, limit)
    return {
        "seconds": {name: statistics.median(times) for name, times in zip(runs, seconds, strict=True)},
        "turns": len(seconds[0]),
        "difference": max((results[JAX] - results[name]).abs().max().item() for name in torchs),
        "compiling": compiling,
    }


def line(row: Row, measured: dict[str, Any]) -> list[str]:
    """A row of the table: every time, in brackets how many times JAX's it is."""
    seconds = measured["seconds"]
    others = [f"{duration(seconds[name])} ({seconds[name] / seconds[JAX]:.2f})" for name in (OURS, PLAIN)]
    return [
        row.title,
        duration(seconds[JAX]),
        *others,
        duration(measured["compiling"]),
        f"{measured['difference']:.0e}",
        str(measured["turns"]),
    ]


def write(path: Path, part: str) -> None:
    """Put the figures between the markers of the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n\n{part}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=3, help="turns of a row; short ones take more")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a row takes no further turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; JAX takes all cores")
    parser.add_argument("--quick", action="store_true", help="a tiny model and small images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for row in ROWS if row.name in options.rows]
    if options.quick:
        rows = [replace(row, title=f"{row.title}, an eighth of it", size=row.size // 8, config="tiny") for row in rows]
    lines = []
    for row in rows:
        lines.append(line(row, run_row(row, options.runs, options.limit)))
        print(" | ".join(lines[-1]), flush=True)
    here = machine() | {"jax": jax.__version__, "JAX's device": jax.devices()[0].device_kind}
    here.pop("diffusers", None)
    measured_on = "Measured on: " + "; ".join(f"{name} {value}" for name, value in here.items()) + "."
    header = ["case", JAX, OURS, PLAIN, "compilation before", "largest difference", "turns"]
    path = (ROOT / "build" if options.quick else ROOT / "docs") / "benchmarks-flax.md"
    write(path, f"{measured_on}\n\n{table(header, lines)}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
