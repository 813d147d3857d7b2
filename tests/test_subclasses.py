"""Classes that people derive from ours, with weights of their own beside the autoencoder's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from given.files import assert_same_weights
from given.models import SMALL, make
from torch import nn

from vae_core import AutoencoderKL, CheckpointError, ConfigError, load_vae, save_single_file


class WithHead(AutoencoderKL):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = nn.Linear(4, 2)
        self.loss = nn.Conv2d(3, 1, 1)
        self.register_buffer("scale", torch.ones(3))


class TheirsWithHead(diffusers.AutoencoderKL):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = nn.Linear(4, 2)
        self.loss = nn.Conv2d(3, 1, 1)
        self.register_buffer("scale", torch.ones(3))


class Scaled(AutoencoderKL):
    def decode(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        return super().decode(z / 2, *args, **kwargs)


class Deeper(AutoencoderKL):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder.more = nn.Linear(2, 2)


@pytest.fixture
def vae() -> WithHead:
    torch.manual_seed(3)
    made = WithHead(**SMALL).eval()
    made.get_buffer("scale").fill_(5)
    return made


@pytest.mark.parametrize("size", ["10GB", "200KB"])
def test_its_own_weights_are_saved_and_loaded(
    size: str, vae: WithHead, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vae.save_pretrained(tmp_path, max_shard_size=size)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        loaded = WithHead.from_pretrained(tmp_path)
    assert type(loaded) is WithHead and not caplog.text
    for key, weight in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key
    found: Any = diffusers.AutoencoderKL.from_pretrained(str(tmp_path), output_loading_info=True)
    theirs, report = found
    assert {*report["unexpected_keys"]} == vae.state_dict().keys() - theirs.state_dict().keys()
    assert all(torch.equal(vae.state_dict()[key], weight) for key, weight in theirs.state_dict().items())
    half = WithHead.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    plain = load_vae(tmp_path)
    assert type(plain) is AutoencoderKL and "passed over" in caplog.text and "head.weight" in caplog.text
    assert set(plain.state_dict()) < set(vae.state_dict())


def test_what_diffusers_saves_of_such_a_class_is_loaded(vae: WithHead, tmp_path: Path) -> None:
    theirs = TheirsWithHead(**SMALL)
    theirs.load_state_dict(vae.state_dict())
    theirs.save_pretrained(tmp_path)
    loaded = WithHead.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], weight) for key, weight in vae.state_dict().items())


def test_weights_that_a_file_lacks_stay_as_they_are_initialised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(SMALL).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        loaded = WithHead.from_pretrained(tmp_path)
    assert "has no head.bias, head.weight, loss.bias, loss.weight, scale: left as they are initialised" in caplog.text
    assert all(weight.isfinite().all() and weight.device.type == "cpu" for weight in loaded.state_dict().values())
    assert loaded.head.weight.requires_grad and torch.equal(loaded.get_buffer("scale"), torch.ones(3))
    assert_same_weights(load_vae(tmp_path), make(SMALL))


def test_a_single_file_has_the_autoencoder_alone(
    vae: WithHead, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        save_single_file(vae, tmp_path / "a.safetensors")
    assert "left out" in caplog.text and "head.weight" in caplog.text
    loaded = load_vae(tmp_path / "a.safetensors")
    assert all(torch.equal(weight, vae.state_dict()[key]) for key, weight in loaded.state_dict().items())


def test_a_model_that_was_given_a_part(tmp_path: Path) -> None:
    vae: Any = make(SMALL)
    vae.probe = nn.Linear(2, 2)
    vae.save_pretrained(tmp_path)
    assert_same_weights(load_vae(tmp_path), make(SMALL))


def test_its_own_methods_run_and_parts_inside_of_a_half_are_refused(tmp_path: Path) -> None:
    make(SMALL).save_pretrained(tmp_path)
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        scaled = Scaled.from_pretrained(tmp_path).decode(z).sample
        assert torch.equal(scaled, make(SMALL).decode(z / 2).sample)
    with pytest.raises(CheckpointError, match="other weights than an AutoencoderKL"):
        Deeper.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"2 are others \(such as decoder\.more\.weight"):
        Deeper(**SMALL).save_pretrained(tmp_path / "b")


def with_arguments(base: Any) -> tuple[Any, Any]:
    """A class that names all its arguments, under diffusers' decorator, and one that passes others on."""

    class Named(base):
        @register_to_config
        def __init__(self, extra: int = 3, block_out_channels: Any = (32,), latent_channels: int = 4) -> None:
            super().__init__(block_out_channels=block_out_channels, latent_channels=latent_channels)
            self.extra = extra

    class Passing(base):
        def __init__(self, extra: int = 3, **fields: Any) -> None:
            super().__init__(**fields)
            self.extra = extra

    return Named, Passing


@pytest.mark.parametrize("of", [0, 1])
def test_arguments_of_its_own_are_saved_and_given_again(
    of: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cls = with_arguments(AutoencoderKL)[of]
    vae = cls(extra=5, block_out_channels=(32,), latent_channels=6)
    assert vae.config.block_out_channels == (32,) and vae.decode(torch.zeros(1, 6, 4, 4)).sample.shape == (1, 3, 4, 4)
    if of == 1:  # nothing registers it
        vae.register_to_config(extra=5)
    assert vae.config.extra == 5
    vae.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "seamless_vae"):
        loaded = cls.from_pretrained(tmp_path)
    assert (loaded.extra, loaded.config.extra, loaded.config.latent_channels) == (5, 5, 6)
    assert "passed over" not in caplog.text
    assert cls.from_pretrained(tmp_path, extra=9).extra == 9
    assert (cls.from_config(vae.config).extra, cls.from_config(vae.config, extra=8).extra) == (5, 8)
    with pytest.raises(ConfigError, match="has no other"):
        cls.from_pretrained(tmp_path, other=9)
    assert load_vae(tmp_path).config.latent_channels == 6 and "passed over extra" in caplog.text
    if of == 0:
        theirs: Any = with_arguments(diffusers.AutoencoderKL)[of]
        assert theirs.from_pretrained(tmp_path).extra == 5
