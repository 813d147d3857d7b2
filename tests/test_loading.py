"""Every family through every format, and what is known of each."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import BARE, SELF_DESCRIBING, assert_same_weights, ldm
from given.models import BY_NAME, MODELS, family_fields, fields, make
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vae_core import (
    AutoencoderKL,
    CheckpointError,
    ConfigError,
    MemoryBudgetError,
    inspect_vae,
    load_vae,
    save_single_file,
)
from vae_core.checkpoints import build


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.thorough
def test_formats_that_carry_their_config(model: str, tmp_path: Path) -> None:
    """The same tensors and the same config from each; saved again, still the same."""
    vae = make(MODELS[model])
    for name, write in SELF_DESCRIBING.items():
        path = write(vae, tmp_path / name.replace(" ", "_"))
        loaded = load_vae(path)
        assert loaded.config == vae.config, name
        assert_same_weights(loaded, vae)
        assert not loaded.training
        info = inspect_vae(path)
        assert info.config == vae.config
        assert info.problem is None and info.seems_to_be is None
        assert info.parameters == vae.num_parameters()
        assert info.dtype == torch.float32


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.thorough
def test_formats_whose_config_is_found_out(model: str, tmp_path: Path) -> None:
    """From any of them the same tensors and one and the same config, which is the true one in all that shapes show."""
    vae = make(MODELS[model])
    unseen = ("scaling_factor", "shift_factor", "sample_size", "latents_mean", "latents_std", "force_upcast", "act_fn")
    given = {name: vae.config[name] for name in (*unseen, "norm_num_groups")}
    guessed = set()
    for name, write in BARE.items():
        path = write(vae, tmp_path / name.replace(" ", "_"))
        loaded = load_vae(path)
        guessed.add(loaded.config)
        assert_same_weights(loaded, vae)
        for field in set(vae.config) - set(given):
            assert loaded.config[field] == vae.config[field], field
        assert load_vae(path, **given).config == vae.config
        assert inspect_vae(path).parameters == vae.num_parameters()
    assert len(guessed) == 1


SIBLINGS = {
    "SD 1.x": ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "first_stage_model."),
    "SD 2.x": ("cond_stage_model.model.ln_final.weight", "first_stage_model."),
    "SDXL": ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "first_stage_model."),
    "Playground 2.5": ("edm_mean", "first_stage_model."),
    "SD x4 upscaler": ("low_scale_model.betas", "first_stage_model."),
    "FLUX.1": ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "vae."),
    "SD3": ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", "first_stage_model."),
    "FLUX.2": ("model.diffusion_model.single_stream_modulation.lin.weight", "vae."),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_full_checkpoint_tells_its_family(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, prefix = SIBLINGS[name]
    vae = make(family_fields(BY_NAME[name]))
    rest = {
        key: torch.zeros(4),
        "model.diffusion_model.out.0.weight": torch.zeros(4),
        "model_ema.decay": torch.zeros(1),
    }
    path = tmp_path / "full.safetensors"
    save_file({**ldm(vae, prefix), **rest}, path)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        loaded = load_vae(path)
    assert not caplog.records
    assert loaded.config == vae.config
    assert_same_weights(loaded, vae)
    info = inspect_vae(path)
    assert (info.family, info.family_is_guess, info.prefix, info.layout) == (name, False, prefix, "LDM")
    assert info.origins["scaling_factor"] == "the rest of the checkpoint"
    assert info.origins["latent_channels"] == "tensor shapes"
    assert (info.scaling_factor, info.shift_factor) == (vae.config.scaling_factor, vae.config.shift_factor)
    assert info.file_size == path.stat().st_size


def test_families_of_the_same_shapes_are_a_guess_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(ldm(make(family_fields(BY_NAME["SD3"]))), path)
    info = inspect_vae(path)
    assert (info.family, info.family_is_guess) == ("FLUX.1", True)
    assert info.origins["scaling_factor"] == "family default (a guess)"
    assert "SD3 (scaling_factor 1.5305, shift_factor 0.0609)" in info.remarks[0]
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        assert load_vae(path).config.scaling_factor == 0.3611
    assert "taken for FLUX.1" in caplog.text

    caplog.clear()
    loaded = load_vae(path, scaling_factor=1.5305, shift_factor=0.0609, norm_num_groups=32)
    assert loaded.config == make(family_fields(BY_NAME["SD3"])).config
    assert not caplog.records
    info = inspect_vae(path, scaling_factor=1.5305, shift_factor=0.0609)
    assert (info.family, info.family_is_guess, info.origins["shift_factor"]) == ("SD3", False, "override")


@pytest.mark.parametrize(
    "architecture, name", [("stable-diffusion-xl-v1-base/vae", "SDXL"), ("flux-1-dev/vae", "SD 1.x")]
)
def test_modelspec_metadata_decides_among_the_possible(architecture: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(ldm(make(fields(32, 32, 32, 32))), path, metadata={"modelspec.architecture": architecture})
    assert inspect_vae(path).family == name


def test_norm_groups_that_are_not_in_the_file_are_a_guess_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(ldm(make(fields(24, 40, norm_num_groups=4))), path)
    info = inspect_vae(path)
    assert info.config is not None and info.config.norm_num_groups == 8
    assert "8 is a guess" in " ".join(info.remarks)
    assert load_vae(path, norm_num_groups=4).config.norm_num_groups == 4


def test_dtype_and_device(tmp_path: Path) -> None:
    vae = make(fields(32)).to(torch.bfloat16)
    save_single_file(vae, tmp_path / "vae.safetensors")
    assert load_vae(tmp_path / "vae.safetensors").dtype == torch.bfloat16
    assert load_vae(tmp_path / "vae.safetensors", dtype="auto", device="cpu").dtype == torch.bfloat16
    for dtype in ("float16", "fp16", torch.float16):
        half = load_vae(tmp_path / "vae.safetensors", dtype=dtype)
        assert {p.dtype for p in half.parameters()} == {torch.float16}
        assert torch.equal(half.decoder.conv_in.weight, vae.decoder.conv_in.weight.half())
    assert load_vae(tmp_path / "vae.safetensors", device="meta").device.type == "meta"
    for nonsense in ("float17", "int8", torch.int8, 16):
        with pytest.raises(CheckpointError, match="give float32, float16, bfloat16, float64 or auto"):
            load_vae(tmp_path / "vae.safetensors", dtype=nonsense)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="an AutoencoderKL has no scaling_facto"):
        load_vae(tmp_path / "vae.safetensors", scaling_facto=1.0)


def test_save_single_file_in_another_dtype(tmp_path: Path) -> None:
    vae = make(family_fields(BY_NAME["FLUX.2"]))
    save_single_file(vae, tmp_path / "half.safetensors", dtype="fp16")
    stored = load_file(tmp_path / "half.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}
    assert vae.dtype == torch.float32
    assert torch.equal(stored["decoder.conv_in.weight"], vae.decoder.conv_in.weight.half())


def test_a_file_of_mixed_types_loads_in_the_widest(tmp_path: Path) -> None:
    vae = make(fields(32))
    weights = {k: v if ".norm" in k else v.half() for k, v in ldm(vae).items()}
    save_file(weights, tmp_path / "vae.safetensors")
    loaded = load_vae(tmp_path / "vae.safetensors")
    assert (
        {p.dtype for p in loaded.parameters()} == {torch.float32} == {inspect_vae(tmp_path / "vae.safetensors").dtype}
    )
    assert torch.equal(loaded.decoder.conv_in.weight, vae.decoder.conv_in.weight.half().float())


EIGHT = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("one", "most", "loaded"),
    [
        (torch.float16, EIGHT, torch.float16),
        (torch.bfloat16, EIGHT, torch.bfloat16),
        (torch.float32, EIGHT, torch.float32),
        (EIGHT, torch.float16, torch.float16),
        (EIGHT, torch.float8_e5m2, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_mixed_with_8_bit_floats_the_other_type_is_taken(
    one: torch.dtype, most: torch.dtype, loaded: torch.dtype, tmp_path: Path
) -> None:
    """8-bit floats are in every wider type, and of two kinds of them neither is in the other."""
    weights = {key: weight.to(most) for key, weight in make(fields(32)).state_dict().items()}
    weights["decoder.conv_in.bias"] = weights["decoder.conv_in.bias"].float().to(one)
    save_file(weights, tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    assert vae.dtype == loaded
    for key, weight in vae.state_dict().items():
        assert torch.equal(weight.float(), weights[key].float()), key


def test_what_fused_attention_adds_is_not_written(tmp_path: Path) -> None:
    vae = make(fields(32))
    plain = {key: weight.clone() for key, weight in vae.state_dict().items()}
    vae.fuse_qkv_projections()
    vae.save_pretrained(tmp_path / "folder")
    save_single_file(vae, tmp_path / "vae.safetensors")
    assert load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors").keys() == plain.keys()
    assert load_vae(tmp_path / "vae.safetensors").state_dict().keys() == plain.keys()


SHORTAGES = {
    "Python": MemoryError(),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    "a device": torch.OutOfMemoryError("CUDA out of memory."),
    "the system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
}


@pytest.mark.parametrize("where", ["read_weights", "_made", "_initialised"])
@pytest.mark.parametrize("kind", SHORTAGES)
def test_memory_that_runs_out_is_said_in_a_sentence(
    tmp_path: Path, kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = make(fields(32))
    vae.save_pretrained(tmp_path / "folder")
    save_single_file(vae, tmp_path / "vae.safetensors")

    def short(*_: Any, **__: Any) -> None:
        raise SHORTAGES[kind]

    with monkeypatch.context() as patch:
        patch.setattr(build, where, short)
        for load, path in (
            (load_vae, tmp_path / "folder"),
            (load_vae, tmp_path / "vae.safetensors"),
            (AutoencoderKL.from_pretrained, tmp_path / "folder"),
            (AutoencoderKL.from_single_file, tmp_path / "vae.safetensors"),
        ):
            with pytest.raises(MemoryBudgetError, match=r"not enough memory for the weights of .*, \d+ MiB.*\. Close"):
                load(path)
    assert_same_weights(load_vae(tmp_path / "folder"), vae)


def test_any_layout_of_memory_can_be_written(tmp_path: Path) -> None:
    vae = make(fields(32, 64)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_single_file(vae, tmp_path / "vae.safetensors")
    assert_same_weights(load_vae(tmp_path / "vae.safetensors"), vae)
    torch.save(ldm(vae) | {"quant_conv.weight": vae.quant_conv.weight.data}, tmp_path / "vae.pt")  # type: ignore[union-attr]
    assert_same_weights(load_vae(tmp_path / "vae.pt"), vae)
    state = vae.state_dict()  # strides as they are
    torch.save(state, tmp_path / "strided.pt")
    assert_same_weights(load_vae(tmp_path / "strided.pt"), vae)


@pytest.mark.parametrize("name", ["one.safetensors", "one.ckpt"])
def test_saving_over_the_file_that_the_model_is_mapped_from(name: str, tmp_path: Path) -> None:
    vae, path = make(fields(32, 64)), tmp_path / name
    save_single_file(vae, path)
    loaded = load_vae(path)
    save_single_file(loaded, path)
    assert_same_weights(loaded, vae)
    assert_same_weights(load_vae(path), vae)
    loaded.save_pretrained(tmp_path / "folder")
    again = load_vae(tmp_path / "folder")
    again.save_pretrained(tmp_path / "folder")
    assert_same_weights(load_vae(tmp_path / "folder"), vae)


def test_a_system_that_locks_mapped_files_is_given_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows replaces no file that weights are mapped from: they are let go, then it is tried again."""
    path = tmp_path / "vae.safetensors"
    save_single_file(make(fields(32)), path)
    loaded = load_vae(path)
    before = loaded.decoder.conv_in.weight.data_ptr()
    calls = []

    def replace(source: str, target: str, real=os.replace) -> None:
        calls.append(target)
        if loaded.decoder.conv_in.weight.data_ptr() == before:
            raise PermissionError(13, "in use", str(target))
        real(source, target)

    monkeypatch.setattr("vae_core.checkpoints.write.os.replace", replace)
    save_single_file(loaded, path)
    assert len(calls) == 2
    assert_same_weights(load_vae(path), loaded)


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_files_are_readable_as_any_new_file_is(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    vae, path = make(fields(32)), tmp_path / "vae.safetensors"
    save_single_file(vae, path)
    vae.save_pretrained(tmp_path / "folder")
    assert {p.stat().st_mode for p in (path, *(tmp_path / "folder").iterdir())} == {usual}
    path.chmod(0o640)
    save_single_file(vae, path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make(fields(32, 64))
    vae.save_pretrained(tmp_path / "folder", max_shard_size="100KB")
    save_single_file(vae, tmp_path / "vae.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other, calls = make(fields(32, 64), seed=1), []

    def fail_the_second_time(handle: int) -> None:
        calls.append(handle)
        if len(calls) % 2 == 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("vae_core.atomic.os.fsync", fail_the_second_time)
    with pytest.raises(CheckpointError, match="No space left on device"):
        other.save_pretrained(tmp_path / "folder", max_shard_size="100KB")
    assert len(calls) == 2
    calls.append(0)
    with pytest.raises(CheckpointError, match="cannot write"):
        save_single_file(other, tmp_path / "vae.safetensors")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_training_a_loaded_model_does_not_change_its_file(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_single_file(make(fields(32)), path)
    before = path.read_bytes()
    loaded = load_vae(path)
    assert all(p.requires_grad for p in loaded.parameters())
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(torch.zeros(1, 3, 8, 8), return_dict=False)[0].square().mean().backward()
    optimizer.step()
    assert path.read_bytes() == before
    bias = "decoder.conv_out.bias"
    assert not torch.equal(loaded.state_dict()[bias], load_vae(path).state_dict()[bias])


def test_weights_are_views_of_the_map_each_with_a_storage_of_its_own(tmp_path: Path) -> None:
    vae = make(fields(32, 64))
    save_single_file(vae, tmp_path / "vae.safetensors")
    loaded = load_vae(tmp_path / "vae.safetensors")
    weight = loaded.state_dict()["decoder.mid_block.attentions.0.to_q.weight"]  # [C, C, 1, 1] in the file
    assert weight.untyped_storage().nbytes() == weight.numel() * 4
    torch.save(loaded.state_dict(), tmp_path / "again.pt")
    assert (tmp_path / "again.pt").stat().st_size < 1.2 * (tmp_path / "vae.safetensors").stat().st_size


def test_only_the_vae_of_a_large_checkpoint_is_read(tmp_path: Path) -> None:
    """A sparse file of four gigabytes: were the rest read, or mapped with the rest, this would take seconds."""
    vae = make(fields(32))
    small = tmp_path / "small.safetensors"
    save_file(ldm(vae, "first_stage_model."), small)
    raw = small.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header["model.diffusion_model.out.weight"] = {
        "dtype": "U8",
        "shape": [4 << 30],
        "data_offsets": [len(data), len(data) + (4 << 30)],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    large = tmp_path / "large.safetensors"
    with open(large, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + len(data) + (4 << 30))
    script = (
        "import sys\nfrom vae_core import inspect_vae, load_vae\n"
        "def kilobytes(field):\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(field))\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # forget the peak of the imports
        "before = kilobytes('VmRSS')\n"
        "vae = load_vae(sys.argv[1]), inspect_vae(sys.argv[1])\n"
        "print(kilobytes('VmHWM') - before)"
    )
    if sys.platform == "linux":
        result = subprocess.run([sys.executable, "-c", script, str(large)], capture_output=True, text=True, check=True)
        assert int(result.stdout) < 100_000  # kilobytes
    assert_same_weights(load_vae(large), vae)


def test_metadata_of_a_single_file(tmp_path: Path) -> None:
    vae = make(family_fields(BY_NAME["SDXL"]))
    save_single_file(vae, tmp_path / "vae.safetensors")
    with safe_open(tmp_path / "vae.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl/vae"
    assert json.loads(metadata["seamless_vae.config"])["scaling_factor"] == 0.13025
    assert inspect_vae(tmp_path / "vae.safetensors").origins["scaling_factor"] == "metadata"
