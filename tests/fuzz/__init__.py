"""Fuzz targets: one for each entry that takes outside data, each a hypothesis test of cases that are nearly right.

Random bytes alone would not get past the first check, so every target builds its cases from pieces of honest ones.
`test_targets.py` runs a seeded number of each; `python tools/fuzz.py TARGET` runs as many as you like, guided by
coverage where atheris is installed. A new target is a name in `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import beside, collections, files, images, latent_files, routes, wires

TARGETS: dict[str, Callable[[], Any]] = {
    "safetensors": files.safetensors,
    "pickles": files.pickles,
    "zip-archives": files.zip_archives,
    "configs": beside.configs,
    "indexes": beside.indexes,
    "models": beside.models,
    "images": images.images,
    "latent-files": latent_files.latent_files,
    "npz": latent_files.npz,
    "collections": collections.collections,
    "latents": wires.latents,
    "node-inputs": wires.node_inputs,
    "routes": routes.routes,
}

# Of a target whose case is one file: the name of the file, and what is done with it.
CHECKS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "safetensors": ("x.safetensors", files.as_the_library),
    "pickles": ("x.ckpt", files.opened),
    "zip-archives": ("x.bin", files.opened),
    "configs": ("vae/config.json", beside.config),
    "indexes": ("vae/i.index.json", files.opened),
    "images": ("image", images.image),
    "latent-files": ("x.latent", latent_files.check),
    "npz": ("a_0024x0016_sd.npz", latent_files.check),
}
