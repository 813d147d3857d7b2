"""Folders: which weights are taken, what is written, and what callers of diffusers pass."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import assert_same_weights
from given.models import fields, make

from vae_core import AutoencoderKL, CheckpointError, ConfigError, inspect_vae, load_vae, save_single_file
from vae_core.checkpoints.generation import fingerprint
from vae_core.checkpoints.open_file import open_tensor_file
from vae_core.checkpoints.pretrained import parse_size, split_into_shards
from vae_core.checkpoints.write import as_sentences, pickled, safetensors

STEM = "diffusion_pytorch_model"


@pytest.fixture
def folder(vae: AutoencoderKL, tmp_path: Path) -> Path:
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json", f"{STEM}.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["_class_name"] == "AutoencoderKL" and config["block_out_channels"] == [32, 64]
    assert "patch_size" not in config


def test_shards(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size=300_000, variant="fp16")
    *shards, index = (name for name in names(tmp_path) if name != "config.json")
    assert len(shards) > 2
    assert shards[0] == f"{STEM}.fp16-00001-of-{len(shards):05d}.safetensors"
    assert index == f"{STEM}.safetensors.index.fp16.json"
    content = json.loads((tmp_path / index).read_text(encoding="utf-8"))
    assert content["weight_map"].keys() == vae.state_dict().keys()
    assert content["metadata"]["total_size"] == sum(p.numel() * 4 for p in vae.parameters())
    assert_same_weights(load_vae(tmp_path, variant="fp16"), vae)
    assert_same_weights(load_vae(tmp_path / index), vae)
    assert load_vae(tmp_path / index).config == vae.config


def test_saving_again_removes_what_an_earlier_save_left(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size="300KB")
    vae.save_pretrained(tmp_path, variant="fp16")
    other = make(fields(32), seed=2)
    other.save_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json", f"{STEM}.fp16.safetensors", f"{STEM}.safetensors"]
    assert_same_weights(load_vae(tmp_path), other)
    vae.save_pretrained(tmp_path, max_shard_size="300KB")
    assert f"{STEM}.safetensors" not in names(tmp_path)
    assert_same_weights(load_vae(tmp_path), vae)


def test_missing_shards(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size="300KB")
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match=r"names .*-00002-of-.*, which is not there. Download all shards"):
        load_vae(tmp_path)
    index = tmp_path / f"{STEM}.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../x.safetensors"}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load_vae(tmp_path)
    shard = next(tmp_path.glob("*-00001-of-*")).name
    index.write_text(json.dumps({"weight_map": {"a": shard}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="promises a, which no shard has"):
        load_vae(tmp_path)
    for text in ("{", "[]", "{}"):
        index.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match="is not an index of shards"):
            load_vae(tmp_path)


def test_variants(vae: AutoencoderKL, folder: Path) -> None:
    other = make(fields(32, 64), seed=1)
    other.save_pretrained(folder, variant="ema")
    assert_same_weights(load_vae(folder), vae)
    assert_same_weights(load_vae(folder, variant="ema"), other)
    with pytest.raises(CheckpointError, match=r"has no variant 'fp16' of the weights .*Pass variant='ema'"):
        load_vae(folder, variant="fp16")
    (folder / f"{STEM}.safetensors").unlink()
    assert_same_weights(load_vae(folder), other)
    assert "has only the variant 'ema'" in inspect_vae(folder).remarks[0]
    (folder / f"{STEM}.ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match="it has no weights at all"):
        load_vae(folder)
    (folder / "diffusion_flax_model.msgpack").touch()
    with pytest.raises(CheckpointError, match="Flax weights only"):
        load_vae(folder)
    with pytest.raises(CheckpointError, match=r"variant is 'a/b'"):
        vae.save_pretrained(folder, variant="a/b")


def test_safetensors_come_before_pickles(vae: AutoencoderKL, folder: Path) -> None:
    other = make(fields(32, 64), seed=1)
    other.save_pretrained(folder.parent / "pickle", safe_serialization=False)
    shutil.copy(folder.parent / "pickle" / f"{STEM}.bin", folder)
    assert_same_weights(load_vae(folder), vae)
    assert_same_weights(AutoencoderKL.from_pretrained(folder, use_safetensors=False), other)
    (folder / f"{STEM}.safetensors").unlink()
    assert_same_weights(AutoencoderKL.from_pretrained(folder), other)
    with pytest.raises(CheckpointError, match=f"has no {STEM}.safetensors"):
        AutoencoderKL.from_pretrained(folder, use_safetensors=True)


def test_folders_without_a_config(folder: Path, tmp_path: Path) -> None:
    assert load_vae(tmp_path).config == load_vae(folder).config  # tmp_path is the pipeline
    assert load_vae(folder / "config.json").config == load_vae(folder).config
    (folder / "config.json").unlink()
    shutil.copy(folder / f"{STEM}.safetensors", folder / "another.safetensors")
    with pytest.raises(CheckpointError, match=r"has no config.json.* Give one of its files: another.safetensors"):
        load_vae(folder)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"has no config.json.*Give a VAE's or a pipeline's folder"):
        load_vae(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "it is a list, not an object with fields"),
        ('{"_class_name": "UNet2DConditionModel"}', "this config is for UNet2DConditionModel"),
        ('{"block_out_channels": [30]}', "not a multiple of norm_num_groups"),
        ('{"block_out_channels": "a"}', "give one width per level"),
    ],
)
def test_configs_that_are_none(text: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_vae(folder)


def test_a_config_that_is_not_of_these_weights(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values["latent_channels"] = 16
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match="Use the config that belongs to these weights"):
        load_vae(folder)


def test_arguments_of_diffusers_callers(vae: AutoencoderKL, folder: Path) -> None:
    loaded = AutoencoderKL.from_pretrained(
        str(folder.parent),
        subfolder="vae",
        torch_dtype=torch.float16,
        local_files_only=True,
        cache_dir="/nowhere",
        revision="main",
        token="x",
        force_download=True,
        low_cpu_mem_usage=True,
        use_safetensors=True,
        device_map="cpu",
        scaling_factor=0.5,
    )
    assert loaded.dtype == torch.float16 and loaded.config.scaling_factor == 0.5 and not loaded.training
    with pytest.raises(CheckpointError, match="the folder .*nowhere does not exist"):
        AutoencoderKL.from_pretrained(folder / "nowhere")
    with pytest.raises(ConfigError, match="has no scaling"):
        AutoencoderKL.from_pretrained(folder, scaling=0.5)
    with pytest.raises(CheckpointError, match="is a file, not a folder. Use from_single_file"):
        AutoencoderKL.from_pretrained(folder / "config.json")


def test_float32_is_the_default_of_diffusers_methods(tmp_path: Path) -> None:
    half = make(fields(32)).half()
    half.save_pretrained(tmp_path)
    save_single_file(half, tmp_path / "vae.safetensors")
    for load in (
        lambda **options: AutoencoderKL.from_pretrained(tmp_path, **options),
        lambda **options: AutoencoderKL.from_single_file(tmp_path / "vae.safetensors", **options),
    ):
        assert load().dtype == torch.float32
        assert_same_weights(load(torch_dtype="auto"), half)
        assert load(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_from_single_file_takes_a_config(vae: AutoencoderKL, folder: Path) -> None:
    path = folder / f"{STEM}.safetensors"
    fixed = AutoencoderKL(**vae.config.replace(scaling_factor=0.7))
    for config in (fixed.config, dict(fixed.config), fixed.config.to_dict()):
        loaded = AutoencoderKL.from_single_file(path, config=config)
        assert loaded.config == fixed.config
    for config in (folder, folder.parent, folder / "config.json"):
        assert AutoencoderKL.from_single_file(path, config=str(config)).config == vae.config
    assert AutoencoderKL.from_config(str(folder), scaling_factor=0.7).config == fixed.config
    assert AutoencoderKL.from_single_file(path, config=folder.parent, subfolder="vae").config == vae.config
    with pytest.raises(CheckpointError, match="does not exist"):
        AutoencoderKL.from_single_file(path, config=folder / "nowhere")


def test_subclasses_load_as_themselves(folder: Path) -> None:
    class Mine(AutoencoderKL):
        pass

    assert type(Mine.from_pretrained(folder)) is Mine


def test_only_the_main_process_writes(vae: AutoencoderKL, tmp_path: Path) -> None:
    called: list[str] = []

    def save(weights: dict[str, torch.Tensor], file: Any) -> None:
        called.extend(weights)
        torch.save(weights, file)

    others: list[dict[str, Any]] = [{}, {"safe_serialization": False}, {"save_function": save}, {"variant": "fp16"}]
    for options in others:
        vae.save_pretrained(tmp_path / "none", is_main_process=False, **options)
    assert not (tmp_path / "none").exists() and not called
    vae.save_pretrained(tmp_path / "none", is_main_process=False, save_function=save, safe_serialization=False)
    assert not (tmp_path / "none").exists() and called == list(vae.state_dict())  # which may wait for the others


def test_weights_that_are_elsewhere_cannot_be_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = AutoencoderKL(**fields(32))
    count = len(empty.state_dict())
    with pytest.raises(CheckpointError, match=f"{count} weights, such as encoder.conv_in.weight, have no values here"):
        empty.save_pretrained(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file. Give a folder"):
        make(fields(32)).save_pretrained(tmp_path / "file")


# config.json of a folder -> whose folder it is; None where a model of ours may be saved.
OWNERS: dict[str, str | None] = {
    json.dumps({"_class_name": "UNet2DConditionModel", "block_out_channels": [32]}): "a UNet2DConditionModel",
    json.dumps({"_class_name": "M" * 81}): f"a {'M' * 80}",
    json.dumps({"_class_name": "AutoencoderKL"}): None,
    json.dumps({"block_out_channels": [32]}): None,
    json.dumps({"model_type": "clip"}): "a clip",
    json.dumps({"model_type": "m" * 81}): f"a {'m' * 80}",
    json.dumps({}): "a model of another library",
    "{": "something whose config.json cannot be read",
}


@pytest.mark.parametrize("config", OWNERS)
def test_the_folder_of_another_model_is_not_written_into(config: str, vae: AutoencoderKL, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    if OWNERS[config] is None:
        vae.save_pretrained(tmp_path)
        assert_same_weights(load_vae(tmp_path), vae)
        return
    with pytest.raises(CheckpointError, match=f"is the folder of {OWNERS[config]}, which would be overwritten"):
        vae.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == config


def test_equal_weights_alone_have_one_name() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.zeros(2, 3)}
    same = {"a": torch.arange(6.0), "b": torch.zeros(3, 2).t()}
    others = (
        {**weights, "a": weights["a"] + torch.eye(6)[5]},
        {**weights, "b": torch.zeros(3, 2)},
        {**weights, "b": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"]},
        {**weights, "none": torch.zeros(0)},
    )
    assert fingerprint(weights) == fingerprint(same)
    assert len({fingerprint(each) for each in (weights, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("named", "says"),
    [("x/b.st", "disk is full (x/b.st)."), ("a.st", "disk is full."), ("'a.st'", "disk is full."), (None, "is full.")],
)
def test_which_file_could_not_be_written_is_said_once(named: str | None, says: str) -> None:
    with pytest.raises(CheckpointError) as error, as_sentences("a.st"):
        raise OSError(errno.ENOSPC, "disk is full", named)
    assert f"{says} Check the name, the folder" in str(error.value) and "cannot write 'a.st': " in str(error.value)


def test_sizes() -> None:
    sizes = {
        "2TB": 2 * 10**12,
        "10GB": 10**10,
        "500MB": 5 * 10**8,
        "1KiB": 1024,
        "2GiB": 2**31,
        "1.5 MB": 1_500_000,
        1: 1,
        77: 77,
        "77": 77,
    }
    assert {size: parse_size(size) for size in sizes} == sizes
    for nonsense in ("", "GB", "10XB", "-1MB", 0, "0GB", None, "1K"):
        with pytest.raises(CheckpointError, match="give a size such as '10GB'"):
            parse_size(nonsense)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", range(1, 10))
def test_the_numbers_in_a_file_are_aligned(length: int, tmp_path: Path) -> None:
    """The header ends at a multiple of 8 bytes, and wider numbers come before others: all can be mapped."""
    tensors = {"a" * length: torch.ones(3, dtype=torch.int8), "b": torch.ones(1, dtype=torch.float64)}
    tensors |= {"c": torch.ones(3), "d": torch.ones(1, dtype=torch.float16), "e": torch.ones(())}
    for metadata in ({}, {"format": "pt"}):
        with open(tmp_path / "a.safetensors", "wb") as file:
            safetensors(tensors, metadata)(file)
        source = open_tensor_file(tmp_path / "a.safetensors")
        assert source.metadata == metadata
        assert min(info.start for info in source.tensors.values()) % 8 == 0
        assert all(info.start % tensors[name].element_size() == 0 for name, info in source.tensors.items())
        assert all(torch.equal(read, tensors[name]) for name, read in source.read(tensors).items())


def test_a_type_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with (
        open(tmp_path / "a.safetensors", "wb") as file,
        pytest.raises(CheckpointError, match=r"a is of torch\.complex128, which safetensors lacks"),
    ):
        safetensors({"a": torch.ones(1, dtype=torch.complex128)}, {})(file)


@pytest.mark.parametrize("form", [safetensors, lambda tensors, metadata: pickled(tensors)])
def test_a_part_of_a_large_tensor_is_written_alone(form: Any, tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        form({"a": torch.ones(100_000)[7:10]}, {})(file)
    assert (tmp_path / "a").stat().st_size < 3000
    assert open_tensor_file(tmp_path / "a").read(["a"])["a"].tolist() == [1, 1, 1]


def test_of_many_variants_some_are_named(vae: AutoencoderKL, tmp_path: Path) -> None:
    for name in "abcde":
        vae.save_pretrained(tmp_path, variant=name)
    with pytest.raises(CheckpointError, match="as the variants a, b, c, d, and nothing") as error:
        load_vae(tmp_path)
    assert "Pass variant='a' or variant='b' or variant='c' or variant='d', or give" in str(error.value)


def test_split_keeps_order_and_never_splits_a_weight() -> None:
    weights = {name: torch.zeros(size) for name, size in zip("abcde", (1, 2, 10, 1, 1), strict=True)}
    assert [list(shard) for shard in split_into_shards(weights, 12)] == [["a", "b"], ["c"], ["d", "e"]]
    assert [list(shard) for shard in split_into_shards(weights, 1000)] == [list("abcde")]
