"""Every checkpoint that AutoencoderKL loads gives the same weights in Flax; saving in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from given.files import BARE, SELF_DESCRIBING, ldm
from given.models import ATTENTION_EVERYWHERE, BY_NAME, FLUX2_SMALL_DECODER, family_fields, fields, make
from given.twins import same_tree, twin_of
from safetensors.torch import load_file, save_file

import vae_core
from vae_core import AutoencoderKL, CheckpointError, ConfigError, UnsafeCheckpointError
from vae_core.flax import FlaxAutoencoderKL, files, from_torch, load_vae, to_torch

MSGPACK, SAFETENSORS = "diffusion_flax_model.msgpack", "diffusion_pytorch_model.safetensors"
SMALL = fields(32, 64)
Writer = Callable[[AutoencoderKL, Path], Path]


def types(params: Any) -> set[str]:
    """Number types of the parameters."""
    return {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(params)}


def assert_loads_the_same(path: Path, **options: Any) -> None:
    """Config and weights as in torch, bit for bit."""
    vae = vae_core.load_vae(path, dtype="float32", **options)
    model, params = load_vae(path, **options)
    assert model.config == vae.config
    assert same_tree(params, from_torch(vae.state_dict(), vae.config))


@pytest.mark.parametrize("write", [*SELF_DESCRIBING.values(), *BARE.values()], ids=[*SELF_DESCRIBING, *BARE])
def test_every_format(write: Writer, tmp_path: Path) -> None:
    assert_loads_the_same(write(make(SMALL), tmp_path / "vae"))


@pytest.mark.parametrize("family", BY_NAME)
@pytest.mark.thorough
def test_every_family(family: str, tmp_path: Path) -> None:
    vae = make(family_fields(BY_NAME[family]))
    vae.save_pretrained(tmp_path / "vae")
    assert_loads_the_same(tmp_path / "vae")


@pytest.mark.parametrize(
    "config", [FLUX2_SMALL_DECODER, ATTENTION_EVERYWHERE, {**SMALL, "mid_block_add_attention": False}]
)
def test_other_shapes_from_a_bare_file(config: dict[str, Any], tmp_path: Path) -> None:
    save_file(ldm(make(config)), tmp_path / "vae.safetensors")
    assert_loads_the_same(tmp_path / "vae.safetensors")


def test_types_of_parameters(tmp_path: Path) -> None:
    vae = make(SMALL).half()
    vae.save_pretrained(tmp_path)
    kept = load_vae(tmp_path, param_dtype=None)[1]
    assert same_tree(kept, from_torch(vae.state_dict(), vae.config))
    model, params = FlaxAutoencoderKL.from_pretrained(tmp_path, "bfloat16", param_dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16 and types(params) == {"bfloat16"}
    model, params = FlaxAutoencoderKL.from_pretrained(tmp_path, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16 and types(params) == {"float32"}
    for wrong in ("int8", "bf", jnp.int32, None, torch.float16, "float8_e4m3fn", 3):
        with pytest.raises(ConfigError, match="^dtype is .* give jnp.float32"):
            FlaxAutoencoderKL.from_pretrained(tmp_path, dtype=wrong)
    with pytest.raises(ConfigError, match="jax_enable_x64"):
        FlaxAutoencoderKL.from_pretrained(tmp_path, dtype="float64")
    eight = {key: weight.to(torch.float8_e4m3fn) for key, weight in make(SMALL).state_dict().items()}
    save_file(eight, tmp_path / "eight.safetensors")
    kept = load_vae(tmp_path / "eight.safetensors", param_dtype=None)[1]
    assert types(kept) == {"bfloat16"}


@pytest.mark.parametrize("safe", [True, False])
def test_types_of_parameters_in_both_formats(safe: bool, tmp_path: Path) -> None:
    model, params = twin_of(make(family_fields(BY_NAME["FLUX.2"])))
    params["bn"]["num_batches_tracked"] += 70_001  # over float16's largest, and no number of bfloat16
    model.save_pretrained(tmp_path, params, safe_serialization=safe)
    for name, full in (("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16")):
        _, loaded = FlaxAutoencoderKL.from_pretrained(tmp_path, param_dtype=name)
        assert to_torch(loaded, model.config)["bn.num_batches_tracked"] == 70_001
        assert types(loaded["encoder"]) == types(loaded["bn"]["running_var"]) == {full}
        assert same_tree(loaded, model.to_fp16(params) if full == "float16" else model.to_bf16(params))
    for wrong in ("int8", "bogus", jnp.int32, torch.float16, "float8_e4m3fn"):
        with pytest.raises(ConfigError, match="^param_dtype is .* give jnp.float32"):
            FlaxAutoencoderKL.from_pretrained(tmp_path, param_dtype=wrong)


def test_casts_by_a_mask() -> None:
    model, params = twin_of(make(SMALL))
    mask = jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)
    mixed = model.to_bf16(params, mask)
    block = mixed["encoder"]["mid_block"]["resnets_0"]
    assert block["norm1"]["scale"].dtype == jnp.float32 and block["conv1"]["kernel"].dtype == jnp.bfloat16
    assert types(model.to_fp16(params)) == {"float16"}
    assert same_tree(model.to_fp32(mixed)["encoder"]["conv_norm_out"], params["encoder"]["conv_norm_out"])


def test_overrides_and_ignored_arguments(tmp_path: Path) -> None:
    make(SMALL).save_pretrained(tmp_path / "pipeline" / "vae")
    model, _ = FlaxAutoencoderKL.from_pretrained(
        tmp_path / "pipeline", subfolder="vae", from_pt=True, scaling_factor=0.5, local_files_only=True
    )
    assert model.config.scaling_factor == model.scaling_factor == 0.5
    with pytest.raises(ConfigError, match="no colour"):
        FlaxAutoencoderKL.from_pretrained(tmp_path / "pipeline", colour=1)


class TestSaving:
    @pytest.mark.parametrize("config", [SMALL, family_fields(BY_NAME["FLUX.2"])], ids=["plain", "FLUX.2"])
    def test_both_formats(self, config: dict[str, Any], tmp_path: Path) -> None:
        vae = make(config)
        model, params = twin_of(vae)
        model.save_pretrained(tmp_path / "st", params)
        model.save_pretrained(tmp_path / "mp", params, safe_serialization=False)
        assert {path.name for path in (tmp_path / "st").iterdir()} == {"config.json", SAFETENSORS}
        assert {path.name for path in (tmp_path / "mp").iterdir()} == {"config.json", MSGPACK}
        for folder in ("st", "mp"):
            loaded, again = FlaxAutoencoderKL.from_pretrained(tmp_path / folder)
            assert loaded == model and same_tree(again, params)
        assert same_tree(load_vae(tmp_path / "mp" / MSGPACK)[1], params)
        in_torch = AutoencoderKL.from_pretrained(tmp_path / "st")
        assert in_torch.config == vae.config
        for key, weight in vae.state_dict().items():
            assert torch.equal(in_torch.state_dict()[key], weight), key

    def test_a_folder_with_both_says_one_thing(self, tmp_path: Path) -> None:
        model, params = twin_of(make(SMALL))
        other = jax.tree_util.tree_map(lambda leaf: leaf + 1, params)
        model.save_pretrained(tmp_path, params, safe_serialization=False)
        for safe, weights in ((True, other), (False, params)):
            model.save_pretrained(tmp_path, weights, safe_serialization=safe)
            for from_pt in (True, False, None):
                assert same_tree(FlaxAutoencoderKL.from_pretrained(tmp_path, from_pt=from_pt)[1], weights)

    @pytest.mark.parametrize("failing", ["msgpack_serialize", "write_folder", "bytes"])
    def test_a_save_that_fails_leaves_both_as_they_were(
        self, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, params = twin_of(make(SMALL))
        model.save_pretrained(tmp_path, params, safe_serialization=False)
        model.save_pretrained(tmp_path, params)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert before.keys() == {"config.json", MSGPACK, SAFETENSORS}

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        if failing == "bytes":
            monkeypatch.setattr(files, "raw", lambda content: full)
        else:
            monkeypatch.setattr(files, failing, full)
        # What writes says it in its own words; the two others stand in for something that raises before.
        expected = CheckpointError if failing == "bytes" else OSError
        other = jax.tree_util.tree_map(lambda leaf: leaf + 1, params)
        for safe in (True, False):
            with pytest.raises(expected, match="No space left"):
                model.clone(scaling_factor=0.5).save_pretrained(tmp_path, other, safe_serialization=safe)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_shards_variants_and_types(self, tmp_path: Path) -> None:
        model, params = twin_of(make(SMALL))
        half = model.to_bf16(params)
        model.save_pretrained(tmp_path, half, max_shard_size="300KB", variant="bf16")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert same_tree(load_vae(tmp_path, variant="bf16", param_dtype=None)[1], half)
        model.save_pretrained(tmp_path / "mp", half, safe_serialization=False)
        assert same_tree(load_vae(tmp_path / "mp", param_dtype=None)[1], half)

    def test_what_is_not_the_models(self, tmp_path: Path) -> None:
        model, params = twin_of(make(SMALL))
        replicated = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf] * 2), params)
        for wrong, says in (
            (replicated, "give those of one device"),
            ({"params": params}, "params lacks"),
            (None, "params are a NoneType"),
        ):
            with pytest.raises(CheckpointError, match=says):
                model.save_pretrained(tmp_path / "no", wrong)
        model.save_pretrained(tmp_path / "no", params, is_main_process=False)
        assert not (tmp_path / "no").exists()
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match="is a file"):
            model.save_pretrained(tmp_path / "file", params)


class TestErrors:
    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="the folder .* does not exist"):
            FlaxAutoencoderKL.from_pretrained(tmp_path / "none")
        make(SMALL).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"msgpack. Pass from_pt=True"):
            FlaxAutoencoderKL.from_pretrained(tmp_path, from_pt=False)
        with pytest.raises(CheckpointError, match="is a file, not a folder. Use from_single_file"):
            FlaxAutoencoderKL.from_pretrained(tmp_path / SAFETENSORS)
        with pytest.raises(CheckpointError, match="is a folder, not a file. Use from_pretrained"):
            FlaxAutoencoderKL.from_single_file(tmp_path)
        with pytest.raises(CheckpointError, match="does not exist"):
            load_vae(tmp_path / "none.safetensors")

    def test_checkpoints_of_others(self, tmp_path: Path) -> None:
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
        with pytest.raises(CheckpointError, match="a LoRA"):
            FlaxAutoencoderKL.from_single_file(tmp_path / "lora.safetensors")
        torch.save({"x": print}, tmp_path / "code.ckpt")
        with pytest.raises(UnsafeCheckpointError):
            load_vae(tmp_path / "code.ckpt")

    def test_weights_that_do_not_fit(self, tmp_path: Path) -> None:
        make(SMALL).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="where .* is needed"):
            FlaxAutoencoderKL.from_pretrained(tmp_path, in_channels=4)
        weights = load_file(tmp_path / SAFETENSORS)
        weights["decoder.conv_out.bias"][1] = torch.nan
        save_file(weights, tmp_path / SAFETENSORS)
        with pytest.raises(CheckpointError, match="conv_out.bias.*damaged"):
            FlaxAutoencoderKL.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "does not contain Flax parameters"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
            (to_bytes({"encoder": {"conv_in": {"bias": np.zeros(3)}}}), "lacks"),
            (to_bytes(np.zeros(3)), "does not contain Flax parameters"),
            ("short", "does not contain Flax parameters"),
            ("shape", "has the shape"),
            ("nan", "not finite"),
        ],
        ids=str,
    )
    def test_damaged_msgpack(self, content: bytes | str, says: str, tmp_path: Path) -> None:
        model, params = twin_of(make(SMALL))
        model.save_pretrained(tmp_path, params, safe_serialization=False)
        file = tmp_path / MSGPACK
        if content == "short":
            content = file.read_bytes()[:-100]
        elif content in ("shape", "nan"):
            params["quant_conv"]["bias"] = jnp.full(9 if content == "shape" else 8, jnp.nan)
            content = to_bytes(params)
        assert isinstance(content, bytes)
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            FlaxAutoencoderKL.from_pretrained(tmp_path)


def test_a_msgpack_by_its_own_path(tmp_path: Path) -> None:
    model, params = twin_of(make(SMALL))
    model.save_pretrained(tmp_path, params, safe_serialization=False)
    for load in (load_vae, FlaxAutoencoderKL.from_single_file):
        loaded, again = load(tmp_path / MSGPACK, scaling_factor=0.5)
        assert loaded == model.clone(scaling_factor=0.5) and same_tree(again, params)
    alone = tmp_path / "alone" / "vae.msgpack"
    alone.parent.mkdir()
    (tmp_path / MSGPACK).rename(alone)
    for config in (model.config, model.config.to_dict(), tmp_path / "config.json", tmp_path):
        loaded, again = load_vae(alone, config=config)
        assert loaded == model and same_tree(again, params)
    assert FlaxAutoencoderKL.from_single_file(alone, config=tmp_path.parent, subfolder=tmp_path.name)[0] == model
    with pytest.raises(CheckpointError, match="no config.json beside it.* Pass config"):
        load_vae(alone)
    with pytest.raises(CheckpointError, match="where .* is needed"):
        load_vae(alone, config=fields(32, 96))


def test_weights_that_are_asked_for_and_not_there(tmp_path: Path) -> None:
    model, params = twin_of(make(SMALL))
    model.save_pretrained(tmp_path, params, safe_serialization=False)
    choices: list[dict[str, Any]] = [{"from_pt": True}, {"use_safetensors": True}, {"variant": "fp16"}]
    for choice in choices:
        with pytest.raises(CheckpointError, match="has Flax's weights alone.*Pass from_pt=False"):
            FlaxAutoencoderKL.from_pretrained(tmp_path, **choice)


def test_a_model_of_a_config_file(tmp_path: Path) -> None:
    model, params = twin_of(make(SMALL))
    model.save_pretrained(tmp_path, params)
    for config in (tmp_path, str(tmp_path / "config.json"), model.config, model.config.to_dict()):
        assert FlaxAutoencoderKL.from_config(config, sample_size=64) == model.clone(sample_size=64)


def test_config_of_diffusers_flax_class(tmp_path: Path) -> None:
    """The config.json that diffusers v0.26.3 writes beside its msgpack."""
    model, params = twin_of(make(SMALL))
    model.save_pretrained(tmp_path, params, safe_serialization=False)
    later = ("shift_factor", "latents_mean", "latents_std", "force_upcast")
    values = {
        name: value for name, value in model.config.to_dict().items() if not name.startswith(("use_", "mid_", *later))
    }
    text = {**values, "_class_name": "FlaxAutoencoderKL", "_diffusers_version": "0.26.3"}
    (tmp_path / "config.json").write_text(json.dumps(text), encoding="utf-8")
    loaded, again = FlaxAutoencoderKL.from_pretrained(tmp_path)
    assert loaded == model and same_tree(again, params)
