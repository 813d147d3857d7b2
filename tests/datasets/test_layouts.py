"""WebDataset tars and kohya's cache files: what other programs find in them."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given.collection import CONFIG, contents, encode, make_images
from given.models import make
from PIL import Image

from vae_core import AutoencoderKL, ConfigError, DatasetError
from vae_core.datasets import Buckets, Collection, Engine, LatentDataset
from vae_core.datasets.kohya import family_of, read_file

FLIPPED = {"flip": True, "alpha_mask": True}
CHANNELS = {"sd": 4, "sdxl": 4, "flux": 16, "sd3": 16}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("source") / "few", 10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, few: Path, vae: AutoencoderKL) -> dict[str, dict[str, Any]]:
    """The same images as safetensors shards, by key."""
    out = tmp_path_factory.mktemp("shards") / "out"
    encode(few, out, vae, keep="sample", **FLIPPED)
    return {item["key"]: item for item in LatentDataset(out)}


@pytest.fixture(scope="module")
def wide() -> AutoencoderKL:
    """A VAE with as many channels as those of FLUX.1 and SD3."""
    return make({**CONFIG, "latent_channels": 16})


@pytest.fixture(scope="module")
def wide_shards(tmp_path_factory: pytest.TempPathFactory, few: Path, wide: AutoencoderKL) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("wide") / "out"
    encode(few, out, wide, keep="sample", **FLIPPED)
    return {item["key"]: item for item in LatentDataset(out)}


class TestWebDataset:
    def test_is_read_by_webdataset(
        self, few: Path, shards: dict[str, dict[str, Any]], vae: AutoencoderKL, tmp_path: Path
    ) -> None:
        webdataset = pytest.importorskip("webdataset")
        encode(few, tmp_path / "out", vae, layout="webdataset", keep="sample", **FLIPPED)
        tars = sorted(str(place) for place in (tmp_path / "out").rglob("*.tar"))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
        assert len(samples) == 10
        for sample in samples:
            item = shards[sample["json"]["key"]]
            np.testing.assert_array_equal(sample["latents.npy"], item["latents"])
            np.testing.assert_array_equal(sample["latents_flipped.npy"], item["latents_flipped"])
            np.testing.assert_array_equal(sample["alpha_mask.npy"], item["alpha_mask"])
            assert sample["json"]["size"] == item["size"] and sample["json"]["sha256"] == item["sha256"]
            assert sample["json"]["scale"] == {"convention": "raw", "scaling_factor": 0.5, "shift_factor": 0.25}

    def test_is_read_back(
        self, few: Path, shards: dict[str, dict[str, Any]], vae: AutoencoderKL, tmp_path: Path
    ) -> None:
        encode(few, tmp_path / "out", vae, layout="webdataset", keep="sample", **FLIPPED)
        same_items(LatentDataset(tmp_path / "out"), shards)


def same_items(items: Any, expected: dict[str, dict[str, Any]], tolerance: float = 0.0) -> None:
    assert len(items) == len(expected)
    for item in items:
        other = expected[item["key"]]
        assert set(item) == set(other)
        for name in ("latents", "latents_flipped"):
            torch.testing.assert_close(item[name], other[name], atol=tolerance, rtol=tolerance)


class TestKohya:
    @pytest.mark.parametrize("family", CHANNELS)
    def test_names_and_arrays(self, family: str, few: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        """Against the documented names, beside each image in a copy of the tree."""
        kind = "wide" if CHANNELS[family] == 16 else "vae"
        vae, shards = (request.getfixturevalue(name) for name in (kind, {"vae": "shards"}.get(kind, "wide_shards")))
        encode(few, tmp_path / "out", vae, layout="kohya", kohya=family, keep="sample", **FLIPPED)
        for key, item in shards.items():
            with Image.open(few / key) as image:
                width, height = image.size
            file = tmp_path / "out" / f"{os.path.splitext(key)[0]}_{width:04d}x{height:04d}_{family}.npz"
            h, w = item["latents"].shape[-2:]
            ending = f"_{h}x{w}" if family in ("flux", "sd3") else ""
            with np.load(file) as arrays:
                assert set(arrays) == {
                    f"{name}{ending}"
                    for name in ("latents", "original_size", "crop_ltrb", "latents_flipped", "alpha_mask")
                }
                scaled = (lambda z: 0.5 * (z - 0.25)) if family == "flux" else (lambda z: z)
                for name in ("latents", "latents_flipped"):
                    assert arrays[name + ending].dtype == np.float32
                    np.testing.assert_allclose(arrays[name + ending], scaled(item[name]), rtol=1e-6, atol=1e-7)
                assert arrays["original_size" + ending].tolist() == [width, height]
                assert len(arrays["crop_ltrb" + ending]) == 4
                mask = arrays["alpha_mask" + ending]
                assert mask.shape == (8 * h, 8 * w) and 0 <= mask.min() <= mask.max() <= 1
        same_items(LatentDataset(tmp_path / "out"), shards, 1e-6)

    def test_beside_the_images_and_nothing_else_is_touched(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        folder = make_images(tmp_path / "images", 6)
        before = contents(folder)
        encode(folder, folder, vae, layout="kohya", kohya="sdxl", keep="sample")
        after = contents(folder)
        new = [name for name in after if name not in before]
        assert {name: after[name] for name in before} == before
        assert sum(name.endswith("_sdxl.npz") for name in new) == 6
        assert all(name.endswith("_sdxl.npz") or name.startswith(".seamless_vae") for name in new)
        encode(folder, folder, vae, layout="kohya", kohya="sdxl", keep="sample", resume=True)
        assert contents(folder) == after

    @pytest.mark.parametrize("family", CHANNELS)
    def test_latents_that_its_trainers_cannot_take(
        self, family: str, few: Path, vae: AutoencoderKL, wide: AutoencoderKL, tmp_path: Path
    ) -> None:
        other = vae if CHANNELS[family] == 16 else wide
        with pytest.raises(ConfigError, match=f"latents of {family} have {CHANNELS[family]} channels at 1/8"):
            encode(few, tmp_path / "out", other, layout="kohya", kohya=family, keep="sample")
        assert not list((tmp_path / "out").rglob("*.npz"))

    def test_two_resolutions_in_one_file(self, wide: AutoencoderKL, tmp_path: Path) -> None:
        folder = make_images(tmp_path / "images", 3)
        options = {"layout": "kohya", "kohya": "flux", "keep": "sample"}
        encode(folder, tmp_path / "out", wide, **options)
        first = {place: read_file(place) for place in (tmp_path / "out").rglob("*.npz")}
        (tmp_path / "out" / ".seamless_vae").rename(tmp_path / "records")
        encode(folder, tmp_path / "out", wide, buckets=Buckets.parse("128"), **options)
        for place, old in first.items():
            assert read_file(place).latents.shape[-2:] == (16, 16), "the largest, unless a size is asked for"
            assert torch.equal(read_file(place, tuple(old.latents.shape[-2:])).latents, old.latents)  # type: ignore[arg-type]

    def test_images_that_would_share_a_file(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        for name in ("a.png", "a.jpg"):
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.new("RGB", (64, 64)).save(tmp_path / "images" / name)
        with pytest.raises(DatasetError, match=r"a\.jpg and a\.png would share"):
            encode(tmp_path / "images", tmp_path / "out", vae, layout="kohya", kohya="sd", keep="sample")

    def test_only_beside_files(self, vae: AutoencoderKL, few: Path, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        data = [place.read_bytes() for place in sorted(few.rglob("*.png"))]
        parquet.write_table(pyarrow.table({"jpg": data}), tmp_path / "table.parquet")
        with pytest.raises(ConfigError, match="beside image files"):
            encode(tmp_path / "table.parquet", tmp_path / "out", vae, layout="kohya", kohya="sd", keep="sample")

    def test_families(self, vae: AutoencoderKL) -> None:
        names = {"SD 1.x": "sd", "SD 2.x": "sd", "SDXL": "sdxl", "FLUX.1": "flux", "SD3": "sd3", None: None}
        assert {name: family_of(name, vae.config) for name in names} == names

    @pytest.mark.parametrize(
        "data", [b"", b"PK\x03\x04", b"not a zip", None], ids=["empty", "cut", "text", "other arrays"]
    )
    def test_damaged_files(self, data: bytes | None, tmp_path: Path) -> None:
        place = tmp_path / "a_0064x0064_sd.npz"
        if data is None:
            np.savez(place, other=np.zeros(3))
        else:
            place.write_bytes(data)
        with pytest.raises(DatasetError, match="a_0064x0064_sd"):
            read_file(place)

    def test_a_pickle_is_not_opened(self, tmp_path: Path) -> None:
        place = tmp_path / "a_0064x0064_sd.npz"
        np.savez(place, latents=np.array([os.getcwd], dtype=object))
        with pytest.raises(DatasetError, match=r"Python objects \(a pickle\) in it, which are not opened"):
            read_file(place)


@pytest.mark.parametrize("family", CHANNELS)
def test_kohyas_own_reader(family: str, few: Path, vae: AutoencoderKL, wide: AutoencoderKL, tmp_path: Path) -> None:
    """Where a checkout of sd-scripts is named by KOHYA_SD_SCRIPTS and can be imported: its strategy finds our files,
    finds them complete, and reads what we read."""
    checkout = os.environ.get("KOHYA_SD_SCRIPTS")
    if not checkout:
        pytest.skip("KOHYA_SD_SCRIPTS does not name a checkout of kohya-ss/sd-scripts")
    sys.path.insert(0, checkout)
    try:
        module = importlib.import_module("library.strategy_" + {"sdxl": "sd"}.get(family, family))
    finally:
        sys.path.remove(checkout)
    name = {"sd": "SdSdxl", "sdxl": "SdSdxl", "flux": "Flux", "sd3": "Sd3"}[family] + "LatentsCachingStrategy"
    first = (family == "sd",) if name.startswith("SdSdxl") else ()
    strategy = getattr(module, name)(*first, True, 1, False)
    options = {"layout": "kohya", "kohya": family, "keep": "sample", **FLIPPED}
    encode(few, tmp_path / "out", wide if CHANNELS[family] == 16 else vae, engine=Engine(workers=0), **options)
    count = 0
    for record in Collection.open(tmp_path / "out").all_records():
        for image in record["images"]:
            theirs = strategy.get_latents_npz_path(str(tmp_path / "out" / image["key"]), tuple(image["size"]))
            assert Path(theirs) == tmp_path / "out" / image["file"]
            bucket = tuple(image["bucket"])
            assert strategy.is_disk_cached_latents_expected(bucket, theirs, True, True)
            assert strategy.get_image_size_from_disk_cache_path("", theirs) == tuple(image["size"])
            latents, size, crop, flipped, mask = strategy.load_latents_from_disk(theirs, bucket)
            ours = read_file(Path(theirs))
            np.testing.assert_array_equal(latents, ours.latents)
            assert flipped is not None and ours.flipped is not None
            np.testing.assert_array_equal(flipped, ours.flipped)
            assert mask.shape == (bucket[1], bucket[0])
            assert (tuple(size), tuple(crop)) == (ours.original_size, ours.crop_ltrb)
            count += 1
    assert count == 10
    assert json.loads((tmp_path / "out" / ".seamless_vae" / "manifest.json").read_text())["totals"]["images"] == 10
