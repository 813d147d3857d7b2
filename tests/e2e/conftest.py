"""One real host for all tests of this folder. COMFYUI_PATH names its checkout; COMFYUI_PYTHON, where it is not the
interpreter of the tests, the one that has its requirements.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vae_core
from vae_core.cli.common import DEMO, DEMO_PHOTOGRAPH

pytest.importorskip("aiohttp", reason="aiohttp is not installed; it is part of the extra `test`")

from e2e.real_host import Comfy, checkout, running

SD_FIELDS = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
SMALL_FIELDS = {**SD_FIELDS, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
PHOTOGRAPH = "chelsea.png"
# Files of models/vae: one that the host can load itself, for it knows no other widths, and a small one of ours.
HOST_VAE, SMALL_VAE = "sd.safetensors", "small.safetensors"


def random_vae(fields: dict[str, object], seed: int) -> vae_core.AutoencoderKL:
    torch.manual_seed(seed)
    return vae_core.AutoencoderKL(**fields)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    path = checkout()
    folder = tmp_path_factory.mktemp("comfy")
    models = folder / "models"
    (models / "vae").mkdir(parents=True)
    (folder / "input").mkdir()
    vae_core.save_single_file(random_vae(SD_FIELDS, 1), models / "vae" / HOST_VAE)
    vae_core.save_single_file(random_vae(SMALL_FIELDS, 2), models / "vae" / SMALL_VAE)
    vae_core.load_vae(DEMO).save_pretrained(models / "diffusers" / "demo_pipeline" / "vae")
    (folder / "input" / PHOTOGRAPH).write_bytes(Path(DEMO_PHOTOGRAPH).read_bytes())
    with running(path, folder) as host:
        yield host
