"""Samples from the posterior: noise that depends on the seed and the item alone."""

from __future__ import annotations

import pytest
import torch
from given.nodes import CLOSE, Makers, encode
from host.stand_in import Pack

pytestmark = pytest.mark.usefixtures("host")


def test_a_sample_depends_on_seed_and_item_alone(pack: Pack, make: Makers) -> None:
    vae, pixels = make.vae(), make.image(3, 20, 24, 3)
    sampled, posterior, _ = encode(pack, vae, pixels, sample_mode="sample", seed=40)
    for item in range(3):
        alone, *_ = encode(pack, vae, pixels[item : item + 1], sample_mode="sample", seed=40 + item)
        torch.testing.assert_close(sampled["samples"][item : item + 1], alone["samples"], **CLOSE)
    tiled, *_ = pack.run("SeamlessVAEEncodeTiled", pixels=pixels, vae=vae, sample_mode="sample", seed=40, tile_size=4)
    torch.testing.assert_close(tiled["samples"], sampled["samples"], **CLOSE)
    (again,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=40)
    assert torch.equal(again["samples"], sampled["samples"])
    # Of mean 3 and deviation 2: the noise is what torch gives for the seed and the item's number.
    known = {"samples": torch.full((2, 4, 10, 12), 3.0), "logvar": torch.full((2, 4, 10, 12), 1.3862944)}
    (of_known,) = pack.run("SeamlessVAESamplePosterior", posterior=known, seed=40)
    noise = torch.randn(1, 4, 10, 12, generator=torch.Generator().manual_seed(41))
    torch.testing.assert_close(of_known["samples"][1:2], 3.0 + 2.0 * noise, **CLOSE)


def test_noise_is_the_same_in_another_precision(pack: Pack, make: Makers) -> None:
    vae, pixels = make.vae(), make.image()
    vae.first_stage_model.to(torch.bfloat16)
    sampled, posterior, _ = encode(pack, vae, pixels, sample_mode="sample", seed=3)
    noise = (sampled["samples"] - posterior["samples"]) / torch.exp(0.5 * posterior["logvar"])
    expected = torch.randn(1, 4, 10, 12, generator=torch.Generator().manual_seed(3))
    assert sampled["samples"].dtype == torch.float32
    torch.testing.assert_close(noise, expected, rtol=0, atol=1e-5)


def test_several_samples(pack: Pack, make: Makers) -> None:
    _, posterior, _ = encode(pack, make.vae(), make.image(2, 20, 24, 3))
    posterior["kept"], posterior["noise_mask"] = "yes", torch.rand(2, 1, 20, 24)
    (many,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=9, count=3)
    (one,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=9)
    assert many["samples"].shape == (6, 4, 10, 12) and "logvar" not in many
    assert torch.equal(many["samples"][:2], one["samples"]) and many["kept"] == "yes"
    assert many["batch_index"] == [0, 1, 2, 3, 4, 5] and many["noise_mask"].shape == (6, 1, 20, 24)
    (later,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=13)
    assert torch.equal(many["samples"][4:], later["samples"])
    assert len({tuple(each.flatten()[:3].tolist()) for each in many["samples"]}) == 6
    (mode,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, sample_mode="mean", count=2)
    assert torch.equal(mode["samples"], posterior["samples"].repeat(2, 1, 1, 1))


def test_temperature(pack: Pack, make: Makers) -> None:
    _, posterior, _ = encode(pack, make.vae(), make.image())
    results = {}
    for temperature in (0.0, 0.5, 1.0, 2.0):
        (sampled,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=1, temperature=temperature)
        results[temperature] = sampled["samples"] - posterior["samples"]
    assert not results[0.0].any()
    for temperature in (0.5, 2.0):
        torch.testing.assert_close(results[temperature], temperature * results[1.0], **CLOSE)


def test_a_number_in_the_batch_goes_with_its_noise(pack: Pack, make: Makers) -> None:
    _, posterior, _ = encode(pack, make.vae(), make.image(3, 20, 24, 3))
    (all_,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, seed=5)
    picked = {"samples": posterior["samples"][2:], "logvar": posterior["logvar"][2:], "batch_index": [2]}
    (one,) = pack.run("SeamlessVAESamplePosterior", posterior=picked, seed=5)
    assert torch.equal(one["samples"], all_["samples"][2:])


def test_the_seed_after_the_largest_is_the_first(pack: Pack, make: Makers) -> None:
    vae, pixels = make.vae(), make.image(2, 20, 24, 3)
    last, *_ = encode(pack, vae, pixels, sample_mode="sample", seed=2**64 - 1)
    first, *_ = encode(pack, vae, pixels.flip(0), sample_mode="sample", seed=0)
    torch.testing.assert_close(last["samples"][1], first["samples"][0], **CLOSE)
    assert (last["samples"][0] - first["samples"][1]).abs().max() > 1e-3
