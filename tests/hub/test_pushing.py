"""Models that are pushed to the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from given.hub import SmallHub, same
from given.models import make

from vae_core import AutoencoderKL, CheckpointError, ConfigError, load_vae

FORMATS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "shards": {"max_shard_size": "100KB"},
    "pickle": {"safe_serialization": False},
}


class TestPushing:
    def test_a_model_is_pushed_and_comes_back(
        self, hub: SmallHub, vae: AutoencoderKL, cache: Any, tmp_path: Path
    ) -> None:
        vae.push_to_hub("me/mine", token="secret", commit_message="first")
        assert set(hub.repositories["me/mine"]) == {"config.json", "diffusion_pytorch_model.safetensors"}
        assert same(load_vae("me/mine", **cache), vae)
        vae.save_pretrained(tmp_path / "second", push_to_hub=True, repo_id="me/second", token="secret", variant="fp16")
        assert "diffusion_pytorch_model.fp16.safetensors" in hub.repositories["me/second"]
        vae.save_config(tmp_path / "third", push_to_hub=True, repo_id="me/third", token="secret")
        assert list(hub.repositories["me/third"]) == ["config.json"]

    @pytest.mark.parametrize("subfolder", [None, "vae"])
    @pytest.mark.parametrize("first", FORMATS)
    @pytest.mark.parametrize("second", FORMATS)
    def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_config(
        self, hub: SmallHub, vae: AutoencoderKL, cache: Any, first: str, second: str, subfolder: str | None
    ) -> None:
        other = make(vae.config, seed=5)
        before = f"{subfolder}/" if subfolder else ""
        kept = {"README.md": b"mine", "lora.safetensors": b"mine", "diffusion_pytorch_model.fp16.bin": b"mine"}
        for number, (model, kind) in enumerate(((other, first), (vae, second))):
            with tempfile.TemporaryDirectory() as folder:
                push = {"push_to_hub": True, "repo_id": "me/mine", "token": "secret", "subfolder": subfolder}
                model.save_pretrained(folder, **FORMATS[kind], **push)
            if not number:
                hub.repositories["me/mine"] |= {before + name: content for name, content in kept.items()}
        assert same(AutoencoderKL.from_pretrained("me/mine", subfolder=subfolder, **cache), vae)
        assert {before + name for name in kept} <= set(hub.repositories["me/mine"])

    def test_what_cannot_be_pushed_is_said(self, hub: SmallHub, vae: AutoencoderKL, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is saved, but cannot be pushed to me/mine.*hf auth login"):
            vae.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/mine")
        assert (tmp_path / "a" / "config.json").is_file()
        with pytest.raises(ConfigError, match="no argument repo"):
            vae.save_pretrained(tmp_path / "a", push_to_hub=True, repo="me/mine")

    @pytest.mark.parametrize(
        ("name", "address", "says"),
        [
            (
                "me/mine",
                None,
                r"the model cannot be pushed to me/mine on the Hub: 401 .*\. Log in with `hf auth login`",
            ),
            (
                "me/m ine",
                None,
                r"the model cannot be pushed to me/m ine on the Hub: .*\. Give the name of a repository",
            ),
            ("me/mine", "http://127.0.0.1:9", r"on the Hub: [^.]*\. Check the network, and push it again\.$"),
        ],
    )
    def test_and_what_to_do_about_it(
        self, name: str, address: str | None, says: str, hub: SmallHub, vae: AutoencoderKL, monkeypatch: Any
    ) -> None:
        """A network that is down is not a matter of tokens, and what is pushed from a temporary folder is not saved."""
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        if address is not None:
            monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(CheckpointError, match=says):
            vae.push_to_hub(name)
