"""Situations of users, as public threads tell them: who did what, with which file. Their kinds are tested elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.command import run
from given.files import assert_same_weights, ldm, renamed, write
from given.models import fields, make
from PIL import Image
from safetensors.torch import save_file
from test_ldm_names import decode as walk
from torch import Tensor

import vae_core
from vae_core import AutoencoderKL, ConfigError, DamagedWeightError, inspect_vae, load_vae, save_single_file
from vae_core.image import from_numpy
from vae_core.masks import fit_mask

DEMO = Path(vae_core.__file__).parent / "demo"
STEM = "diffusion_pytorch_model"


def small(**others: Any) -> AutoencoderKL:
    return make(fields(32, 64, layers_per_block=1, **others))


def test_a_weights_file_beside_its_config_is_given_by_its_own_path() -> None:
    assert load_vae(DEMO / f"{STEM}.safetensors").config.norm_num_groups == 8


def test_a_finetune_whose_ldm_attention_has_diffusers_names(tmp_path: Path) -> None:
    names = ((".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."), ("proj_out", "to_out.0"))
    write(renamed(ldm(small(), "first_stage_model."), *names), tmp_path / "a.safetensors")
    assert_same_weights(load_vae(tmp_path / "a.safetensors"), small())


def test_a_mask_with_its_channel_last() -> None:
    assert fit_mask(torch.zeros(1, 20, 24, 1), (20, 24)).shape == (1, 20, 24)


def test_one_nan_in_a_weight_of_a_convolution(tmp_path: Path) -> None:
    weights = {name: weight.clone() for name, weight in ldm(small()).items()}
    weights["decoder.up.0.block.0.conv1.weight"][3, 1, 0, 2] = float("nan")
    loaded = load_vae(write(weights, tmp_path / "a.safetensors"))
    for decode in (lambda z: loaded.decode(z), lambda z: vae_core.decode(loaded, z)):
        with torch.no_grad(), pytest.raises(DamagedWeightError, match=r"up_blocks\.1\.resnets\.0\.conv1\.weight"):
            decode(torch.zeros(1, 4, 8, 8))


def test_a_latent_of_early_2023_on_the_command_line(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "vae")
    z = torch.randn(1, 4, 8, 8)
    save_file({"latent_tensor": z * 0.18215}, tmp_path / "old.latent")
    save_file({"latent_tensor": z, "latent_format_version_0": torch.tensor([])}, tmp_path / "new.latent")
    for name in ("old", "new"):
        assert (
            run("decode", tmp_path / f"{name}.latent", "-o", tmp_path / f"{name}.png", "--vae", tmp_path / "vae") == 0
        )
    old, new = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("old", "new"))
    assert np.abs(old - new).max() <= 1  # the scale and back round


def test_an_sdxl_file_converted_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ldm(make(fields(32, 32, 32, 32))), tmp_path / "sdxl.safetensors")
    assert run("convert", tmp_path / "sdxl.safetensors", tmp_path / "guess") == 0
    assert "scaling_factor" in json.loads((tmp_path / "guess/config.json").read_text())["_guessed"]
    assert "nothing in" in capsys.readouterr().err
    assert run("convert", tmp_path / "sdxl.safetensors", tmp_path / "told", "--family", "sdxl") == 0
    config = json.loads((tmp_path / "told/config.json").read_text())
    assert config["scaling_factor"] == 0.13025 and "scaling_factor" not in config.get("_guessed", [])


def test_a_load_hook_that_registers_a_config(tmp_path: Path) -> None:
    small(scaling_factor=0.7).save_pretrained(tmp_path / "vae")
    vae = small()
    vae.register_to_config(**AutoencoderKL.load_config(tmp_path, subfolder="vae"))
    assert vae.config.scaling_factor == 0.7


def test_the_constructor_given_the_content_of_a_config_json(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    assert AutoencoderKL(**json.loads((tmp_path / "config.json").read_text())).config == small().config


def test_a_folder_that_a_class_of_moving_averages_saved(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "decay": 0.9999, "optimization_step": 10}))
    assert_same_weights(load_vae(tmp_path), small())
    assert "passed over decay" in " ".join(inspect_vae(tmp_path).remarks)


def test_a_pack_that_gives_the_middle_block_latent_embeddings() -> None:
    assert small().decoder.mid_block(torch.randn(1, 64, 8, 8), None).shape == (1, 64, 8, 8)


def test_saving_with_a_compiled_half(tmp_path: Path) -> None:
    vae = small()
    vae.decoder = torch.compile(vae.decoder, backend="eager")  # type: ignore[assignment]
    save_single_file(vae, tmp_path / "a.safetensors")
    assert_same_weights(load_vae(tmp_path / "a.safetensors"), small())


def test_a_trainers_checkpoint(tmp_path: Path) -> None:
    content = {"model_state_dict": small().state_dict(), "optimizer_state_dict": {}, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    assert_same_weights(load_vae(tmp_path / "a.pt"), small())


def test_sd_nexts_call_and_a_state_dict_in_place_of_a_path(tmp_path: Path) -> None:
    save_single_file(small(), tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    assert_same_weights(AutoencoderKL.from_single_file(path, use_safetensors=True, low_cpu_mem_usage=False), small())
    assert_same_weights(AutoencoderKL.from_single_file(ldm(small())), small())


def test_kohyas_trainer_switches_xformers_off() -> None:
    vae = small()
    before = [type(each) for each in vae.attn_processors.values()]
    vae.set_use_memory_efficient_attention_xformers(False)
    assert before and [type(each) for each in vae.attn_processors.values()] == before


def test_numpys_integers_as_widths() -> None:
    assert small(block_out_channels=tuple(np.array([32, 64]))).config.block_out_channels == (32, 64)


@pytest.mark.parametrize("scale", ["0.13025", 0.0, None, float("nan")])
def test_a_scale_that_is_not_a_number(scale: Any) -> None:
    with pytest.raises(ConfigError, match="scaling_factor"):
        small(scaling_factor=scale)


def test_a_file_of_8_bit_floats_with_scales(tmp_path: Path) -> None:
    stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    for name, weight in ldm(small()).items():
        stored[name] = weight
        if weight.ndim == 4:
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name.removesuffix('.weight')}.scale_weight"] = scale
    loaded = load_vae(write(stored, tmp_path / "a.safetensors"))
    exact = small()
    for name, weight in loaded.state_dict().items():  # an 8-bit float has 3 bits behind the first
        torch.testing.assert_close(weight, exact.state_dict()[name], rtol=2**-4, atol=1e-4)


def test_kernels_with_channels_last(tmp_path: Path) -> None:
    turned = {name: w.permute(0, 2, 3, 1) if w.ndim == 4 else w for name, w in ldm(small()).items()}
    path = write(turned, tmp_path / "a.safetensors", {"format": "mlx"})
    assert inspect_vae(path).problem is None
    assert_same_weights(load_vae(path), small())


def test_a_training_checkpoint_with_helpers_beside_the_model(tmp_path: Path) -> None:
    beside = {"foundation_model.model.cls_token": torch.zeros(1, 1, 4), "linear_proj.weight": torch.zeros(2, 2)}
    path = write({**ldm(small()), **beside, "loss.logvar": torch.zeros(())}, tmp_path / "a.safetensors")
    assert_same_weights(load_vae(path), small())
    assert "passed over 2 tensors beside the autoencoder" in " ".join(inspect_vae(path).remarks)


@pytest.mark.parametrize("value", [np.nextafter(np.float32(1), np.float32(2)), 1.00001, 1.0015, -1e-4])
def test_floats_a_hair_beyond_the_range(value: float) -> None:
    pixels = from_numpy(np.full((16, 16, 3), value, np.float32)).pixels
    assert pixels.abs().max() == 1


def test_a_save_that_is_to_be_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(vae_core.CheckpointError, match=r"is saved, but cannot be pushed"):
        small().save_pretrained(tmp_path / "a", push_to_hub=True)
    assert_same_weights(load_vae(tmp_path / "a"), small())


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin"])
def test_converting_to_a_pickle_makes_a_file(ending: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "vae")
    out = tmp_path / f"out{ending}"
    assert run("convert", tmp_path / "vae", out) == 0 and out.is_file()
    assert_same_weights(load_vae(out), small())


def test_the_divergence_of_a_half_precision_posterior_at_the_clamp() -> None:
    moments = torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 25.0)], dim=1).half()
    posterior = vae_core.DiagonalGaussianDistribution(moments)
    for value in (posterior.kl(), posterior.nll(torch.zeros(1, 4, 2, 2)), posterior.var):
        assert value.dtype == torch.float32 and value.isfinite().all()


def test_a_pack_that_walks_the_decoder_by_ldms_names() -> None:
    """As TiledDiffusion's nodes do, which compute it block by block."""
    vae: Any = small()
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        walked = walk(vae.decoder, vae.post_quant_conv(z))
        torch.testing.assert_close(walked, vae.decode(z).sample, rtol=1e-4, atol=1e-5)
