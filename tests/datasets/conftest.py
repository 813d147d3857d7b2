"""A small VAE, small images, and what two collections have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from given.collection import make_images, small_vae

from vae_core import AutoencoderKL


@pytest.fixture(scope="session")
def vae() -> AutoencoderKL:
    return small_vae()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of many sizes in three folders, and two files that only look like images."""
    return make_images(tmp_path_factory.mktemp("source") / "images", 20, broken=True)


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory, vae: AutoencoderKL) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    vae.save_pretrained(folder)
    return folder
