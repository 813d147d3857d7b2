"""Where a config's values come from stays known: a guess is never written down as a fact, whichever way it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from given.files import ldm, write
from given.models import SMALL, make
from safetensors.torch import save_file

import vae_core
from vae_core import AutoencoderKL, CheckpointError, ConfigError, inspect_vae, load_vae, save_single_file
from vae_core.checkpoints.generation import GUESSED_KEY
from vae_core.cli import main
from vae_core.cli.common import DEMO


@pytest.fixture
def guess(tmp_path: Path) -> Path:
    """A file that says nothing of its scale."""
    save_file(make(SMALL).state_dict(), tmp_path / "guess.safetensors")
    return tmp_path / "guess.safetensors"


def to_folder(vae: AutoencoderKL, place: Path) -> Mapping[str, Any]:
    vae.save_pretrained(place)
    return json.loads((place / "config.json").read_text())


def to_file(vae: AutoencoderKL, place: Path) -> Mapping[str, Any]:
    place.mkdir()
    save_single_file(vae, place / "a.safetensors")
    with open(place / "a.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["seamless_vae.config"])


def to_config(vae: AutoencoderKL, place: Path) -> Mapping[str, Any]:
    vae.save_config(place)
    return json.loads((place / "config.json").read_text())


def to_text(vae: AutoencoderKL, place: Path) -> Mapping[str, Any]:
    return json.loads(vae.to_json_string())


WRITERS: list[Callable[[AutoencoderKL, Path], Mapping[str, Any]]] = [to_folder, to_file, to_config, to_text]


@pytest.mark.parametrize("write", WRITERS)
def test_a_guess_is_written_as_one(write: Callable, guess: Path, tmp_path: Path) -> None:
    vae = load_vae(guess)
    assert "scaling_factor" in write(vae, tmp_path / "guessed")[GUESSED_KEY]
    vae.register_to_config(scaling_factor=0.5)
    assert "scaling_factor" not in write(vae, tmp_path / "known").get(GUESSED_KEY, [])


def test_a_guess_stays_one_along_a_chain(guess: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file to a folder, from the folder's weights by their own name to a file, and to a folder again."""
    weights = "diffusion_pytorch_model.safetensors"
    chain = (
        (guess, "a"),
        (tmp_path / "a" / weights, "b.safetensors"),
        (tmp_path / "b.safetensors", "c"),
    )
    for source, target in chain:
        assert main(["convert", str(source), str(tmp_path / target)]) == 0
        assert "scaling_factor 0.18215" in capsys.readouterr().err
        assert inspect_vae(tmp_path / target).family_is_guess
    assert "scaling_factor" in json.loads((tmp_path / "c" / "config.json").read_text())[GUESSED_KEY]


def test_what_a_config_does_not_say_is_a_default(tmp_path: Path) -> None:
    make(SMALL).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["scaling_factor"], values["shift_factor"], values["sample_size"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        origins = inspect_vae(path).origins
        assert origins["scaling_factor"] == origins["sample_size"] == "default"
        assert origins["latent_channels"].startswith("config.json")
    assert "scaling_factor" in json.loads(load_vae(tmp_path).to_json_string())[GUESSED_KEY]


@pytest.mark.parametrize("ending", ["ckpt", "pt", "bin"])
def test_what_a_pickle_cannot_keep_is_said(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"demo.{ending}"
    assert main(["convert", str(DEMO), str(out)]) == 0
    said = capsys.readouterr().err
    assert "norm_num_groups 32 and not 8" in said and "pass --config" in said
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")  # beside it, and nothing to do with it
    make(SMALL).save_pretrained(tmp_path / "plain")
    assert main(["convert", str(tmp_path / "plain"), str(tmp_path / f"plain.{ending}")]) == 0
    assert "norm_num_groups" not in capsys.readouterr().err


class TestSubfolders:
    """`subfolder` means the same of a folder on this disk as of a repository."""

    @pytest.fixture
    def pipeline(self, tmp_path: Path) -> Path:
        for name, scale in (("vae", 0.5), ("vae_ema", 0.25)):
            make({**SMALL, "scaling_factor": scale}).save_pretrained(tmp_path / "pipe" / name)
        return tmp_path / "pipe"

    def scales(self, path: Path, **options: Any) -> set[float]:
        config = AutoencoderKL.load_config(path, **options)
        return {
            load_vae(path, **options).config.scaling_factor,
            inspect_vae(path, **options).scaling_factor or 0.0,
            AutoencoderKL.from_pretrained(path, **options).config.scaling_factor,
            config["scaling_factor"],
        }

    def test_the_one_that_is_asked_for(self, pipeline: Path) -> None:
        assert self.scales(pipeline, subfolder="vae_ema") == {0.25}
        assert self.scales(pipeline, subfolder="vae") == {0.5}

    @pytest.mark.parametrize("read", [load_vae, inspect_vae, AutoencoderKL.from_pretrained, AutoencoderKL.load_config])
    def test_one_that_is_not_there(self, read: Callable, pipeline: Path) -> None:
        make(SMALL).save_config(pipeline)  # which must not be taken in its place
        with pytest.raises(CheckpointError, match="does not exist"):
            read(pipeline, subfolder="vea")

    def test_in_the_hubs_cache(self, pipeline: Path, tmp_path: Path) -> None:
        cached = tmp_path / "models--org--name"
        (cached / "snapshots").mkdir(parents=True)
        pipeline.rename(cached / "snapshots" / ("0" * 40))
        assert self.scales(cached, subfolder="vae_ema") == {0.25}


def test_inspection_takes_a_config_as_loading_does(guess: Path) -> None:
    config = {**make(SMALL).config.to_dict(), "norm_num_groups": 4, "scaling_factor": 0.7}
    info, loaded = inspect_vae(guess, config=config), load_vae(guess, config=config)
    assert info.config == loaded.config and info.scaling_factor == 0.7
    wrong = {**config, "latent_channels": 5}
    with pytest.raises(CheckpointError) as error:
        load_vae(guess, config=wrong)
    assert inspect_vae(guess, config=wrong).problem == str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_damage_in_a_file_of_mixed_types_is_one_answer(dtype: torch.dtype, tmp_path: Path) -> None:
    """What loading says, inspection says; what is found by reading every weight is found in the first run."""
    weights = make(SMALL).state_dict()
    weights["decoder.conv_in.bias"] = weights["decoder.conv_in.bias"].to(dtype)
    weights["encoder.conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, tmp_path / "a.safetensors")
    assert inspect_vae(tmp_path / "a.safetensors").problem is None
    vae = load_vae(tmp_path / "a.safetensors").float()
    with pytest.raises(vae_core.DamagedWeightError, match=r"encoder\.conv_in\.weight"):
        vae_core.encode(vae, torch.zeros(1, 3, 32, 32))
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.weight"):
        load_vae(tmp_path / "a.safetensors", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights},
        lambda weights: {"model_state_dict": weights, "epoch": 3},
        lambda weights: {"vae": weights, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        lambda weights: {"ema_model_state_dict": {f"ema_model.{name}": each for name, each in weights.items()}},
        lambda weights: {"checkpoint": {"module": weights}},
    ],
)
def test_state_dicts_that_are_deeper(wrap: Callable) -> None:
    vae = make(SMALL)
    loaded = AutoencoderKL.from_single_file(wrap(vae.state_dict()), norm_num_groups=vae.config.norm_num_groups)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True))


@pytest.mark.parametrize("content", [{"state_dict": [torch.zeros(1)]}, {"state_dict": None}, {}, {"a": {"b": {}}}])
def test_dictionaries_without_a_model(content: dict) -> None:
    with pytest.raises(CheckpointError):
        AutoencoderKL.from_single_file(content)


@pytest.mark.parametrize("name", ["shift_factor", "latents_mean", "latents_std"])
@pytest.mark.parametrize("value", [1e39, -1e39, float("nan"), float("inf")])
def test_numbers_that_float32_does_not_have(name: str, value: float) -> None:
    fields = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4} if name != "shift_factor" else {}
    fields |= {name: value if name == "shift_factor" else [value] * 4}
    with pytest.raises(ConfigError, match=name):
        AutoencoderKL(**fields)


def test_a_config_with_values_of_ones_own_makes_a_model() -> None:
    vae = make(SMALL)
    vae.register_to_config(decay=0.9)
    assert AutoencoderKL.from_config(vae.config).config.extras["decay"] == 0.9


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_a_device_map_finds_the_accelerator(device_map: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for found in ([], ["meta"]):
        monkeypatch.setattr("vae_core.pretrained_mixin.accelerators", lambda found=found: found)
        vae = AutoencoderKL.from_pretrained(DEMO, device_map=device_map)
        assert vae.device == torch.device(*found or ["cpu"])


@pytest.mark.parametrize("state", ["state1", "exp_avg", "sum", "row_var", "step"])
def test_the_file_of_an_optimizer_says_so(state: str, tmp_path: Path) -> None:
    content = {"state": {0: {state: torch.zeros(3)}, 1: {state: torch.zeros(3)}}, "param_groups": []}
    torch.save(content, tmp_path / "optimizer.bin")
    assert "the state of an optimizer" in (inspect_vae(tmp_path / "optimizer.bin").problem or "")


# What stabilityai/stable-diffusion-x4-upscaler publishes as vae/config.json, with narrower levels.
X4_UPSCALER: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "scaling_factor": 0.08333,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
X4_LDM = {"model": {"params": {"scale_factor": 0.08333, "image_size": 128, "first_stage_config": {}}}}
X4_FORMS: dict[str, Callable[[AutoencoderKL], Mapping[str, torch.Tensor]]] = {
    "LDM": ldm,
    "diffusers": lambda vae: vae.state_dict(),
    "whole": lambda vae: {**ldm(vae, "first_stage_model."), "low_scale_model.betas": torch.zeros(4)},
    "whole without its noise": lambda vae: {
        **ldm(vae, "first_stage_model."),
        "cond_stage_model.model.x": torch.ones(1),
    },
}


@pytest.mark.parametrize("form", X4_FORMS)
def test_the_x4_upscalers_vae_has_the_config_that_is_published(form: str, tmp_path: Path) -> None:
    """An image side of 256 and not 512, with three levels; LDM's own configuration has neither."""
    published = AutoencoderKL(**X4_UPSCALER)
    file = write(X4_FORMS[form](published), tmp_path / "a.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(X4_UPSCALER), encoding="utf-8")
    write(X4_FORMS["diffusers"](published), tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    loaded = (
        load_vae(file),
        AutoencoderKL.from_single_file(file),
        AutoencoderKL.from_single_file(file, original_config=X4_LDM),
        load_vae(tmp_path / "folder"),
        load_vae(tmp_path / "folder" / "diffusion_pytorch_model.safetensors"),
    )
    for vae in loaded:
        assert vae.config == published.config
        assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (256, 64)
    for path in (file, tmp_path / "folder"):
        info = inspect_vae(path)
        assert (info.family, info.family_is_guess) == ("SD x4 upscaler", False)
