"""The configuration of a model by diffusers' methods: read, registered, checked, saved."""

from __future__ import annotations

import copy
import json
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl as theirs_module
from given.models import MODELS
from given.pairs import model, narrow

from vae_core import AutoencoderKL, AutoencoderKLConfig, ConfigError
from vae_core.config import FIELDS, ReadOnlyConfigError

THEIRS: Any = theirs_module.AutoencoderKL
CHANGES: list[Any] = [
    lambda config: config.update(act_fn="relu"),
    lambda config: config.pop("act_fn"),
    lambda config: config.popitem(),
    lambda config: config.clear(),
    lambda config: config.setdefault("decay", 1),
    lambda config: config.__ior__({"act_fn": "relu"}),
]


class TestDictionary:
    """A config is what diffusers' is: a dictionary with attributes, which nobody changes in place."""

    @pytest.mark.parametrize("name", MODELS)
    def test_it_is_one_of_its_class_fields(self, name: str) -> None:
        config = AutoencoderKLConfig(**MODELS[name])
        for same in (
            AutoencoderKLConfig(**config),
            AutoencoderKLConfig.from_dict(json.loads(json.dumps(config))),
            pickle.loads(pickle.dumps(config)),
            copy.deepcopy(config),
            config.replace(),
        ):
            assert same == config and hash(same) == hash(config) and type(same) is AutoencoderKLConfig
        assert config == dict(config) == {**config} == config.copy() and isinstance(config, dict)
        assert (config | {"decay": 1})["decay"] == 1 and config.get("decay", 2) == 2
        if config.class_name == "AutoencoderKL":
            assert THEIRS.from_config(config).config.block_out_channels == config.block_out_channels
            assert set(config) <= set(THEIRS(**config).config)

    def test_what_is_not_a_field_goes_along(self) -> None:
        config = AutoencoderKLConfig().with_extras(_name_or_path="a", decay=0.5)
        for same in (config, pickle.loads(pickle.dumps(config)), config.replace()):
            assert same.decay == same["decay"] == same.get("decay") == 0.5 and "decay" in [*same]

    @pytest.mark.parametrize("change", CHANGES)
    def test_it_is_not_changed_in_place(self, change: Any) -> None:
        config = AutoencoderKLConfig()
        with pytest.raises(ReadOnlyConfigError, match="register_to_config"):
            change(config)
        assert config == AutoencoderKLConfig()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"block_out_channels": (32.0, 64.0)}, r"a width of 32\.0; it must be a whole number"),
    ({"block_out_channels": np.array([32.0, 64.0])}, r"a width of 32\.0; it must be a whole number"),
    ({"block_out_channels": [[32, 64]]}, r"a width of .*; it must be a whole number"),
    ({"block_out_channels": (32, 48)}, r"48, which is not a multiple of norm_num_groups \(32\)"),
    ({"scaling_factor": 10**400}, r"scaling_factor is 1000.{1,120}; it must be a finite number"),
    ({"scaling_factor": 1e-40}, "are no longer finite"),
    ({"scaling_factor": 1e35}, "are no longer finite"),
    ({"scaling_factor": True}, "scaling_factor is True"),
    ({"scaling_factor": 1j}, "scaling_factor is 1j"),
    ({"shift_factor": "0.1"}, "shift_factor is '0.1'; it must be a number of at most"),
    ({"latents_mean": [0.0] * 4}, "given without latents_std"),
    ({"latents_mean": [0.0] * 4, "latents_std": [1, 1, 1, 1e-40]}, "a standard deviation must be above 0"),
]


@pytest.mark.parametrize(("given", "says"), WRONG)
def test_values_that_break_later_are_refused_at_once(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AutoencoderKL(**{**narrow(32, 64), "norm_num_groups": 32, **given})


@pytest.mark.parametrize("scale", [Fraction(1, 5), Decimal("0.2"), np.float64(0.2), torch.tensor(0.2).double(), 0.2])
def test_numbers_of_any_kind_are_taken(scale: Any) -> None:
    config = AutoencoderKLConfig(scaling_factor=scale)
    assert type(config.scaling_factor) is float and config.scaling_factor == pytest.approx(0.2)


class TestConfig:
    def test_a_config_json_is_taken_as_arguments(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        for given in (content, {**content, "_diffusers_version": "0.26.3", "quantization_config": {"bits": 4}}):
            assert AutoencoderKL(**given).config == vae.config
        flux = model("flux2")
        assert AutoencoderKL(**flux.config.to_dict()).config == flux.config
        with pytest.raises(ConfigError, match="VQModel"):
            AutoencoderKL(_class_name="VQModel")

    def test_a_training_scripts_load_hook(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.save_pretrained(tmp_path / "ck" / "vae")
        fields = AutoencoderKL.load_config(tmp_path / "ck", subfolder="vae")
        fresh = AutoencoderKL(**narrow(16, 24, 32))
        fresh.register_to_config(**fields)
        assert fresh.config == vae.config and AutoencoderKL.from_config(fields).config == vae.config
        assert fields["_class_name"] == "AutoencoderKL"

    def test_load_config_as_diffusers(self, tmp_path: Path) -> None:
        model("f4").save_pretrained(tmp_path)
        theirs = THEIRS.load_config(str(tmp_path), return_unused_kwargs=True, return_commit_hash=True, extra=1)
        assert (
            AutoencoderKL.load_config(tmp_path, return_unused_kwargs=True, return_commit_hash=True, extra=1) == theirs
        )
        with pytest.warns(FutureWarning, match="load_config"):
            assert AutoencoderKL.get_config_dict(tmp_path / "config.json") == theirs[0]
        with pytest.raises(OSError, match=r"config\.json does not exist|nothing does not exist"):
            AutoencoderKL.load_config(tmp_path / "nothing")

    def test_unused_arguments_are_given_back(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.register_to_config(decay=0.99, optimization_step=7)
        vae.save_pretrained(tmp_path)
        made, unused = AutoencoderKL.from_config(tmp_path, return_unused_kwargs=True, extra=2)
        assert isinstance(made, AutoencoderKL) and made.config == vae.config
        assert unused == {"_class_name": "AutoencoderKL", "decay": 0.99, "optimization_step": 7, "extra": 2}
        with pytest.raises(ConfigError, match="no extra"):
            AutoencoderKL.from_config(tmp_path, extra=2)

    def test_extract_init_dict(self) -> None:
        content = {**narrow(16, 32), "_class_name": "AutoencoderKL", "decay": 0.9}
        fields, unused, hidden = AutoencoderKL.extract_init_dict(content, latent_channels=8, other=1)
        assert fields["latent_channels"] == 8 and fields["block_out_channels"] == (16, 32)
        assert unused == {"decay": 0.9, "other": 1} and hidden == {"_class_name": "AutoencoderKL", "decay": 0.9}
        assert AutoencoderKL(**fields).config.latent_channels == 8
        assert fields.keys() == narrow(16, 32).keys() | {"latent_channels"}
        assert AutoencoderKL.extract_init_dict({"latent_channels": 4, "odd": 1}) == (
            {"latent_channels": 4},
            {"odd": 1},
            {"odd": 1},
        )

    def test_registered_values_take_effect_or_say_how(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.register_to_config(scaling_factor=0.5, decay=0.99, _name_or_path="x")
        assert vae.config.scaling_factor == vae._internal_dict["scaling_factor"] == 0.5
        assert vae.config.decay == vae.config["decay"] == 0.99 and vae.config._name_or_path == "x"
        vae.register_to_config(**vae.config)  # what is equal may be registered
        with pytest.raises(ConfigError, match=r"latent_channels is 4.*cannot become 8.*from_config"):
            vae.register_to_config(latent_channels=8)
        vae.save_config(tmp_path)
        assert THEIRS.load_config(str(tmp_path))["decay"] == 0.99
        vae._internal_dict = {**vae.config, "shift_factor": 0.25}
        assert vae.config.shift_factor == 0.25 and vae.config.decay == 0.99
        with pytest.warns(FutureWarning, match=r"model\.config\.decay"):
            assert vae.decay == 0.99

    @pytest.mark.parametrize(
        "set_it", [lambda c: setattr(c, "scaling_factor", 2.0), lambda c: c.__setitem__("scaling_factor", 2.0)]
    )
    def test_a_field_set_in_place_says_how(self, set_it: Any) -> None:
        vae = model("f4")
        with pytest.raises(ReadOnlyConfigError, match=r"register_to_config\(scaling_factor=2.0\)") as caught:
            set_it(vae.config)
        assert isinstance(caught.value, AttributeError) and vae.config.scaling_factor == 0.18215
        with pytest.raises(ReadOnlyConfigError, match="cannot be deleted"):
            delattr(vae.config, "scaling_factor")

    def test_json_is_what_is_saved(self, tmp_path: Path) -> None:
        vae = model("f4")
        vae.register_to_config(path=tmp_path, array=np.arange(2))
        vae.to_json_file(tmp_path / "a.json")
        vae.save_config(tmp_path / "folder")
        content = json.loads(vae.to_json_string())
        for file in (tmp_path / "a.json", tmp_path / "folder" / "config.json"):
            assert json.loads(file.read_text(encoding="utf-8")) == content
        assert content["array"] == [0, 1] and content["_class_name"] == "AutoencoderKL"

    def test_a_subclass_of_yours_is_found_by_auto_model(self) -> None:
        class Mine(AutoencoderKL):
            pass

        Mine.register_for_auto_class()
        assert json.loads(Mine().to_json_string())["auto_map"] == {"AutoModel": "test_config.Mine"}
        assert AutoencoderKL._auto_class is None
        with pytest.raises(ConfigError, match="AutoTokenizer"):
            Mine.register_for_auto_class("AutoTokenizer")

    @pytest.mark.parametrize(
        "widths",
        [(16, 32), [16, 32], np.array([16, 32]), tuple(np.array([16, 32])), torch.tensor([16, 32]), range(16, 48, 16)],
    )
    def test_any_sequence_of_whole_numbers(self, widths: Any) -> None:
        config = AutoencoderKL(**{**narrow(16, 32), "block_out_channels": widths}).config
        assert config.block_out_channels == (16, 32) and all(type(width) is int for width in config.block_out_channels)
        assert json.loads(json.dumps(config.to_dict()))["block_out_channels"] == [16, 32]

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            *[
                ({"scaling_factor": value}, "scaling_factor is")
                for value in ("0.13025", 0.0, None, math.nan, math.inf, 10**400, True)
            ],
            *[({"shift_factor": value}, "shift_factor is") for value in ("0", math.nan, [0.1])],
            *[({"latents_std": value, "latents_mean": [0.0] * 4}, "latents_std") for value in ([0.0] * 4, "1111", 1.0)],
            ({"latents_std": [1.0] * 4}, "latents_std is given without latents_mean"),
            ({"latents_mean": [1.0] * 4}, "latents_mean is given without latents_std"),
            ({"latents_mean": [math.nan] * 4, "latents_std": [1.0] * 4}, "latents_mean is"),
            ({"batch_norm_eps": 0.0}, "batch_norm_eps is 0.0"),
            ({"batch_norm_momentum": 2}, "batch_norm_momentum is 2"),
            ({"patch_size": (2, 0.5)}, "patch_size is"),
            ({"use_quant_conv": "yes"}, "use_quant_conv is 'yes'"),
            ({"sample_size": 0.5}, "sample_size is 0.5"),
            ({"block_out_channels": (16, True)}, "block_out_channels has a width of True"),
        ],
    )
    def test_values_that_would_break_later(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            AutoencoderKL(**{**narrow(16, 32), **fields})

    @pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
    def test_numbers_of_other_libraries(self, number: Any) -> None:
        assert type(AutoencoderKL(scaling_factor=number).config.scaling_factor) is float


UNORDERED = [{32, 64}, frozenset((32, 64)), {32: 0, 64: 1}, "32", (w for w in (32, 64)), iter((32,)), {32: 0}.keys()]


@pytest.mark.parametrize("widths", UNORDERED)
def test_what_has_no_order_is_no_list_of_widths(widths: Any) -> None:
    with pytest.raises(ConfigError, match="give one width per level"):
        AutoencoderKL(block_out_channels=widths)


MEGABYTES: tuple[Any, ...] = ("x" * 3_000_000, ["x" * 3_000_000], [1.5] * 500_000, {"a": "x" * 3_000_000}, 10**4000)


@pytest.mark.parametrize("value", MEGABYTES, ids=["text", "a list of one", "a list", "a dictionary", "a number"])
@pytest.mark.parametrize("name", [*FIELDS, "_class_name", "x" * 3_000_000], ids=lambda name: name[:40])
def test_messages_do_not_repeat_megabytes(name: str, value: Any) -> None:
    """Every field, the class, and a name that no model has."""
    try:
        AutoencoderKLConfig.from_dict({name: value})
    except ConfigError as error:
        assert len(str(error)) < 1000
    else:
        assert name.startswith("_") or value == 10**4000
