"""What the Hub or the network refuses, as sentences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from given.hub import REPO, SmallHub, same

import vae_core
from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "arguments", "says"),
        [
            ("org/nothing", {}, r"neither a path org/nothing on this disk nor a repository.*hf auth login"),
            ("org/private", {}, r"nor a repository org/private.*pass a token"),
            ("org/gated", {}, r"org/gated is gated: accept its terms"),
            (REPO, {"revision": "v9"}, r"no revision 'v9'"),
            (REPO, {"subfolder": "nothing"}, r"no config\.json in nothing"),
            (REPO, {"variant": "int8"}, r"no weights of the variant 'int8' \(it has diffusion_pytorch_model"),
            (f"{REPO}/nothing.safetensors", {}, r"no file nothing\.safetensors"),
            ("org/files", {}, r"no config\.json.*Give one of its files: org/files/single\.safetensors"),
            ("org/some--vae", {}, r"is not a name on the Hub: .*\. Give ORG/NAME"),
            (f"{REPO}/", {"revision": "v9"}, r"no revision 'v9'"),
            (REPO, {"cache_dir": f"{__file__}/x"}, r"cannot be fetched from the Hub: .*\. Pass another cache_dir\."),
            ("org/other", {"local_files_only": True}, r"is not in the Hub's cache"),
        ],
    )
    @pytest.mark.parametrize("load", [load_vae, inspect_vae])
    @pytest.mark.thorough
    def test_each_is_one_sentence(
        self, load: Any, name: str, arguments: Any, says: str, hub: SmallHub, cache: Any, files: dict[str, bytes]
    ) -> None:
        hub.repositories["org/private"] = hub.repositories["org/gated"] = files
        hub.repositories["org/files"] = {"single.safetensors": files["single.safetensors"]}
        hub.private.add("org/private")
        hub.gated.add("org/gated")
        with pytest.raises(CheckpointError, match=says) as caught:
            load(name, **{**cache, **arguments})
        assert isinstance(caught.value, OSError) and "\n" not in str(caught.value)

    def test_a_token_opens_what_is_gated(self, hub: SmallHub, cache: Any, vae: AutoencoderKL, files: Any) -> None:
        hub.repositories["org/gated"] = files
        hub.gated.add("org/gated")
        assert same(AutoencoderKL.from_pretrained("org/gated", token="secret", **cache), vae)

    @pytest.mark.parametrize("load", [load_vae, inspect_vae])
    def test_the_environments_token_is_passed_on(
        self, load: Any, hub: SmallHub, cache: Any, files: Any, monkeypatch: Any
    ) -> None:
        hub.repositories["org/private"] = files
        hub.private.add("org/private")
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert load("org/private", **cache).config.latent_channels == 4
        monkeypatch.setenv("HF_TOKEN", "another")
        with pytest.raises(CheckpointError, match="that you may read"):
            load("org/private", force_download=True, **cache)

    @pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
    def test_a_download_that_is_cut_off(
        self, name: str, hub: SmallHub, cache: Any, vae: AutoencoderKL, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries again, later and later
        hub.cut[name] = 99
        with pytest.raises(CheckpointError, match=rf"{name} of {REPO} (cannot be fetched|is not in the Hub's cache)"):
            load_vae(REPO, **cache)
        assert hub.cut[name] < 99
        with pytest.raises(CheckpointError):
            load_vae(REPO, local_files_only=True, **cache)  # what came of it is not used
        hub.cut[name] = 1
        assert same(load_vae(REPO, **cache), vae)

    def test_a_header_that_is_cut_off(self, hub: SmallHub, cache: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        hub.cut["single.safetensors"] = 99
        with pytest.raises(CheckpointError, match=r"single\.safetensors of org/some-vae cannot be fetched"):
            inspect_vae(f"{REPO}/single.safetensors", **cache)
        hub.cut.clear()
        assert inspect_vae(f"{REPO}/single.safetensors", **cache).problem is None

    @pytest.mark.thorough
    def test_the_environment_says_offline(self, hub: SmallHub, cache: Any) -> None:
        load_vae(REPO, **cache)
        asked = len(hub.requests)
        script = """
import sys, vae_core
assert vae_core.load_vae(sys.argv[1], cache_dir=sys.argv[2]).config.latent_channels == 4
for load in (vae_core.load_vae, vae_core.inspect_vae):
    try:
        load(sys.argv[1], cache_dir=sys.argv[2] + "-empty")
    except vae_core.VAEError as error:
        assert "is not in the Hub's cache" in str(error), error
    else:
        raise AssertionError
"""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", script, REPO, str(cache["cache_dir"])]
        subprocess.run(command, check=True, cwd=Path(vae_core.__file__).parents[1], env=environment)
        assert len(hub.requests) == asked

    @pytest.mark.parametrize("load", [load_vae, inspect_vae])
    def test_no_network(self, load: Any, monkeypatch: pytest.MonkeyPatch, cache: Any) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries again, later and later
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(CheckpointError, match=r"cannot be (reached|fetched).*|is not in the Hub's cache") as caught:
            load(REPO, **cache)
        assert "local_files_only" not in str(caught.value)  # which nobody has set

    def test_offline_what_is_cached_is_used(
        self, hub: SmallHub, cache: Any, vae: AutoencoderKL, monkeypatch: Any
    ) -> None:
        for subfolder in ("vae", "pickle", "shards"):
            AutoencoderKL.from_pretrained(REPO, subfolder=subfolder, **cache)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        for subfolder in ("vae", "pickle", "shards"):
            assert same(AutoencoderKL.from_pretrained(REPO, subfolder=subfolder, **cache), vae)

    def test_without_huggingface_hub(self) -> None:
        script = """
import sys
sys.modules["huggingface_hub"] = None
import importlib.util, vae_core
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "huggingface_hub" else find(name, *rest)
for name in ("org/name", "https://huggingface.co/org/name/blob/main/x.safetensors"):
    try:
        vae_core.load_vae(name)
    except vae_core.VAEError as error:
        assert 'pip install "seamless-vae[hub]"' in str(error), error
    else:
        raise AssertionError
"""
        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(vae_core.__file__).parents[1])
