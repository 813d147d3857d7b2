"""What loading a full-size VAE costs, against safetensors' own load_file of the same file.

    python benchmarks/loading.py [--repeats 15]

A VAE of SD's size (84 million weights, 335 MB) with random values is written to a temporary folder. load_file gives
a dictionary of tensors, load_vae a model. Both map the file and read nothing, so that what a program waits for is the
weights coming into memory when they are first used; they are therefore timed

- mapped: the call alone;
- used: the call, then every weight copied once into memory that exists already, with the file in the page cache;
- cold: the same with the file dropped from the page cache first (Linux only).

The rows under the line compare with what gives a model too: load_file, a model built on the meta device, and
load_state_dict(assign=True). What load_vae costs over load_file is the plan and the building of 219 modules: 4 ms,
whatever the size of the file.

Below it stands the same with `disable_mmap=True`, as the nodes load, beside the mapped one: the whole file is read in
the call.

Peak memory (Linux only) is that of a fresh process that loads and then reads every weight: one copy is 335 MB. The
last part loads a VAE out of a checkpoint of 8 GB, a sparse file.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vae_core import AutoencoderKL, AutoencoderKLConfig, load_vae, save_single_file
from vae_core.checkpoints.key_map import ldm_names
from vae_core.checkpoints.single_file import ldm_state_dict

CONFIG = AutoencoderKLConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=512,
)
LDM_NAMES = ldm_names(CONFIG)
BUDGET = 1.2
Load = Callable[[Path], Mapping[str, Tensor]]


def full_size_vae() -> AutoencoderKL:
    """SD's VAE with random weights."""
    torch.manual_seed(0)
    return AutoencoderKL(**CONFIG)


def vae_weights(path: Path) -> dict[str, Tensor]:
    return load_vae(path).state_dict()


def copied_weights(path: Path) -> dict[str, Tensor]:
    """What the nodes for ComfyUI load: weights that depend on no file."""
    return load_vae(path, disable_mmap=True).state_dict()


def torch_model(path: Path) -> dict[str, Tensor]:
    """A model of the file's weights by torch's own means."""
    weights = load_file(path)
    with torch.device("meta"):
        model = AutoencoderKL(**CONFIG)
    shapes = {key: weight.shape for key, weight in model.state_dict().items()}
    model.load_state_dict({key: weights[name].view(shapes[key]) for key, name in LDM_NAMES.items()}, assign=True)
    return model.eval().state_dict()


def use(weights: Mapping[str, Tensor], scratch: Tensor) -> None:
    """Copy every weight once."""
    for weight in weights.values():
        scratch[: weight.numel()].copy_(weight.reshape(-1))


def drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # type: ignore[attr-defined]


def paired(
    path: Path, repeats: int, other: Load, after: Callable[[Mapping[str, Tensor]], None], before: Callable[[], None]
) -> tuple[float, float, float]:
    """Median seconds of the other and of load_vae, and the median of their ratios, run in turns."""
    times: dict[Load, list[float]] = {other: [], vae_weights: []}
    for turn in range(repeats + 1):
        for load in (other, vae_weights) if turn % 2 else (vae_weights, other):
            gc.collect()
            before()
            start = time.perf_counter()
            weights = load(path)
            after(weights)
            elapsed = time.perf_counter() - start
            del weights  # unmapping is not counted
            if turn:  # the first turn warms up
                times[load].append(elapsed)
    theirs, ours = times.values()
    ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
    return statistics.median(theirs), statistics.median(ours), statistics.median(ratios)


MEASURE_PEAK = """
import logging, sys
sys.path.insert(0, sys.argv[3])
from safetensors.torch import load_file
from vae_core import load_vae
logging.disable(logging.WARNING)
load = load_file if sys.argv[2] == "load_file" else lambda path: load_vae(path).state_dict()
def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field + ":"))
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = kilobytes("VmRSS")
weights = load(sys.argv[1])
loaded = kilobytes("VmHWM")
for weight in weights.values():
    weight.sum()
print(loaded - before, kilobytes("VmHWM") - before)
"""


def peak_growth(path: Path, load: str) -> tuple[float, float]:
    """Megabytes by which the peak memory of a fresh process grows: in the call, and once all weights were read."""
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", MEASURE_PEAK, str(path), load, root]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, used = (int(number) * 1024 / 1e6 for number in result.stdout.split())
    return loaded, used


def sparse_checkpoint(path: Path, vae: AutoencoderKL, other_bytes: int) -> None:
    """A checkpoint whose VAE is real and whose diffusion model is a hole in the file."""
    small = path.with_suffix(".small")
    weights = ldm_state_dict(vae.state_dict(), vae.config)
    save_file({f"first_stage_model.{key}": weight.contiguous() for key, weight in weights.items()}, small)
    raw = small.read_bytes()
    small.unlink()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    for entry in header.values():  # the hole first, as model.* sorts after but is often written before
        entry["data_offsets"] = [offset + other_bytes for offset in entry["data_offsets"]]
    hole = {"dtype": "F16", "shape": [other_bytes // 2], "data_offsets": [0, other_bytes]}
    text = json.dumps({"model.diffusion_model.out.2.weight": hole, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(other_bytes, os.SEEK_CUR)
        file.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)

    with tempfile.TemporaryDirectory() as folder:
        vae = full_size_vae()
        path = Path(folder) / "vae.safetensors"
        save_single_file(vae, path)
        megabytes = path.stat().st_size / 1e6
        scratch = torch.zeros(max(p.numel() for p in vae.parameters()))
        print(f"{vae.num_parameters():,} weights, {megabytes:.0f} MB; {options.repeats} pairs, medians\n")

        def nothing(*_: object) -> None:
            pass

        rows = {"mapped": (nothing, nothing), "used": (lambda w: use(w, scratch), nothing)}
        if hasattr(os, "posix_fadvise"):
            rows["cold"] = (lambda w: use(w, scratch), lambda: drop_from_cache(path))
        for heading, other in (("load_file", load_file), ("a model", torch_model)):
            print(f"{'':8} {heading:>10} {'load_vae':>10} {'ratio':>7}   (budget {BUDGET})")
            for name, (after, before) in rows.items():
                theirs, ours, ratio = paired(path, options.repeats, other, after, before)
                print(f"{name:8} {theirs * 1e3:7.1f} ms {ours * 1e3:7.1f} ms {ratio:7.2f}")

        print(f"\n{'disable_mmap=True':18} {'mapped':>10} {'copied':>10} {'ratio':>7}")
        for name, (after, before) in rows.items():
            times: dict[Load, list[float]] = {vae_weights: [], copied_weights: []}
            for _ in range(options.repeats):
                for load in times:
                    gc.collect()
                    before()
                    start = time.perf_counter()
                    after(load(path))
                    times[load].append(time.perf_counter() - start)
            one, other = (statistics.median(each) for each in times.values())
            print(f"{name:18} {one * 1e3:7.1f} ms {other * 1e3:7.1f} ms {other / one:7.2f}")

        if sys.platform == "linux":
            print(f"\n{'peak memory grows by':22} {'in the call':>12} {'all weights read':>18}")
            for load in ("load_file", "load_vae"):
                loaded, used = peak_growth(path, load)
                print(f"{load:22} {loaded:9.0f} MB {used:15.0f} MB = {used / megabytes:.2f} of the file")

            large = Path(folder) / "checkpoint.safetensors"
            sparse_checkpoint(large, vae, other_bytes=8_000_000_000)
            start = time.perf_counter()
            load_vae(large)
            elapsed = time.perf_counter() - start
            loaded, used = peak_growth(large, "load_vae")
            print(
                f"\nVAE of a {large.stat().st_size / 1e9:.1f} GB checkpoint: {elapsed * 1e3:.0f} ms, "
                f"{used:.0f} MB with all its weights read"
            )


if __name__ == "__main__":
    main()
