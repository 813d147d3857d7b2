"""Names on the Hugging Face Hub, fetched from a small Hub on the loopback address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from given.hub import COMMIT, REPO, SmallHub, same

from vae_core import AutoencoderKL, CheckpointError, inspect_vae, load_vae
from vae_core.cli import main
from vae_core.hub_names import HubName, hub_name


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
            ("hf://org/name@v1/a/x.pt", HubName("org/name", "a/x.pt", "v1")),
            ("hf://org/name@refs%2Fpr%2F3/x.pt", HubName("org/name", "x.pt", "refs/pr/3")),
            ("hf://org/name@refs/pr/3/x.pt", HubName("org/name", "x.pt", "refs/pr/3")),
            ("hf://org/name@v1", HubName("org/name", None, "v1")),
            ("https://huggingface.co/org/name/resolve/refs/pr/3/a/x.pt", HubName("org/name", "a/x.pt", "refs/pr/3")),
            ("https://huggingface.co/org/name/x.safetensors", HubName("org/name", "x.safetensors")),
            ("huggingface.co/org/name/a/x.safetensors", HubName("org/name", "a/x.safetensors")),
            ("https://huggingface.co/org/name/blobs/x.pt", HubName("org/name", "blobs/x.pt")),
            ("HTTPS://HuggingFace.co/org/name", HubName("org/name")),
            ("org/name/..", None),
            ("org/name/../../x", None),
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
            ("https://huggingface.co/datasets/org/name/blob/main/x.pt", "is not the address of a model's files"),
            ("https://huggingface.co/spaces/org/name", "is not the address of a model's files"),
            ("https://huggingface.co/org/name/commit/1a2b", "is not the address of a model's files"),
            ("https://huggingface.co/org/name/discussions/3", "is not the address of a model's files"),
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
            assert info.file_size is not None
            assert abs(info.file_size - len(hub.repositories[REPO]["single.safetensors"])) < 1000

    def test_a_file_in_the_cache_is_not_asked_for(self, hub: SmallHub, cache: Any) -> None:
        load_vae(f"{REPO}/single.safetensors", **cache)
        asked = len(hub.downloads())
        assert inspect_vae(f"{REPO}/single.safetensors", **cache).problem is None
        assert len(hub.downloads()) == asked

    def test_a_pickle_is_fetched_whole(self, hub: SmallHub, cache: Any) -> None:
        assert inspect_vae(f"{REPO}/old/single.ckpt", norm_num_groups=8, **cache).container == "pickle"


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
