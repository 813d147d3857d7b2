"""What encode_dataset writes: the latents of the images, in every layout and for every reader."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from given.collection import contents, encode, settings
from PIL import Image, ImageOps
from safetensors.torch import load_file

from vae_core import AutoencoderKL, ConfigError, DatasetError
from vae_core.datasets import Collection, Engine, LatentDataset
from vae_core.datasets.encode import generator
from vae_core.datasets.prepare import Prepared, prepare
from vae_core.datasets.transfer import Raw
from vae_core.posterior import DiagonalGaussianDistribution


def test_latents_are_those_of_the_image(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    """Against the model's own encode, of the image resized and cropped here, one by one."""
    assert encode(images, tmp_path / "out", vae, batch=1, flip=True) == {
        "images": 20,
        "failures": 2,
        "shards": 4,
        "bytes": sum(place.stat().st_size for place in (tmp_path / "out").rglob("*.safetensors")),
    }
    for item in LatentDataset(tmp_path / "out"):
        with Image.open(images / item["key"]) as image:
            assert list(image.size) == item["size"]
            width, height = item["bucket"]
            scale = max(width / image.width, height / image.height)
            resized = (max(width, int(image.width * scale + 0.5)), max(height, int(image.height * scale + 0.5)))
            colours = (image.convert("RGBA") if image.mode == "RGBA" else image).convert("RGB")
            colours = colours.resize(resized, Image.Resampling.LANCZOS)
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        assert item["crop"] == [left, top]
        values = np.asarray(colours.crop((left, top, left + width, top + height)))
        pixels = torch.from_numpy(values.astype(np.float32) / 127.5 - 1).movedim(-1, 0)[None]
        with torch.no_grad():
            for name, x in (("latents", pixels), ("latents_flipped", pixels.flip(-1))):
                torch.testing.assert_close(item[name], vae.encode(x).latent_dist.mode()[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", ["mean", "sample", "moments"])
def test_what_is_kept(keep: str, images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    encode(images, tmp_path / "moments", vae, keep="moments")
    encode(images, tmp_path / "out", vae, keep=keep)
    moments = _tensors(tmp_path / "moments", "moments")
    found = _tensors(tmp_path / "out", "moments" if keep == "moments" else "latents")
    for image, tensor in found.items():
        posterior = DiagonalGaussianDistribution(moments[image][None])
        expected = {
            "mean": posterior.mode()[0],
            "moments": moments[image],
            "sample": posterior.sample(generator(image))[0],
        }
        torch.testing.assert_close(tensor, expected[keep], atol=0, rtol=1e-6)


def test_the_seed_of_an_image_stays_what_it_is() -> None:
    """What a collection has as samples follows from it."""
    zeros = "0" * 64
    seeds = [generator(zeros), generator(zeros, flipped=True), generator(zeros, epoch=1)]
    assert [each.initial_seed() for each in seeds] == [8921785005381961254, 2991519185728019897, 7004472118547740222]


def _tensors(out: Path, part: str) -> dict[str, torch.Tensor]:
    """Tensors by their image's SHA-256, of a collection of shards."""
    found = {}
    for record in Collection.open(out).all_records():
        for file in record["files"]:
            tensors = load_file(out / file["path"])
            for image in record["images"]:
                found[image["sha256"]] = tensors[f"{image['position']:06d}.{part}"]
    assert len(found) == 20
    return found


def test_equal_images_have_equal_samples(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    """The seed is the image's content: not its name, nor its place."""
    source = tmp_path / "source"
    source.mkdir()
    one = next(iter(sorted(images.rglob("*.png"))))
    for name in ("a.png", "z.png"):
        shutil.copy(one, source / name)
    encode(source, tmp_path / "out", vae, keep="sample", batch=1)
    first, last = LatentDataset(tmp_path / "out")
    assert torch.equal(first["latents"], last["latents"])


@pytest.mark.parametrize(
    "engine",
    [Engine(workers=1), Engine(workers=8), Engine(workers=2, devices=("cpu", "cpu"))],
    ids=["1 worker", "8 workers", "2 devices"],
)
@pytest.mark.thorough
def test_the_same_bytes_from_any_number_of_workers(
    engine: Engine, images: Path, vae: AutoencoderKL, tmp_path: Path
) -> None:
    options = {"flip": True, "keep": "sample", "alpha_mask": True}
    encode(images, tmp_path / "alone", vae, **options)
    encode(images, tmp_path / "shared", vae, engine=engine, **options)
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


def test_broken_images_are_reported_and_do_not_stop_the_run(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    encode(images, tmp_path / "out", vae)
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [failure["key"] for failure in failures] == ["part0/not_an_image.jpg", "part1/truncated.jpg"]
    assert "is not an image of a known format" in failures[0]["reason"]
    assert "it is damaged, or not an image that Pillow reads (" in failures[1]["reason"]
    assert "truncated" in failures[1]["reason"].lower()


def test_the_manifest_says_what_was_done(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    encode(images, tmp_path / "out", vae)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["scale"] == {"convention": "raw", "scaling_factor": 0.5, "shift_factor": 0.25}
    assert manifest["software"]["torch"] == torch.__version__
    assert manifest["vae"]["config"] == json.loads(json.dumps(vae.config.to_dict()))
    assert manifest["settings"]["buckets"]["step"] == 16
    record = next(Collection.open(tmp_path / "out").all_records())
    assert set(record["images"][0]) == {"key", "position", "sha256", "size", "resized", "crop", "bucket", "shape"}


def test_stored_types(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    for stored, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        encode(images, tmp_path / stored, vae, stored=stored)
        assert {tensor.dtype for tensor in _tensors(tmp_path / stored, "latents").values()} == {dtype}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, vae: AutoencoderKL) -> None:
    """A JPEG that is stored turned or mirrored, and decoded at a fraction of its size, is upright; but not for kohya,
    whose trainers take images as they are stored."""
    colours = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((800, 400), Image.Resampling.BICUBIC)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, "JPEG", exif=exif, quality=95)
    stored = Image.open(file)
    for layout, expected in (("shards", ImageOps.exif_transpose(stored)), ("kohya", stored)):
        chosen = settings(vae, layout=layout, kohya="sd" if layout == "kohya" else None)
        result = prepare(Raw("a.jpg", file.getvalue()), 0, chosen, 3)
        assert isinstance(result, Prepared)
        assert result.size == expected.size
        resized = expected.resize(result.fit.resized, Image.Resampling.LANCZOS).crop(result.fit.box)
        difference = np.abs(result.pixels.astype(int) - np.asarray(resized, dtype=int))
        assert difference.mean() < 1, "the JPEG's own scaling differs by less than a level of 255"


def test_settings_that_cannot_be(images: Path, vae: AutoencoderKL, tmp_path: Path) -> None:
    for problem, changes in {
        "bfloat16": {"layout": "webdataset", "stored": "bfloat16"},
        "not moments": {"layout": "kohya", "kohya": "sd", "keep": "moments"},
        "family": {"layout": "kohya", "keep": "sample"},
        "layout is 'tars'": {"layout": "tars"},
        "keep is 'all'": {"keep": "all"},
        "batch is -1": {"batch": -1},
    }.items():
        with pytest.raises(ConfigError, match=problem):
            settings(vae, **changes)
    with pytest.raises(DatasetError, match="does not exist"):
        encode(images / "nowhere", tmp_path / "out", vae)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        encode(tmp_path / "empty", tmp_path / "out", vae)
    assert not (tmp_path / "out" / "manifest.json").exists()
