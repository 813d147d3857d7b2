"""Tensors that cannot be computed with as they are, on each wire: a sentence, and no crash."""

from __future__ import annotations

import pytest
import torch
from given.odd_tensors import WITHOUT_VALUES
from host.stand_in import Pack


@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_images_and_masks(pack: Pack, kind: str) -> None:
    checks, error = pack.module("nodes.checks"), pack.module("vae_core").VAEError
    change, said = WITHOUT_VALUES[kind]
    image, mask = torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16)
    assert checks.checked_image(image) is image
    assert checks.checked_mask(mask, image).shape == mask.shape
    with pytest.raises(error, match=f"this is not a batch of images: it {said.partition('.')[0]}"):
        checks.checked_image(change(image))
    with pytest.raises(error, match=f"this is not a mask: it {said.partition('.')[0]}"):
        checks.checked_mask(change(mask), image)


@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_latents_and_posteriors(pack: Pack, kind: str) -> None:
    latents, error = pack.module("nodes.latents"), pack.module("vae_core").VAEError
    change, said = WITHOUT_VALUES[kind]
    samples = torch.zeros(1, 4, 8, 8)
    assert latents.samples_of({"samples": samples}) is samples
    with pytest.raises(error) as caught:
        latents.samples_of({"samples": change(samples)})
    assert said.partition(".")[0] in str(caught.value) or kind in ("nothing", "nested", "jagged")
    with pytest.raises(error, match="the log-variance of this posterior is"):
        latents.posterior_of({"samples": samples, "logvar": change(samples)})
