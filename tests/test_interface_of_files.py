"""Saving and loading as with diffusers' AutoencoderKL: its arguments, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.inputs import latent
from given.pairs import model

import vae_core
from vae_core import AutoencoderKL, ConfigError


class TestSavingAndLoading:
    def test_the_single_variant_is_not_taken_unasked(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.save_pretrained(tmp_path, variant="fp16")
        with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.bin.*fp16.*Pass the variant"):
            AutoencoderKL.from_pretrained(tmp_path)
        assert AutoencoderKL.from_pretrained(tmp_path, variant="fp16").config == vae.config

    def test_loading_info(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.save_pretrained(tmp_path)
        loaded, info = AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is AutoencoderKL and loaded.config._name_or_path == str(tmp_path)
        assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}

    def test_a_save_function_writes_the_pickle(self, tmp_path: Path) -> None:
        written: list[str] = []

        def save(weights: Any, path: Any) -> None:
            written.extend(weights)
            torch.save(weights, path)

        vae = model("f4")
        vae.save_pretrained(tmp_path, save_function=save, safe_serialization=False)
        assert written == list(vae.state_dict()) and not list(tmp_path.glob("*.safetensors"))
        assert torch.equal(AutoencoderKL.from_pretrained(tmp_path).decode(latent()).sample, vae.decode(latent()).sample)

    def test_a_state_dict_and_sd_nexts_call(self, tmp_path: Path) -> None:
        vae = model("f4")
        z, path = latent(), tmp_path / "s.safetensors"
        vae_core.save_single_file(vae, path)
        for loaded in (
            AutoencoderKL.from_single_file(path, use_safetensors=True, low_cpu_mem_usage=False),
            AutoencoderKL.from_single_file(path, device_map=None),
            AutoencoderKL.from_single_file(path, extract_ema=True, load_safety_checker=False, image_size=512),
            AutoencoderKL.from_single_file(path, device_map={"": "cpu"}),
            AutoencoderKL.from_single_file(vae.state_dict(), norm_num_groups=8),
            AutoencoderKL.from_single_file({"state_dict": vae.state_dict()}, config=vae.config, torch_dtype="auto"),
        ):
            assert torch.equal(loaded.decode(z).sample, vae.decode(z).sample)
        torch.save(vae.state_dict(), tmp_path / "a.pt")
        with pytest.raises(vae_core.CheckpointError, match=r"a\.pt is a pickle"):
            AutoencoderKL.from_single_file(tmp_path / "a.pt", use_safetensors=True)
        with pytest.raises(vae_core.CheckpointError, match="state dict has no tensors"):
            AutoencoderKL.from_single_file({"a": 1})

    def test_state_dicts_of_numpy_and_with_arrays_beside(self) -> None:
        vae = model("f4")
        arrays = {key: weight.numpy() for key, weight in vae.state_dict().items()}
        read_only = {key: np.frombuffer(each.tobytes(), each.dtype).reshape(each.shape) for key, each in arrays.items()}
        beside = {"rng": np.arange(9), "names": np.array(["a"]), "objects": np.array([None]), "scalar": np.float32(1)}
        for given in (arrays, read_only, {"state_dict": arrays, **beside}, {**vae.state_dict(), **beside}):
            loaded = AutoencoderKL.from_single_file(given, norm_num_groups=8)
            assert torch.equal(loaded.decode(latent()).sample, vae.decode(latent()).sample)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                lambda w: w.to("meta"),
                "1 weights, such as decoder.conv_in.weight, that have no values here: they are off",
            ),
            (lambda w: w.to_sparse(), "that are of the layout sparse_coo. Make them dense"),
            (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "has weights of type qint8: it is quantised"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_weights_without_numbers_of_their_own(self, change: Any, says: str) -> None:
        weights = {**model("f4").state_dict(), "optimizer.state": torch.ones(2).to_sparse()}
        assert AutoencoderKL.from_single_file(weights, norm_num_groups=8).config.latent_channels == 4
        weights["decoder.conv_in.weight"] = change(weights["decoder.conv_in.weight"])
        with pytest.raises(vae_core.CheckpointError, match=says):
            AutoencoderKL.from_single_file(weights, norm_num_groups=8)

    def test_ldms_own_configuration_gives_the_scale(self, tmp_path: Path) -> None:
        weights = model("f4").state_dict()
        config = {"model": {"params": {"scale_factor": 0.7, "first_stage_config": {}}}}
        (tmp_path / "v1.yaml").write_text("model:\n  params:\n    scale_factor: 0.7\n", encoding="utf-8")
        for given in (config, tmp_path / "v1.yaml", str(tmp_path / "v1.yaml")):
            for name in ("original_config", "original_config_file"):
                arguments: dict[str, Any] = {"norm_num_groups": 8, name: given}
                loaded = AutoencoderKL.from_single_file(weights, **arguments)
                assert loaded.config.scaling_factor == 0.7
        (tmp_path / "text.yaml").write_text("model:\n  params:\n    scale_factor: 7e-1\n", encoding="utf-8")
        as_text = AutoencoderKL.from_single_file(weights, original_config=tmp_path / "text.yaml", norm_num_groups=8)
        assert as_text.config.scaling_factor == 0.7  # which YAML takes for a text
        with pytest.raises(ConfigError, match="scale_factor 'a', which is not a number"):
            AutoencoderKL.from_single_file(weights, original_config={"model": {"params": {"scale_factor": "a"}}})
        loaded = AutoencoderKL.from_single_file(weights, original_config=config, scaling_factor=0.5)
        assert loaded.config.scaling_factor == 0.5
        (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
        for wrong in (tmp_path / "bad.yaml", tmp_path / "none.yaml"):
            with pytest.raises(ConfigError, match=r"original_config .* cannot be read.*Pass scaling_factor"):
                AutoencoderKL.from_single_file(weights, original_config=wrong)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_loaded_under_inference_mode_is_as_any_other(self, dtype: torch.dtype, tmp_path: Path) -> None:
        vae_core.save_single_file(model("f4"), tmp_path / "a.safetensors")
        with torch.inference_mode():
            vae = AutoencoderKL.from_single_file(tmp_path / "a.safetensors", torch_dtype=dtype)
        vae.to(torch.float32).decode(latent()).sample.mean().backward()
        assert all(weight.grad is not None for weight in vae.decoder.parameters())
        vae_core.save_single_file(vae, tmp_path / "b.safetensors")

    def test_what_stays_in_float32(self, tmp_path: Path, monkeypatch: Any) -> None:
        model("f4").save_pretrained(tmp_path)
        monkeypatch.setattr(AutoencoderKL, "_keep_in_fp32_modules", ["conv_norm_out"])
        loaded = AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float16)
        kept = {name for name, weight in loaded.named_parameters() if weight.dtype == torch.float32}
        assert kept == {
            f"{half}.conv_norm_out.{kind}" for half in ("encoder", "decoder") for kind in ("weight", "bias")
        }

    def test_values_that_are_no_fields_come_back_with_the_config(self, tmp_path: Path) -> None:
        """As in diffusers; but for how weights were quantised, for what is saved is not."""
        vae = model("f4")
        vae.register_to_config(decay=0.9, notes=["a"], quantization_config={"bits": 8})
        vae.save_pretrained(tmp_path / "a")
        with torch.device("cpu"):
            for load, path in (
                (vae_core.load_vae, tmp_path / "a"),
                (vae_core.load_vae, tmp_path / "a" / "diffusion_pytorch_model.safetensors"),
                (AutoencoderKL.from_pretrained, tmp_path / "a"),
            ):
                loaded = load(path)
                assert (loaded.config.decay, loaded.config["notes"]) == (0.9, ["a"])
                assert loaded.config == vae.config and "quantization_config" not in loaded.config
        loaded.save_pretrained(tmp_path / "b")
        assert AutoencoderKL.load_config(tmp_path / "b")["notes"] == ["a"]
        assert "passed over decay, notes" in vae_core.inspect_vae(tmp_path / "b").remarks[0]
