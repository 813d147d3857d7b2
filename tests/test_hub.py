"""Names on the Hugging Face Hub, fetched from a small Hub on the loopback address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from given.hub import COMMIT, SmallHub, running_hub
from given.inputs import latent
from given.pairs import model

import vae_core
from vae_core import AutoencoderKL, CheckpointError, ConfigError, inspect_vae, load_vae, save_single_file
from vae_core.cli import main
from vae_core.hub import HubName, hub_name

REPO = "org/some-vae"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return model("f4")


@pytest.fixture(scope="module")
def files(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository: a folder with variants, a pipeline's `vae`, shards, a pickle, and a single file."""
    folder = tmp_path_factory.mktemp("repository")
    vae.save_pretrained(folder)
    vae.save_pretrained(folder, variant="fp16")
    vae.save_pretrained(folder / "vae")
    vae.save_pretrained(folder / "shards", max_shard_size="100KB")
    vae.save_pretrained(folder / "pickle", safe_serialization=False)
    save_single_file(vae, folder / "single.safetensors")
    (folder / "old").mkdir()
    torch.save(vae.state_dict(), folder / "old" / "single.ckpt")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.repositories[REPO] = dict(files)
        hub.repositories["org/pipeline"] = {name: content for name, content in files.items() if name.startswith("vae/")}
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache"}


def same(loaded: AutoencoderKL, vae: AutoencoderKL) -> bool:
    z = latent()
    return loaded.config.block_out_channels == vae.config.block_out_channels and torch.equal(
        loaded.decode(z).sample, vae.decode(z).sample
    )


class TestNames:
    @pytest.mark.parametrize(
        ("name", "means"),
        [
            ("org/name", HubName("org/name")),
            ("org/name/vae", HubName("org/name", "vae")),
            ("org/name/a/x.safetensors", HubName("org/name", "a/x.safetensors")),
            (Path("org/name"), HubName("org/name")),
            ("https://huggingface.co/org/name", HubName("org/name")),
            ("https://huggingface.co/org/name/blob/main/x.safetensors", HubName("org/name", "x.safetensors", "main")),
            ("https://hf.co/org/name/resolve/v1/a/x.ckpt?download=true", HubName("org/name", "a/x.ckpt", "v1")),
            (Path("https://huggingface.co/org/name/blob/main/x.pt"), HubName("org/name", "x.pt", "main")),
            ("https://huggingface.co/org/name/tree/main/vae", HubName("org/name", "vae", "main")),
            ("https://huggingface.co/org/name/tree/main", HubName("org/name", None, "main")),
            ("https://huggingface.co/org/name/", HubName("org/name")),
            (
                "https://huggingface.co/org/name/blob/refs%2Fpr%2F3/a%20b.pt#L1",
                HubName("org/name", "a b.pt", "refs/pr/3"),
            ),
            ("huggingface.co/org/name/blob/main/x.pt", HubName("org/name", "x.pt", "main")),
            ("hf.co/org/name", HubName("org/name")),
            ("hf://org/name/vae", HubName("org/name", "vae")),
            ("name", None),
            ("folder/x.safetensors", None),
            ("/org/name", None),
            ("./org/name", None),
            ("../name", None),
            ("C:\\org\\name", None),
            ("org/na me", None),
        ],
    )
    def test_what_a_name_means(self, name: Any, means: HubName | None) -> None:
        assert hub_name(name) == means

    def test_a_path_that_exists_is_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert hub_name("org/name") is None and hub_name("org/other") == HubName("org/other")

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("https://example.com/org/name/blob/main/x.pt", "is not an address of the Hugging Face Hub"),
            ("https://example.com/x.safetensors", "is not an address of the Hugging Face Hub"),
            ("https://civitai.com/api/download/models/1", "is not an address of the Hugging Face Hub"),
            ("http://example.com", "is not an address of the Hugging Face Hub"),
            ("https://huggingface.co/x", "without a repository"),
            ("https://huggingface.co", "without a repository"),
        ],
    )
    def test_other_addresses_are_refused(self, name: str, says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            hub_name(name)


class TestFolders:
    @pytest.mark.parametrize("load", [AutoencoderKL.from_pretrained, load_vae])
    def test_a_repository(self, load: Any, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        assert same(load(REPO, **cache), vae)
        assert hub.downloads() == ["config.json", "diffusion_pytorch_model.safetensors"]
        asked = len(hub.requests)
        assert same(load(REPO, **cache), vae)
        assert hub.downloads() == ["config.json", "diffusion_pytorch_model.safetensors"], "it is in the cache"
        assert same(load(REPO, local_files_only=True, **cache), vae)
        assert len(hub.requests) == asked + 2, "one question for each file that may have changed, none when offline"
        load(REPO, force_download=True, **cache)
        assert len(hub.downloads()) == 4

    @pytest.mark.parametrize(
        ("arguments", "weights"),
        [
            ({"subfolder": "vae"}, {"vae/diffusion_pytorch_model.safetensors"}),
            ({"variant": "fp16"}, {"diffusion_pytorch_model.fp16.safetensors"}),
            ({"revision": COMMIT}, {"diffusion_pytorch_model.safetensors"}),
            ({"subfolder": "pickle"}, {"pickle/diffusion_pytorch_model.bin"}),
            ({"subfolder": "shards"}, None),
        ],
    )
    def test_what_is_asked_for(
        self, arguments: Any, weights: set[str] | None, hub: SmallHub, cache: Any, vae: AutoencoderKL
    ) -> None:
        assert same(AutoencoderKL.from_pretrained(REPO, **arguments, **cache), vae)
        fetched = {name for name in hub.downloads() if not name.endswith(".json")}
        assert fetched == (
            weights or {name for name in hub.repositories[REPO] if name.startswith("shards/d") and "json" not in name}
        )

    def test_a_pipelines_repository(self, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        assert same(load_vae("org/pipeline", **cache), vae)
        assert same(load_vae("org/pipeline/vae", **cache), vae)
        assert same(
            load_vae(f"{hub.address}/org/pipeline/tree/main/vae".replace(hub.address, "https://hf.co"), **cache), vae
        )

    def test_the_config_alone(self, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        values, commit = AutoencoderKL.load_config(REPO, return_commit_hash=True, **cache)
        assert values["block_out_channels"] == list(vae.config.block_out_channels) and commit == COMMIT
        made = AutoencoderKL.from_config(REPO, **cache)
        assert made.config == vae.config
        assert hub.downloads() == ["config.json"]

    def test_a_folder_of_the_cache_is_a_folder(self, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        load_vae(REPO, **cache)
        asked = len(hub.requests)
        snapshot = cache["cache_dir"] / "models--org--some-vae" / "snapshots" / COMMIT
        assert same(load_vae(snapshot), vae) and inspect_vae(snapshot).problem is None
        assert len(hub.requests) == asked


class TestFiles:
    @pytest.mark.parametrize(
        "name",
        [
            f"{REPO}/single.safetensors",
            f"https://huggingface.co/{REPO}/blob/main/single.safetensors",
            f"https://huggingface.co/{REPO}/resolve/main/single.safetensors?download=true",
            f"https://hf.co/{REPO}/blob/{COMMIT}/old/single.ckpt",
        ],
    )
    @pytest.mark.parametrize("load", [AutoencoderKL.from_single_file, load_vae])
    def test_a_file(self, load: Any, name: str, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        assert same(load(name, norm_num_groups=8, **cache), vae)
        assert len([each for each in hub.downloads() if not each.endswith("config.json")]) == 1

    def test_an_address_of_the_endpoint_itself(self, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        assert same(load_vae(f"{hub.address}/{REPO}/blob/main/single.safetensors", **cache), vae)

    def test_its_config_may_come_from_a_repository(
        self, hub: SmallHub, cache: Any, vae: AutoencoderKL, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache["cache_dir"]))
        assert same(AutoencoderKL.from_single_file(f"{REPO}/single.safetensors", config=REPO, **cache), vae)


class TestFilesOfFolders:
    """A file of a folder's weights by its own name means what it means on a disk, where its config lies beside it."""

    @pytest.fixture
    def name(self, hub: SmallHub, files: dict[str, bytes]) -> str:
        from safetensors.torch import load, save

        bare = save(load(files["diffusion_pytorch_model.safetensors"]))  # as others write it, without our metadata
        config = {**json.loads(files["config.json"]), "scaling_factor": 0.5}
        hub.repositories["org/bare"] = {
            "vae/diffusion_pytorch_model.safetensors": bare,
            "vae/config.json": json.dumps(config).encode(),
        }
        return "org/bare/vae/diffusion_pytorch_model.safetensors"

    @pytest.mark.parametrize("load", [AutoencoderKL.from_single_file, load_vae])
    def test_its_config_is_fetched(self, load: Any, name: str, cache: Any, vae: AutoencoderKL) -> None:
        for _ in ("fetched", "cached"):
            loaded = load(name, **cache)
            assert same(loaded, vae) and loaded.config.scaling_factor == 0.5

    def test_inspection_says_the_same(self, name: str, cache: Any) -> None:
        for _ in ("fetched", "cached"):
            info = inspect_vae(name, **cache)
            assert info.config is not None and info.config.norm_num_groups == 8 and info.scaling_factor == 0.5
            load_vae(name, **cache)

    @pytest.mark.parametrize(
        "weights", ["diffusion_pytorch_model.fp16.safetensors", "model.safetensors", "vae-ft.bin"], ids=str
    )
    def test_the_only_weights_are_taken(
        self, weights: str, hub: SmallHub, cache: Any, vae: AutoencoderKL, files: dict[str, bytes]
    ) -> None:
        kind = "pickle/diffusion_pytorch_model.bin" if weights.endswith(".bin") else "single.safetensors"
        hub.repositories["org/lone"] = {"config.json": files["config.json"], weights: files[kind]}
        assert same(load_vae("org/lone", **cache), vae)
        assert inspect_vae("org/lone", **cache).problem is None

    @pytest.mark.parametrize("index", [b"[]", b"{", b'{"weight_map": []}', b"[" * 5000, b"\xff"])
    def test_an_index_that_is_not_one(self, index: bytes, hub: SmallHub, cache: Any, files: dict[str, bytes]) -> None:
        name = "diffusion_pytorch_model.safetensors.index.json"
        hub.repositories["org/broken"] = {"config.json": files["config.json"], name: index}
        with pytest.raises(CheckpointError, match=r"is not an index of shards"):
            load_vae("org/broken", **cache)

    def test_where_links_are_not_allowed(self, name: str, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        load_vae(name, **cache)

        def refuse(*arguments: Any, **options: Any) -> None:
            raise OSError(1314, "A required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        assert inspect_vae(name, **cache).problem is None


class TestInspection:
    @pytest.mark.parametrize("name", [f"{REPO}/single.safetensors", REPO, f"{REPO}/shards", "org/pipeline"])
    def test_the_header_alone_is_fetched(self, name: str, hub: SmallHub, cache: Any, vae: AutoencoderKL) -> None:
        filler = {f"filler.{i}": torch.zeros(64, 1024) for i in range(4)}  # a file larger than the first range
        if name.endswith("single.safetensors"):
            from safetensors.torch import load, save

            content = hub.repositories[REPO]["single.safetensors"]
            metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            hub.repositories[REPO]["single.safetensors"] = save(
                {**load(content), **{f"loss.{k}": v for k, v in filler.items()}}, metadata
            )
        before = hub.sent
        info = inspect_vae(name, **cache)
        assert info.problem is None and info.config is not None and info.config.latent_channels == 4
        assert info.parameters == vae.num_parameters() and info.path == Path(name)
        ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(".safetensors")]
        assert ranges and all(asked is not None for asked in ranges)
        if name.endswith("single.safetensors"):
            assert hub.sent - before < 110_000 < len(hub.repositories[REPO]["single.safetensors"])
            assert abs(info.file_size - len(hub.repositories[REPO]["single.safetensors"])) < 1000

    def test_a_file_in_the_cache_is_not_asked_for(self, hub: SmallHub, cache: Any) -> None:
        load_vae(f"{REPO}/single.safetensors", **cache)
        asked = len(hub.downloads())
        assert inspect_vae(f"{REPO}/single.safetensors", **cache).problem is None
        assert len(hub.downloads()) == asked

    def test_a_pickle_is_fetched_whole(self, hub: SmallHub, cache: Any) -> None:
        assert inspect_vae(f"{REPO}/old/single.ckpt", norm_num_groups=8, **cache).container == "pickle"


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
            ("org/some--vae", {}, r"is not a name on the Hub"),
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
            load(name, **arguments, **cache)
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
        with pytest.raises(CheckpointError, match=r"cannot be (reached|fetched).*|is not in the Hub's cache"):
            load(REPO, **cache)

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

    def test_what_cannot_be_pushed_is_said(self, hub: SmallHub, vae: AutoencoderKL, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is saved, but cannot be pushed to me/mine.*hf auth login"):
            vae.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/mine")
        assert (tmp_path / "a" / "config.json").is_file()
        with pytest.raises(ConfigError, match="no argument repo"):
            vae.save_pretrained(tmp_path / "a", push_to_hub=True, repo="me/mine")


def test_the_command_line(hub: SmallHub, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["info", f"https://huggingface.co/{REPO}/blob/main/single.safetensors"]) == 0
    assert "latent" in capsys.readouterr().out
    assert main(["convert", REPO, str(tmp_path / "out.safetensors")]) == 0
    assert load_vae(tmp_path / "out.safetensors").config.latent_channels == 4
    hub.requests.clear()
    assert main(["convert", REPO, str(tmp_path / "fp16.safetensors"), "--variant", "fp16"]) == 0
    assert {path.split("/")[-1] for _, path, _ in hub.requests} == {
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
    }
    assert main(["info", REPO, "--variant", "int8"]) == 1
    assert "no weights of the variant 'int8'" in capsys.readouterr().err
