"""How fast a collection is encoded, against a plain loop with diffusers on the same images and weights.

    python benchmarks/dataset.py [--sizes 256 512] [--images 48] [--model full]

Both read the same JPEG files and write nothing but latents. The plain loop opens, resizes and encodes one image after
the other, as scripts do; `encode_dataset` is measured from its call to its return, writing included. Each is run
`--repeats` times in turn, and the fastest counts. "Encoder at work" is the share of the run in which the model
computes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import CONFIGS
from PIL import Image
from torch import Tensor

from vae_core import AutoencoderKL
from vae_core.datasets import Buckets, Engine, choose_settings, encode_dataset
from vae_core.datasets.progress import RunProgress

BAR, BAR_AT_WORK = 2.0, 0.9


def make_photographs(folder: Path, count: int, size: int) -> list[Path]:
    """JPEG files a quarter larger than the size, with detail on every scale, as photographs have it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    places = []
    for i in range(count):
        side = size * 5 // 4
        image = np.zeros((side, side, 3), np.float32)
        for scale in (4, 16, 64, side):
            noise = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            image += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float32) / scale**0.5
        image = (image - image.min()) / (image.max() - image.min()) * 255
        places.append(folder / f"{i:04d}.jpg")
        Image.fromarray(image.astype(np.uint8)).save(places[-1], quality=90)
    return places


@torch.no_grad()
def plain_loop(vae: Any, places: list[Path], size: int) -> Tensor:
    """What a script does with diffusers' class: open, resize, encode, keep."""
    latents = []
    for place in places:
        with Image.open(place) as image:
            image = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        latents.append(vae.encode(pixels).latent_dist.mode())
    return torch.cat(latents)


def twin(vae: AutoencoderKL) -> Any:
    """diffusers' model with the same weights."""
    import diffusers

    theirs: Any = diffusers.AutoencoderKL.from_config(vae.config.to_dict())
    theirs.load_state_dict(vae.state_dict())
    return theirs.eval()


def measure(model: str, size: int, count: int, repeats: int) -> dict[str, float]:
    """Images per second of both, and the share of time that the encoder is at work."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIGS[model]).eval()
    peer = twin(vae)
    with tempfile.TemporaryDirectory() as place:
        photographs = make_photographs(Path(place) / "photos", count, size)
        settings = choose_settings(vae, Buckets(size, size))
        plain_loop(peer, photographs[:1], size)
        ours, theirs, at_work = [], [], []
        for _ in range(repeats):
            began = time.perf_counter()
            plain_loop(peer, photographs, size)
            theirs.append(time.perf_counter() - began)
            out, progress = Path(place) / "out", RunProgress(show=False)
            shutil.rmtree(out, ignore_errors=True)
            began = time.perf_counter()
            encode_dataset(str(Path(place) / "photos"), out, vae, settings, engine=Engine(), progress=progress)
            ours.append(time.perf_counter() - began)
            at_work.append(progress.busy / ours[-1])
    return {
        "size": size,
        "ours": count / min(ours),
        "diffusers": count / min(theirs),
        "ratio": min(theirs) / min(ours),
        "encoder_at_work": at_work[ours.index(min(ours))],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--model", choices=CONFIGS, default="full")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    rows = [measure(arguments.model, size, arguments.images, arguments.repeats) for size in arguments.sizes]
    print(
        "| pixels | Seamless VAE | plain loop with diffusers | times | encoder at work |",
        "| --- | --- | --- | --- | --- |",
        sep="\n",
    )
    met = True
    for row in rows:
        met = met and row["ratio"] >= BAR and row["encoder_at_work"] >= BAR_AT_WORK
        print(
            f"| {row['size']:.0f} | {row['ours']:.2f} images/s | {row['diffusers']:.2f} images/s | "
            f"{row['ratio']:.2f} | {row['encoder_at_work']:.0%} |"
        )
    print(f"bar: {BAR} times, encoder at work {BAR_AT_WORK:.0%}: {'met' if met else 'not met'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
