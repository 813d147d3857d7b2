"""Writes `vae_core/demo/latents`, the collection that Seamless Latent Load offers as `demo`.

    python tools/demo/latents.py

The held-out photographs (see `photographs.py`), cropped to squares of 256 pixels, as moments in float16. Run it again
whenever the demo VAE has new weights.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from photographs import held_out  # noqa: E402

import vae_core  # noqa: E402
from vae_core.datasets.latents import NamedLatent, save_latents  # noqa: E402

FOLDER = ROOT / "vae_core" / "demo" / "latents"
SIDE = 256


def main() -> None:
    vae = vae_core.load_vae(ROOT / "vae_core" / "demo", dtype=torch.float32)
    found = []
    for name, photograph in held_out():
        image = ImageOps.fit(photograph, (SIDE, SIDE), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0)[None] / 127.5 - 1
        found.append(NamedLatent(name, vae_core.encode(vae, pixels).parameters[0]))
    shutil.rmtree(FOLDER, ignore_errors=True)
    save_latents(FOLDER, found, vae, keep="moments", stored="float16")


if __name__ == "__main__":
    main()
