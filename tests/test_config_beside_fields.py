"""What is in a config beside its fields: as with diffusers' class, wherever the same file is read or written."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl as theirs_module
from given.pairs import narrow

from vae_core import AutoencoderKL, AutoencoderKLConfig, ConfigError, load_vae
from vae_core.checkpoints.generation import GUESSED_KEY
from vae_core.datasets.weights import PackedVAE

THEIRS: Any = theirs_module.AutoencoderKL
PRIVATE = {"_class_name", "_diffusers_version"}
# What may be in a config.json beside the fields; "self" and the like are names of Python's own.
BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a moving average's": {"decay": 0.9999, "optimization_step": 10},
    "private": {"_name_or_path": "org/name", "_mine": [1, {"a": None}]},
    "names of Python's": {"self": 1, "cls": 2, "values": 3, "_extras": 4, "items": 5},
    "another class": {"_class_name": "AutoencoderKLOfMine", "width": 3},
}
# What may be done with a model's config: (class, folder, model) -> a config.
DONE: dict[str, Callable[[Any, Path, Any], Any]] = {
    "loaded": lambda cls, folder, vae: vae.config,
    "from_config": lambda cls, folder, vae: cls.from_config(vae.config).config,
    "from a dictionary": lambda cls, folder, vae: cls.from_config(dict(vae.config)).config,
    "saved and loaded": lambda cls, folder, vae: (
        vae.save_pretrained(folder / "again"),
        cls.from_pretrained(folder / "again").config,
    )[1],
    "saved": lambda cls, folder, vae: (
        vae.save_config(folder / "config"),
        json.loads((folder / "config" / "config.json").read_text()),
    )[1],
    "pickled": lambda cls, folder, vae: pickle.loads(pickle.dumps(vae.config)),
    "copied": lambda cls, folder, vae: copy.deepcopy(vae.config),
}


def folder_with(values: dict[str, Any], place: Path) -> Path:
    torch.manual_seed(0)
    THEIRS(**narrow(16, 32)).save_pretrained(place)
    file = place / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return place


def plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dict(config), default=str))  # lists for tuples


@pytest.mark.parametrize("done", DONE)
@pytest.mark.parametrize("beside", BESIDE)
def test_as_in_diffusers(beside: str, done: str, tmp_path: Path) -> None:
    if beside == "names of Python's":
        return  # diffusers' own functions take them for their arguments
    found = {}
    for cls in (THEIRS, AutoencoderKL):
        folder = folder_with(BESIDE[beside], tmp_path / cls.__module__)
        found[cls] = plain(DONE[done](cls, folder, cls.from_pretrained(folder)))
        if "_name_or_path" in found[cls]:
            found[cls]["_name_or_path"] = Path(found[cls]["_name_or_path"]).name
    theirs, ours = found[THEIRS], found[AutoencoderKL]
    for each in found:
        found[each].pop("_name_or_path", None)
    assert ours == theirs and ours.keys() >= PRIVATE


@pytest.mark.parametrize("beside", BESIDE)
def test_a_config_goes_wherever_one_is_taken(beside: str, tmp_path: Path) -> None:
    vae = load_vae(folder_with(BESIDE[beside], tmp_path))
    assert {**BESIDE[beside], "_class_name": "AutoencoderKL"}.items() <= dict(vae.config).items()
    assert vae.config._class_name == vae.config["_class_name"] == vae.config.get("_class_name") == "AutoencoderKL"
    content = json.loads((tmp_path / "config.json").read_text())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    again = [
        AutoencoderKL(**vae.config),
        AutoencoderKL.from_config(vae.config),
        load_vae(weights, config=vae.config),
        load_vae(weights, config=dict(vae.config)),
        load_vae(weights, config=vae.config.to_dict()),
        load_vae(weights, config=tmp_path),
        PackedVAE.of(vae).unpack("cpu"),
    ]
    if content["_class_name"] == "AutoencoderKL":
        again += [AutoencoderKL(**content), AutoencoderKL.from_config(content)]
    for each in again:
        assert each.config == vae.config
    assert AutoencoderKLConfig(**vae.config.without_extras()) == AutoencoderKLConfig.from_dict(vae.config) == vae.config
    assert "_class_name" not in {**vae.config.without_extras()}


def test_an_argument_that_does_not_exist_is_an_error_still(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="decay"):
        AutoencoderKL(**narrow(16, 32), decay=0.9)
    with caplog.at_level(logging.WARNING):
        assert AutoencoderKL(**narrow(16, 32), _class_name="AutoencoderKL", decay=0.9).config.decay == 0.9
    assert "passed over decay in the config" in caplog.text


def test_a_guess_that_is_registered_anew_is_none(tmp_path: Path) -> None:
    folder = folder_with({GUESSED_KEY: ["scaling_factor", "norm_num_groups"]}, tmp_path)
    for vae in (load_vae(folder), AutoencoderKL.from_config(AutoencoderKL.load_config(folder))):
        assert {*json.loads(vae.to_json_string())[GUESSED_KEY]} == {"norm_num_groups", "scaling_factor"}
        vae.register_to_config(scaling_factor=0.5)
        assert json.loads(vae.to_json_string())[GUESSED_KEY] == ["norm_num_groups"]
