"""Folders as people have them: one file of any name, two variants, broken links, the Hub's cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import assert_same_weights, ldm, refusal, write
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
    assert inspect_vae(tmp_path).problem == str(error.value)


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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_other_encodings(encoding: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    """As editors and shells of Windows write it: in the config, and in an index of shards."""
    vae.save_pretrained(tmp_path, max_shard_size="100KB")
    for path in tmp_path.glob("*.json"):
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
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


# What JSON may be wrong with -> what is said of it, by every reader of a config.
BROKEN = {
    b"": "Expecting value",
    b"{": "Expecting property name",
    b"// a remark\n{}": "Expecting value",
    b'{"a": 1,}': "Expecting property name|Illegal trailing comma",
    b"null": "it is null, not an object",
    b"[1]": "it is a list, not an object",
    b'{"a": "\xe9"}': "byte 7 is not text in UTF-8",
    b"[" * 100_000: "brackets are nested too deeply",
    b'{"a": "' + b"a" * 1_000_000 + b'"}': "it has 1000009 bytes; at most 1000000 are allowed",
}


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_config_that_is_not_one_says_why(number: int, vae: AutoencoderKL, tmp_path: Path) -> None:
    text, why = list(BROKEN.items())[number]
    vae.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    for function in (load_vae, AutoencoderKL.from_pretrained, AutoencoderKL.load_config):
        with pytest.raises(CheckpointError, match=rf"config\.json cannot be read as JSON: .*({why}).*or get it again"):
            function(tmp_path)


def changed(folder: Path, **values: Any) -> None:
    place = folder / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize("name", ["MyAutoencoderKL", "diffusers.AutoencoderKL", "VQModel", 7])
def test_a_class_of_another_name_whose_weights_fit(name: Any, vae: AutoencoderKL, tmp_path: Path) -> None:
    """As trainers derive their own from it; diffusers does not look at the name."""
    vae.save_pretrained(tmp_path)
    changed(tmp_path, _class_name=name)
    assert_same_weights(load_vae(tmp_path), vae)
    assert_same_weights(AutoencoderKL.from_pretrained(tmp_path), vae)
    assert f"is of the class {name}" in " ".join(inspect_vae(tmp_path).remarks)
    for i, more in enumerate(({"layers_per_block": 2}, {"latent_channels": 8}, {"down_block_types": ["DownBlock2D"]})):
        folder = tmp_path / str(i)
        vae.save_pretrained(folder)
        changed(folder, _class_name=name, **more)
        assert f"this config is for {name}, which is not an AutoencoderKL" in refusal(folder)


def test_of_a_class_of_a_very_long_name_the_beginning_is_said(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    changed(tmp_path, _class_name="M" * 81)
    assert f"is of the class {'M' * 80};" in " ".join(inspect_vae(tmp_path).remarks)
    changed(tmp_path, latent_channels=8)
    assert f"this config is for {'M' * 80}, which is not an AutoencoderKL" in refusal(tmp_path)


@pytest.mark.parametrize("values", [{"_class_name": None}, {"act_fn": "SiLU"}, {"act_fn": "SWISH"}])
def test_values_that_diffusers_takes_as_well(values: dict[str, Any], vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    changed(tmp_path, **values)
    assert_same_weights(load_vae(tmp_path), vae)


def indexed(folder: Path, vae: AutoencoderKL, name: Callable[[str], str]) -> Path:
    vae.save_pretrained(folder, max_shard_size="300KB")
    index = folder / f"{STEM}.safetensors.index.json"
    values = json.loads(index.read_text(encoding="utf-8"))
    values["weight_map"] = {key: name(file) for key, file in values["weight_map"].items()}
    index.write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_shards_below_the_folder_of_their_index(vae: AutoencoderKL, tmp_path: Path) -> None:
    assert_same_weights(load_vae(indexed(tmp_path / "a", vae, lambda name: f"./{name}")), vae)
    folder = indexed(tmp_path / "b", vae, lambda name: f"shards/{name}")
    (folder / "shards").mkdir()
    for shard in folder.glob("*.safetensors"):
        shard.rename(folder / "shards" / shard.name)
    assert_same_weights(load_vae(folder), vae)


@pytest.mark.parametrize("form", ["../{}", "a/../../{}", "/tmp/{}", "..\\{}", "C:{}", "a\\{}", ""])
def test_shards_outside_of_it_are_refused(form: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    folder = indexed(tmp_path, vae, lambda name: form.format(name))
    assert "which is outside of its folder" in refusal(folder)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["x0"], "promises x0, which no shard has"),
        (["x1", "x0"], "promises x0 and 1 more, which no shard has"),
        (["x0", "x1", "x2"], "promises x0 and 2 more, which no shard has"),
        (["x" * 81], f"promises {'x' * 80}, which no shard has"),
    ],
)
def test_how_many_weights_no_shard_has(names: list[str], says: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size="300KB")
    index = tmp_path / f"{STEM}.safetensors.index.json"
    values = json.loads(index.read_text(encoding="utf-8"))
    shard = next(iter(values["weight_map"].values()))
    index.write_text(json.dumps({"weight_map": {**values["weight_map"], **dict.fromkeys(names, shard)}}))
    assert f"{index.name} {says}. Download all shards." in refusal(tmp_path)


@pytest.mark.parametrize("size", [25_000_000, 25_000_001])
def test_how_long_an_index_may_be(size: int, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size="300KB")
    index = tmp_path / f"{STEM}.safetensors.index.json"
    index.write_text(index.read_text(encoding="utf-8").ljust(size), encoding="utf-8")
    if size == 25_000_000:
        assert_same_weights(load_vae(tmp_path), vae)
    else:
        assert "it has 25000001 bytes; at most 25000000 are allowed" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n" * 81, f"names {'n' * 80}, which is not there. Download all shards."),
        (f"{'n' * 81}.json", f"names {'n' * 80}, which is not a file of weights. Do not trust it."),
        (f"../{'n' * 81}", f"names '../{'n' * 77}', which is outside of its folder. Do not trust it."),
    ],
)
def test_names_of_shards_are_said_in_part(name: str, says: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    folder = indexed(tmp_path, vae, lambda _: name)
    if name.endswith(".json"):
        (folder / name).write_text("{}")
    assert says in refusal(folder)


def test_shards_of_a_variant_are_not_variants(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size="300KB", variant="fp16")
    assert_same_weights(load_vae(tmp_path), vae)
    assert "only the variant 'fp16'" in " ".join(inspect_vae(tmp_path).remarks)
    with pytest.raises(CheckpointError, match="Pass the variant"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_what_to_do_is_what_helps(vae: AutoencoderKL, tmp_path: Path) -> None:
    """Each remedy is one that ends the trouble, and none asks for files again that are there."""
    vae.save_pretrained(tmp_path / "safe")
    vae.save_pretrained(tmp_path / "bin", safe_serialization=False)
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("safe", {"use_safetensors": False}, "Leave use_safetensors out"),
        ("bin", {"use_safetensors": True}, "Leave use_safetensors out"),
        ("safe", {"variant": "fp16"}, "Leave variant out"),
        ("bin", {"variant": "fp16"}, "Leave variant out"),
    )
    for folder, arguments, remedy in cases:
        with pytest.raises(CheckpointError, match=remedy):
            AutoencoderKL.from_pretrained(tmp_path / folder, **arguments)
    vae.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    next((tmp_path / "shards").glob("*.index.json")).unlink()
    assert "get the index that belongs to them" in refusal(tmp_path / "shards")


def test_folders_around_a_model_say_where_it_is(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "a" / "vae_1_0")
    assert f"Give the folder {tmp_path / 'a' / 'vae_1_0'}." in refusal(tmp_path / "a")
    (tmp_path / "b" / "global_step7").mkdir(parents=True)
    torch.save({"module": vae.state_dict()}, tmp_path / "b" / "global_step7" / "mp_rank_00_model_states.pt")
    assert f"the files below it: {Path('global_step7') / 'mp_rank_00_model_states.pt'}." in refusal(tmp_path / "b")
    vae.save_pretrained(tmp_path / "c" / "vae")
    (tmp_path / "c" / "model_index.json").write_text("{}", encoding="utf-8")
    assert_same_weights(load_vae(tmp_path / "c" / "model_index.json"), vae)


@pytest.mark.parametrize("name", [None, "", 7, b"vae", ["vae"]])
def test_what_is_not_a_path(name: Any) -> None:
    for function in (load_vae, inspect_vae, AutoencoderKL.from_pretrained, AutoencoderKL.load_config):
        with pytest.raises(CheckpointError, match="the path is .*Give the path of a file or of a folder"):
            function(name)


@pytest.mark.parametrize("device", ["disk", "cuda:99", "gpu", 99, {"": "disk"}, {"encoder": "disk", "decoder": "disk"}])
def test_a_device_that_is_not_there(device: Any, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be used here"):
        AutoencoderKL.from_pretrained(tmp_path, device_map=device)
    if not isinstance(device, dict):
        with pytest.raises(CheckpointError, match="cannot be used here"):
            load_vae(tmp_path, device=device)


@pytest.mark.parametrize("device_map", [{"encoder": "cpu", "decoder": "cpu", "quant_conv": "cpu"}, {"": "cpu"}, "cpu"])
def test_maps_of_one_device(device_map: Any, vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    assert_same_weights(AutoencoderKL.from_pretrained(tmp_path, device_map=device_map), vae)
    with pytest.raises(CheckpointError, match="device_map splits the model"):
        AutoencoderKL.from_pretrained(tmp_path, device_map={"encoder": "cpu", "decoder": "meta"})
