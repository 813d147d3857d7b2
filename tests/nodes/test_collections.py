"""Collections of latents on the wire: what is read, what is written, and the scale of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from given.nodes import Makers
from host.stand_in import Host, Pack

pytestmark = pytest.mark.usefixtures("new_host")

# Four levels, so that the downscale factor is 8, as kohya's files have it.
EIGHT: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
FLUX = {**EIGHT, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
SD3 = {**FLUX, "scaling_factor": 1.5305, "shift_factor": 0.0609}
FIELDS = {"sd": EIGHT, "sdxl": EIGHT, "flux": FLUX, "sd3": SD3, "lumina": FLUX}


def save(pack: Pack, vae: Any, *samples: Any, names: str | None = None, **widgets: str) -> tuple[str, str]:
    """The results of Seamless Latent Save, which gets every input as a list."""
    given = {
        "filename_prefix": "sets/one", "layout": "shards", "kohya_family": "auto", "dtype": "float32", **widgets
    }  # fmt: skip
    lists = {name: [value] for name, value in {**given, "vae": vae}.items()}
    return pack.run("SeamlessLatentSave", samples=list(samples), names=names and [names], **lists)


def load(pack: Pack, folder: str, **inputs: Any) -> tuple[list[torch.Tensor], list[str], str]:
    latents, names, text = pack.run("SeamlessLatentLoad", folder=folder, **inputs)
    return [each["samples"] for each in latents], names, text


def posterior(*shape: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {"samples": torch.randn(shape, generator=generator), "logvar": torch.randn(shape, generator=generator) - 2}


def refused(pack: Pack, message: str) -> Any:
    return pytest.raises(pack.module("vae_core").VAEError, match=message)


@pytest.mark.parametrize("layout", ["shards", "webdataset"])
def test_what_was_saved_is_loaded(pack: Pack, make: Makers, new_host: Host, layout: str) -> None:
    vae, one, two = make.vae(), make.latent(3, 4, 10, 12), make.latent(1, 4, 6, 8)
    path, text = save(pack, vae, one, two, layout=layout)
    assert Path(path) == new_host.folder / "output" / "sets" / "one_00001"
    assert text == f"4 latents in output/sets/one_00001\nlayout: {layout}\nscale: raw, as on the wire"
    found, names, text = load(pack, "sets/one_00001 [output]", count=9, join="list")
    for latent, expected in zip(found, [*one["samples"], two["samples"][0]], strict=True):
        assert torch.equal(latent[0], expected)
    assert names == ["00001", "00002", "00003", "00004"]
    assert "images 0 to 3 of 4" in text and "3 of 4 channels, 12x10; 1 of 4 channels, 8x6" in text
    assert "scale: raw in the files, nothing to convert" in text
    (batch,), (names,), _ = load(pack, "sets/one_00001 [output]", start=1, count=2, vae=vae)
    assert torch.equal(batch, one["samples"][1:]) and names == "00002\n00003"
    with refused(pack, "3 of 4 channels, 12x10, 1 of 4 channels, 8x6. Set join to list"):
        load(pack, "sets/one_00001 [output]", count=4)


def test_the_command_line_reads_what_was_saved(pack: Pack, make: Makers) -> None:
    datasets = pack.module("vae_core.datasets")
    path, _ = save(pack, make.vae(), make.latent(2, 4, 10, 12), names="a/1\nb/2")
    assert not datasets.verify_dataset(path).faults
    assert [item["key"] for item in datasets.LatentDataset(path)] == ["a/1", "b/2"]
    decoded = list(datasets.decode_dataset(path, Path(path) / "images", make.model()))
    assert [each.file.name for each in decoded] == ["1.png", "2.png"]
    with refused(pack, "was encoded with another VAE"):
        list(datasets.decode_dataset(path, Path(path) / "images", make.model(seed=1)))


def test_moments(pack: Pack, make: Makers) -> None:
    """Mean, or a sample that the seed and the image decide, whatever else is loaded with it."""
    given = posterior(3, 4, 10, 12)
    save(pack, make.vae(), given)
    folder = "sets/one_00001 [output]"
    (mean,), _, text = load(pack, folder, count=3)
    assert torch.equal(mean, given["samples"]) and text.endswith("moments: their mean")
    (drawn,), _, text = load(pack, folder, count=3, sample_mode="sample", seed=5)
    noise = (drawn - mean) / torch.exp(0.5 * given["logvar"])
    assert 0.8 < noise.std() < 1.2 and abs(noise.mean()) < 0.2 and text.endswith("moments: sampled with seed 5")
    (last,), _, _ = load(pack, folder, start=2, sample_mode="sample", seed=5)
    assert torch.equal(last[0], drawn[2])
    (other,), _, _ = load(pack, folder, start=2, sample_mode="sample", seed=6)
    assert not torch.equal(other[0], drawn[2])
    with refused(pack, "latents, not moments"):
        save(pack, make.vae(**EIGHT), posterior(1, 4, 8, 8), layout="kohya", kohya_family="sd")


@pytest.mark.parametrize("family", FIELDS)
def test_kohya_s_files(pack: Pack, make: Makers, new_host: Host, family: str) -> None:
    """Under the names and with the numbers that its trainers expect; FLUX's alone are scaled."""
    fields = FIELDS[family]
    vae, latent = make.vae(**fields), make.latent(2, fields.get("latent_channels", 4), 8, 12)
    path, text = save(pack, vae, latent, names="cat\ndog", layout="kohya", kohya_family=family)
    files = sorted(Path(path).glob("*.npz"))
    assert [file.name for file in files] == [f"{name}_0096x0064_{family}.npz" for name in ("cat", "dog")]
    ending = "" if fields == EIGHT else "_8x12"
    stored = np.load(files[0])[f"latents{ending}"]
    expected = latent["samples"][0].numpy()
    if fields == FLUX:
        expected = 0.3611 * (expected - 0.1159)
        assert "converted from raw latents to 0.3611 * (z - 0.1159)" in text
    np.testing.assert_allclose(stored, expected, rtol=0, atol=1e-6)
    # As a collection, and as files that kohya's own trainers wrote.
    for own in (False, True):
        if own:
            place = new_host.folder / "input" / "train"
            place.mkdir(parents=True)
            for file in files:
                file.rename(place / file.name)
        folder = "train [input]" if own else "sets/one_00001 [output]"
        assert folder in pack.module("nodes.catalogue").latent_folders()
        (found,), (names,), text = load(pack, folder, count=2)
        torch.testing.assert_close(found, latent["samples"], rtol=0, atol=1e-6)
        assert names == "cat\ndog" and "kohya's cache files" in text
        assert ("0.3611 * (z - 0.1159), converted to raw" in text) == (fields == FLUX)


def test_kohya_s_family_is_the_vae_s(pack: Pack, make: Makers) -> None:
    path, _ = save(pack, make.vae(**EIGHT), make.latent(1, 4, 8, 8), layout="kohya", kohya_family="sdxl")
    assert [file.name for file in Path(path).glob("*.npz")] == ["00001_0064x0064_sdxl.npz"]
    with refused(pack, "latents of flux have 16 channels at 1/8.*have 4 at 1/8"):
        save(pack, make.vae(**EIGHT), make.latent(1, 4, 8, 8), layout="kohya", kohya_family="flux")
    with refused(pack, "this VAE is of a family that is not known. Set kohya_family"):
        save(pack, make.vae(), make.latent(), layout="kohya")
    assert not (Path(path).parent / "one_00002").exists(), "nothing is left of a save that was refused"


def test_flux2_needs_its_vae(pack: Pack, make: Makers) -> None:
    """On the wire its latents are packed and normalised; in a collection they are raw."""
    config = {"latent_channels": 8, "patch_size": (2, 2), "batch_norm_eps": 1e-4}
    vae = make.vae(**config)
    norm = vae.first_stage_model.autoencoder.bn
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    latent = make.latent(1, 32, 5, 6)
    save(pack, vae, latent)
    with refused(pack, "latents of FLUX.2.*Connect the VAE"):
        load(pack, "sets/one_00001 [output]")
    (found,), _, _ = load(pack, "sets/one_00001 [output]", vae=vae)
    torch.testing.assert_close(found, latent["samples"], rtol=0, atol=1e-5)
    with refused(pack, "moments of FLUX.2 cannot be saved"):
        save(pack, vae, {**latent, "logvar": torch.zeros_like(latent["samples"])})


def test_the_host_runs_it_again_when_a_file_changes(pack: Pack, make: Makers) -> None:
    ask = pack.root.NODE_CLASS_MAPPINGS["SeamlessLatentLoad"].IS_CHANGED
    path, _ = save(pack, make.vae(), make.latent(2, 4, 10, 12))
    folder = "sets/one_00001 [output]"
    before = ask(folder, 0, 1, join="batch", vae=None)
    assert ask(folder, 0, 1) == before != ask(folder, 0, 2)
    shard = next(Path(path).rglob("*.safetensors"))
    os.utime(shard, ns=(1, 1))
    assert ask(folder, 0, 1) != before


def test_padding_is_not_part_of_the_image(pack: Pack, make: Makers) -> None:
    latent, *_ = pack.run("SeamlessVAEEncode", pixels=make.image(1, 21, 25, 3), vae=make.vae(), fit="pad")
    path, _ = save(pack, make.vae(), latent)
    record = json.loads(next(Path(path).rglob("shards/*/*.json")).read_text())
    assert record["images"][0]["size"] == [25, 21] and record["images"][0]["bucket"] == [26, 22]
    # What is loaded decodes to the image without it, in the nodes and on the command line.
    for options in ({}, {"join": "list"}):
        (loaded,), *_ = pack.run("SeamlessLatentLoad", folder="sets/one_00001 [output]", **options)
        image, *_ = pack.run("SeamlessVAEDecode", samples=loaded, vae=make.vae())
        assert image.shape[1:3] == (21, 25)
    datasets = pack.module("vae_core.datasets")
    (decoded,) = datasets.decode_dataset(path, Path(path) / "images", make.model())
    with PIL.Image.open(decoded.file) as written:
        assert written.size == (25, 21)
    # Images whose padding differs are a batch without it.
    other, *_ = pack.run("SeamlessVAEEncode", pixels=make.image(1, 22, 26, 3), vae=make.vae(), fit="pad")
    save(pack, make.vae(), latent, other, filename_prefix="sets/two")
    (loaded,), *_ = pack.run("SeamlessLatentLoad", folder="sets/two_00001 [output]", count=2)
    image, *_ = pack.run("SeamlessVAEDecode", samples=loaded, vae=make.vae())
    assert image.shape[1:3] == (22, 26)


def test_the_demo(pack: Pack) -> None:
    """It is a collection of the demo VAE as it is now."""
    (z,), (names,), text = load(pack, "demo", count=16)
    assert z.shape == (6, 16, 32, 32) and len(names.splitlines()) == 6 and "moments: their mean" in text
    core, catalogue = pack.module("vae_core"), pack.module("nodes.catalogue")
    fingerprint = pack.module("vae_core.datasets.encode").fingerprint
    manifest = json.loads((catalogue.DEMO_LATENTS / "manifest.json").read_text())
    expected = fingerprint(core.load_vae(catalogue.DEMO_PATH, dtype=torch.float32))
    assert manifest["vae"]["sha256"] == expected, "run `python tools/demo/latents.py`"


FOLDERS = {
    "gone [output]": "cannot find a folder named 'gone'",
    "../../secret [output]": "is not the name of a folder",
    "/etc [input]": "is not the name of a folder",
    "C:\\x [input]": "is not the name of a folder",
    "demo [elsewhere]": "is not the name of a folder",
    "": "is not the name of a folder",
    "empty [output]": "has no latents: neither a collection",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_names_of_folders_from_anywhere(pack: Pack, new_host: Host, name: str) -> None:
    (new_host.folder / "output" / "empty").mkdir(parents=True)
    with refused(pack, FOLDERS[name]):
        load(pack, name)
    check = pack.root.NODE_CLASS_MAPPINGS["SeamlessLatentLoad"].VALIDATE_INPUTS
    assert (check(name) is True) == name.startswith("empty") and check(None) is check("demo") is True


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "names": ({"names": "a"}, "1 names were given for 2 latents"),
    "equal": ({"names": "a\na"}, "two latents have the name a"),
    "outside": ({"names": "../a\nb"}, "'../a' cannot be the name of an image's file"),
    "absolute": ({"names": "/a\nb"}, "'/a' cannot be the name"),
    "prefix": ({"filename_prefix": "../x"}, "points outside the output folder"),
    "layout": ({"layout": "zip"}, "layout is 'zip'; it must be one of shards"),
    "bfloat16": ({"layout": "webdataset", "dtype": "bfloat16"}, "no bfloat16"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_saving_refuses(pack: Pack, make: Makers, new_host: Host, case: str) -> None:
    changes, message = REFUSALS[case]
    with refused(pack, message):
        save(pack, make.vae(), make.latent(2, 4, 10, 12), **changes)
    assert not list((new_host.folder / "output").rglob("*.json"))


def test_values_and_ranges_that_are_refused(pack: Pack, make: Makers) -> None:
    latent = make.latent(1, 4, 10, 12)
    latent["samples"][0, 1, 2, 3] = torch.nan
    with refused(pack, "1 values that are NaN or infinite, of 480"):
        save(pack, make.vae(), latent)
    with refused(pack, "channels"):
        save(pack, make.vae(), make.latent(1, 16, 10, 12))
    with refused(pack, "start is 6, but demo has 6 images"):
        load(pack, "demo", start=6)
    with refused(pack, "astronaut has no latents of the mirrored image"):
        load(pack, "demo", flipped=True)
    with refused(pack, "channels"):
        load(pack, "demo", vae=make.vae())
