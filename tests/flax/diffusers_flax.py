"""Run by test_diffusers_flax.py in an environment of its own: diffusers v0.26.3's Flax VAE on a folder's parameters.

PYTHON tests/flax/diffusers_flax.py FOLDER INPUTS.npz RESULTS.npz FOLDER_TO_SAVE_TO
"""

from __future__ import annotations

import sys

import numpy as np
from diffusers import FlaxAutoencoderKL  # type: ignore[attr-defined]

folder, inputs, results, saved = sys.argv[1:]
model, params = FlaxAutoencoderKL.from_pretrained(folder)
data = np.load(inputs)
posterior = model.apply({"params": params}, data["image"], method=model.encode).latent_dist
np.savez(
    results,
    mean=np.transpose(posterior.mean, (0, 3, 1, 2)),  # its latents have their channels last
    logvar=np.transpose(posterior.logvar, (0, 3, 1, 2)),
    kl=posterior.kl(),
    decoded=model.apply({"params": params}, data["z"], method=model.decode).sample,
    forward=model.apply({"params": params}, data["image"]).sample,
)
model.save_pretrained(saved, params)
