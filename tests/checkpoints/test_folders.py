"""Folders as people have them: one file of any name, two variants, broken links, the Hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from given.files import assert_same_weights, ldm, write
from given.models import fields, make
from torch import Tensor

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae

STEM = "diffusion_pytorch_model"
Weights = dict[str, Tensor]


def test_a_folder_with_one_file_of_any_name(vae: AutoencoderKL, tmp_path: Path) -> None:
    path = write(ldm(vae), tmp_path / "my vae.safetensors")
    assert_same_weights(load_vae(tmp_path), vae)  # no config.json
    assert inspect_vae(tmp_path).path == path
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / f"{STEM}.safetensors").rename(tmp_path / "vae" / "model.safetensors")
    assert "took model.safetensors" in inspect_vae(tmp_path / "vae").remarks[0]
    assert_same_weights(AutoencoderKL.from_pretrained(tmp_path / "vae"), vae)
    write(ldm(vae), tmp_path / "vae" / "second.safetensors")
    with pytest.raises(CheckpointError, match=r"Give the path of one of its files: model.safetensors, second.safe"):
        load_vae(tmp_path / "vae")


def test_two_variants_ask_which(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, variant="fp16")
    vae.save_pretrained(tmp_path, variant="ema")
    with pytest.raises(CheckpointError, match=r"variants ema, fp16.*Pass variant='ema' or variant='fp16'") as error:
        load_vae(tmp_path)
    with pytest.raises(CheckpointError) as same:
        inspect_vae(tmp_path)
    assert str(same.value) == str(error.value)


@pytest.mark.parametrize("name", ["config.json", f"{STEM}.safetensors"])
def test_broken_links_are_named(name: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    blob = tmp_path / "blobs" / name
    blob.parent.mkdir()
    (tmp_path / name).rename(blob)
    (tmp_path / name).symlink_to(blob)
    assert_same_weights(load_vae(tmp_path), vae)
    blob.unlink()
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=rf"{name} is a link to .*blobs.*, which is not there. Download it"):
            load_vae(path)


def test_a_folder_of_the_hubs_cache(vae: AutoencoderKL, tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    vae.save_pretrained(folder / "snapshots" / "a1" / "vae")
    assert_same_weights(load_vae(folder), vae)
    other = make(fields(32, 64), seed=1)
    other.save_pretrained(folder / "snapshots" / "b2")
    with pytest.raises(CheckpointError, match="several snapshots and no refs/main"):
        load_vae(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b2", encoding="utf-8")
    assert_same_weights(load_vae(folder), other)


def test_json_with_a_byte_order_mark(vae: AutoencoderKL, tmp_path: Path) -> None:
    """As editors of Windows write it: in the config, and in an index of shards."""
    vae.save_pretrained(tmp_path, max_shard_size="100KB")
    for path in tmp_path.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert_same_weights(load_vae(tmp_path), vae)
    assert inspect_vae(tmp_path).problem is None
    assert AutoencoderKL.load_config(tmp_path)["latent_channels"] == 4
    vae.save_pretrained(tmp_path)  # over it


def test_a_trainers_folder_has_one_safetensors_file_beside_pickles(vae: AutoencoderKL, tmp_path: Path) -> None:
    """As accelerate saves: the optimizer's state is beside the weights."""
    write(dict(vae.state_dict()), tmp_path / "model.safetensors")
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    torch.save({}, tmp_path / "scheduler.pt")
    assert_same_weights(load_vae(tmp_path), vae)
    assert inspect_vae(tmp_path).problem is None


def test_a_shard_alone_and_a_distributed_checkpoint_say_what_to_give(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    for shard in sorted((tmp_path / "shards").glob(f"{STEM}-0*")):
        with pytest.raises(CheckpointError, match=r"one of several shards of a model: give their folder, or the index"):
            load_vae(shard)
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"distributed checkpoint \(\.distcp\).*dcp_to_torch_save"):
        load_vae(tmp_path)
