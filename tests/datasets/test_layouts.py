"""WebDataset tars and kohya's cache files: what other programs find in them."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from given.collection import CONFIG, contents, encode, encode_and_die, make_images
from given.models import make
from PIL import Image

from vae_core import AutoencoderKL, ConfigError, DatasetError
from vae_core.datasets import Buckets, Collection, Engine, LatentDataset, verify_dataset
from vae_core.datasets.folders import open_folder
from vae_core.datasets.kohya import family_of, read_file

FLIPPED = {"flip": True, "alpha_mask": True}
CHANNELS = {"sd": 4, "sdxl": 4, "flux": 16, "sd3": 16, "lumina": 16}
# The scale and the shift that the trainers of a family have in their code; FLUX.1's and Lumina's files are scaled.
FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SCALES = {"flux": FLUX, "lumina": FLUX, "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609}}


def vae_of(family: str) -> AutoencoderKL:
    return make({**CONFIG, "latent_channels": CHANNELS[family], **SCALES.get(family, {})})


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
    """A VAE with as many channels as that of FLUX.1, and its scale."""
    return vae_of("flux")


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
            np.testing.assert_array_equal(sample["alpha_mask.npy"], item["alpha_mask"] * 255)
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
        assert torch.equal(item["alpha_mask"], other["alpha_mask"])


class TestKohya:
    @pytest.mark.parametrize("family", CHANNELS)
    def test_names_and_arrays(self, family: str, few: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        """Against the documented names, beside each image in a copy of the tree."""
        shards = request.getfixturevalue("wide_shards" if CHANNELS[family] == 16 else "shards")
        encode(few, tmp_path / "out", vae_of(family), layout="kohya", kohya=family, keep="sample", **FLIPPED)
        for key, item in shards.items():
            with Image.open(few / key) as image:
                width, height = image.size
            file = tmp_path / "out" / f"{os.path.splitext(key)[0]}_{width:04d}x{height:04d}_{family}.npz"
            h, w = item["latents"].shape[-2:]
            ending = f"_{h}x{w}" if CHANNELS[family] == 16 else ""
            with np.load(file) as arrays:
                assert set(arrays) == {
                    f"{name}{ending}"
                    for name in ("latents", "original_size", "crop_ltrb", "latents_flipped", "alpha_mask")
                }
                scaled = (lambda z: 0.3611 * (z - 0.1159)) if SCALES.get(family) == FLUX else (lambda z: z)
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
        if family in SCALES:  # as many channels, and another space
            other = vae_of("sd3" if SCALES[family] == FLUX else "flux")
            with pytest.raises(
                ConfigError, match=f"latents of {family} have the scale {SCALES[family]['scaling_factor']}"
            ):
                encode(few, tmp_path / "out", other, layout="kohya", kohya=family, keep="sample")
        assert not list((tmp_path / "out").rglob("*.npz"))

    def test_several_collections_beside_the_same_images(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        """Other families, and other resolutions of those whose files have several: each is verified by itself, and a
        family whose files have one resolution is not replaced."""
        folder = make_images(tmp_path / "images", 4)
        runs = [(family, size) for family in ("sd", "flux", "sd3") for size in ("64x64:16:32:128", "128")]
        runs.remove(("sd", "128"))
        found: dict[Path, list[torch.Tensor]] = {}
        for family, size in runs:
            options = {"layout": "kohya", "kohya": family, "keep": "sample", "buckets": Buckets.parse(size)}
            encode(folder, folder, vae_of(family), **options)
        assert len(list(folder.rglob("*.npz"))) == 3 * 4
        with pytest.raises(DatasetError, match="was begun with other settings .*buckets"):
            encode(
                folder, folder, vae, layout="kohya", kohya="sd", keep="sample", buckets=Buckets(128, 128), resume=True
            )
        with pytest.raises(DatasetError, match=r"has several collections. Give one of .*flux_128x128, "):
            Collection.open(folder)
        for place in (folder / ".seamless_vae").iterdir():
            assert verify_dataset(place).faults == () and verify_dataset(place).images == 4
            dataset = LatentDataset(place)
            found |= {place: [dataset[i]["latents"] for i in range(4)]}
            assert [list(z.shape) for z in found[place]] == [dataset.image(i)["shape"] for i in range(4)]
        assert len(found) == len(runs)
        for file in folder.rglob("*_flux.npz"):
            assert read_file(file).latents.shape[-2:] == (16, 16), "the largest, unless a size is asked for"
        # One resolution that is lost is a fault of its own collection alone.
        one = next(folder.rglob("*_flux.npz"))
        with np.load(one) as arrays:
            np.savez(one, **{name: array for name, array in arrays.items() if name.endswith("_16x16")})
        faults = {place.name: len(verify_dataset(place).faults) for place in found}
        assert sum(faults.values()) == 1 == faults["flux_64x64-16-32-128"]

    @pytest.mark.parametrize(
        "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK?" * 99]
    )
    def test_a_damaged_file_is_written_anew(
        self, damage: Any, wide: AutoencoderKL, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As a trainer that was killed leaves it."""
        folder = make_images(tmp_path / "images", 2)
        options = {"layout": "kohya", "kohya": "flux", "keep": "sample"}
        encode(folder, tmp_path / "out", wide, **options)
        whole = contents(tmp_path / "out")
        one = next((tmp_path / "out").rglob("*_flux.npz"))
        one.write_bytes(damage(one.read_bytes()))
        for place in (tmp_path / "out" / ".seamless_vae").rglob("*.json"):
            place.unlink()
        with caplog.at_level(logging.WARNING, logger="seamless_vae"):
            encode(folder, tmp_path / "out", wide, **options)
        assert contents(tmp_path / "out") == whole
        assert [
            one.name in record.getMessage() and "is damaged" in record.getMessage() for record in caplog.records
        ] == [True]

    def test_a_disk_that_fails_is_not_damage(
        self, wide: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make_images(tmp_path / "images", 2)
        options = {"layout": "kohya", "kohya": "flux", "keep": "sample"}
        encode(folder, folder, wide, **options)
        before = contents(folder)

        def failing(place: Path) -> BinaryIO:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr("vae_core.datasets.kohya.open_regular", failing)
            with pytest.raises(DatasetError, match=r"cannot read .*_flux.npz, which has other.*--resume"):
                encode(folder, folder, wide, buckets=Buckets(128, 128), **options)
        after = contents(folder)
        assert {name: after[name] for name in before} == before

    def test_what_is_not_kohyas_is_left_out(self, wide: AutoencoderKL, tmp_path: Path) -> None:
        """Arrays that an older NumPy or another program added, one of them by the name of savez's own argument."""
        folder = make_images(tmp_path / "images", 1)
        options = {"layout": "kohya", "kohya": "flux", "keep": "sample"}
        encode(folder, folder, wide, **options)
        one = next(folder.rglob("*_flux.npz"))
        with zipfile.ZipFile(one, "a") as archive:
            for name in ("allow_pickle", "file", "latents_axb", "latents"):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, np.array(False))
        encode(folder, folder, wide, buckets=Buckets(128, 128), **options)
        with np.load(one) as arrays:
            assert len({name.rpartition("_")[2] for name in arrays}) == 2
            assert all(re.fullmatch(r"(latents|original_size|crop_ltrb)_\d+x\d+", name) for name in arrays)

    @pytest.mark.parametrize("family", CHANNELS)
    def test_files_of_the_older_form(self, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """kohya's trainers of SD and SDXL take NAME.npz where it is there."""
        folder = make_images(tmp_path / "images", 3)
        old = next(folder.rglob("*.png")).with_suffix(".npz")
        old.write_bytes(b"older")
        with caplog.at_level(logging.WARNING, logger="seamless_vae"):
            encode(folder, folder, vae_of(family), layout="kohya", kohya=family, keep="sample")
        said = [record.getMessage() for record in caplog.records]
        assert [old.name in line for line in said] == [True] * (family in ("sd", "sdxl"))
        assert old.read_bytes() == b"older"

    @pytest.mark.parametrize(("ending", "model"), [("hi", "HunyuanImage"), ("anima", "Anima")])
    def test_files_of_other_vaes(self, ending: str, model: str, tmp_path: Path) -> None:
        place = tmp_path / f"a_0512x0512_{ending}.npz"
        np.savez(place, latents_64x64=np.zeros((16, 64, 64)), original_size_64x64=[512, 512])
        with pytest.raises(DatasetError, match=f"has latents of {model}, whose VAE is not an AutoencoderKL"):
            read_file(place)
        with pytest.raises(DatasetError, match=f"cache files of {model}"):
            open_folder(tmp_path)

    def test_a_kill_while_files_are_merged(self, wide: AutoencoderKL, tmp_path: Path) -> None:
        """At every fifth step of writing: no file loses the resolution that it had, and the result is the same."""
        fork = pytest.importorskip("multiprocessing").get_context("fork")
        options = {"layout": "kohya", "kohya": "flux", "keep": "sample", "shard_images": 2}
        larger = {**options, "buckets": Buckets(128, 128)}
        source = make_images(tmp_path / "images", 4)
        encode(source, tmp_path / "first", wide, **options)
        shutil.copytree(tmp_path / "first", tmp_path / "whole")
        encode(source, tmp_path / "whole", wide, **larger)
        before = {place.name: read_file(place).latents for place in (tmp_path / "first").rglob("*.npz")}
        for n in range(1, 100, 5):
            out = tmp_path / "out"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(tmp_path / "first", out)
            process = fork.Process(target=encode_and_die, args=(n, source, out, wide), kwargs=larger)
            process.start()
            process.join()
            for place in out.rglob("*.npz"):
                old = before[place.name]
                assert torch.equal(read_file(place, tuple(old.shape[-2:])).latents, old)  # type: ignore[arg-type]
            encode(source, out, wide, resume=True, **larger)
            assert contents(out) == contents(tmp_path / "whole"), f"killed before step {n}"
            if process.exitcode == 0:
                break
        assert n > 10

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
        names = {
            "SD 1.x": "sd",
            "SD 2.x": "sd",
            "SDXL": "sdxl",
            "FLUX.1": "flux",
            "SD3": "sd3",
            "FLUX.2": None,
            None: None,
        }
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
def test_kohyas_own_reader(family: str, few: Path, tmp_path: Path) -> None:
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
    name = {"sd": "SdSdxl", "sdxl": "SdSdxl"}.get(family, family.capitalize()) + "LatentsCachingStrategy"
    first = (family == "sd",) if name.startswith("SdSdxl") else ()
    strategy = getattr(module, name)(*first, True, 1, False)
    options = {"layout": "kohya", "kohya": family, "keep": "sample", **FLIPPED}
    encode(few, tmp_path / "out", vae_of(family), engine=Engine(workers=0), **options)
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
    assert Collection.open(tmp_path / "out").manifest["totals"]["images"] == 10
