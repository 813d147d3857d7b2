"""`from_pretrained(ignore_mismatched_sizes=True)`: weights of other shapes stay as a new model has them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from given.models import fields, make
from given.pairs import randomize

from vae_core import AutoencoderKL, CheckpointError, ConfigError, save_single_file

diffusers = pytest.importorskip("diffusers")

# Overrides that change the shapes of some weights, and no others.
OVERRIDES: dict[str, dict[str, Any]] = {
    "none": {},
    "rgba": {"in_channels": 4, "out_channels": 4},
    "more latent channels": {"latent_channels": 16},
    "one level wider": {"block_out_channels": (32, 96)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vae = make(fields(32, 64, layers_per_block=1, down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D")))
    randomize(vae)
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=list(OVERRIDES))
@pytest.mark.parametrize("shards", ["10GB", "200KB"])
def test_the_same_weights_are_left_out_as_diffusers_leaves_out(
    overrides: dict[str, Any], shards: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = AutoencoderKL.from_pretrained(folder)
    stored.save_pretrained(folder, max_shard_size=shards)
    arguments = {**overrides, "ignore_mismatched_sizes": True, "output_loading_info": True}
    theirs, report = diffusers.AutoencoderKL.from_pretrained(str(folder), low_cpu_mem_usage=False, **arguments)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        ours, our_report = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False, **arguments)

    left_out = {(key, tuple(found), tuple(needed)) for key, found, needed in report["mismatched_keys"]}
    assert {*our_report.pop("mismatched_keys")} == left_out
    assert bool(left_out) == bool(overrides) and not any(our_report.values())
    names = {key for key, *_ in left_out}
    assert all(name in caplog.text for name in names) and ("as they are initialised" in caplog.text) == bool(names)
    assert not ours.training and {weight.dtype for weight in ours.parameters()} == {torch.float32}
    for key, weight in theirs.state_dict().items():
        mine = ours.state_dict()[key]
        assert mine.shape == weight.shape and mine.isfinite().all() and mine.device.type == "cpu", key
        if key not in names:
            assert torch.equal(mine, weight), key
        elif weight.ndim > 1:  # as torch initialises; diffusers leaves whatever is in its memory
            limit = mine[0].numel() ** -0.5
            assert 0.9 * limit < mine.abs().max() <= limit, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_initialised_is_of_the_others_type(dtype: torch.dtype, folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder, latent_channels=8, ignore_mismatched_sizes=True, torch_dtype=dtype)
    assert {weight.dtype for weight in vae.parameters()} == {dtype}
    vae.train().decode(torch.randn(1, 8, 4, 4, dtype=dtype)).sample.float().mean().backward()
    assert all(weight.grad is not None for weight in vae.decoder.parameters())
    vae.save_pretrained(folder)
    assert AutoencoderKL.from_pretrained(folder).config.latent_channels == 8


def test_without_it_or_with_nothing_that_fits_it_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is 64x4x3x3 where 64x8x3x3 is needed"):
        AutoencoderKL.from_pretrained(folder, latent_channels=8, ignore_mismatched_sizes=False)
    with pytest.raises(CheckpointError, match="lacks"):  # weights that are not there are no mismatch
        AutoencoderKL.from_pretrained(folder, layers_per_block=2, ignore_mismatched_sizes=True)
    everything = {"block_out_channels": (96, 128), "in_channels": 5, "out_channels": 5, "latent_channels": 8}
    with pytest.raises(CheckpointError, match="Use the config that belongs"):
        AutoencoderKL.from_pretrained(folder, **everything, ignore_mismatched_sizes=True)
    save_single_file(AutoencoderKL.from_pretrained(folder), tmp_path / "a.safetensors")
    assert AutoencoderKL.from_single_file(tmp_path / "a.safetensors", ignore_mismatched_sizes=False)
    with pytest.raises(ConfigError, match="only from_pretrained"):
        AutoencoderKL.from_single_file(tmp_path / "a.safetensors", ignore_mismatched_sizes=True)
