"""Each node: what it gives, what it keeps, what it refuses, in both ages of the host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from given.nodes import CLOSE, Makers, encode
from host.stand_in import Host, Pack
from PIL import Image

pytestmark = pytest.mark.usefixtures("host")


# Load.


def test_load_the_demo(pack: Pack) -> None:
    (vae,) = pack.run("SeamlessVAELoad", vae_name="demo")
    model = vae.first_stage_model.autoencoder
    assert model.config.latent_channels == 16 and vae.vae_dtype == torch.float32
    assert not any(weight.requires_grad or weight.is_inference() for weight in model.parameters())


def test_load_chooses(pack: Pack, make: Makers, host: Host) -> None:
    core = pack.module("vae_core")
    core.save_single_file(make.model(), host.folder / "models" / "vae" / "some.safetensors")
    (vae,) = pack.run(
        "SeamlessVAELoad", vae_name="some.safetensors", dtype="bfloat16", device="cpu", latent_scale="SDXL"
    )
    assert vae.vae_dtype == torch.bfloat16 and vae.first_stage_model.autoencoder.dtype == torch.bfloat16
    assert vae.first_stage_model.autoencoder.config.scaling_factor == 0.13025
    with pytest.raises(ValueError, match="device cuda:7 is not available, only cpu"):
        pack.run("SeamlessVAELoad", vae_name="some.safetensors", device="cuda:7")
    with pytest.raises(ValueError, match="latents_mean has 4 numbers.*set it to auto"):
        pack.run("SeamlessVAELoad", vae_name="demo", latent_scale="Playground 2.5")
    with pytest.raises(ValueError, match="cannot find a VAE named 'gone.safetensors'"):
        pack.run("SeamlessVAELoad", vae_name="gone.safetensors")


# Encode and decode.


def test_encode(pack: Pack, make: Makers) -> None:
    vae, pixels = make.vae(), make.image(2, 20, 24, 3)
    latent, posterior, mask = encode(pack, vae, pixels)
    expected = vae.first_stage_model.autoencoder.encode_reference(pixels.movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(posterior["samples"], expected[:, :4], **CLOSE)
    torch.testing.assert_close(posterior["logvar"], expected[:, 4:], **CLOSE)
    assert latent.keys() == {"samples"} and torch.equal(latent["samples"], posterior["samples"])
    assert mask.shape == (2, 20, 24) and not mask.any()


def test_transparency_goes_on_as_a_mask(pack: Pack, make: Makers) -> None:
    pixels = make.image(1, 21, 25, 4)
    *_, mask = encode(pack, make.vae(), pixels)
    torch.testing.assert_close(mask, 1 - pixels[:, :20, :24, 3], rtol=0, atol=0)
    *_, mask = encode(pack, make.vae(), pixels, fit="pad")
    torch.testing.assert_close(mask, 1 - pixels[..., 3], rtol=0, atol=0)


@pytest.mark.parametrize("size", [(20, 24), (21, 24), (20, 25), (21, 25)])
def test_padding_is_taken_off_again(pack: Pack, make: Makers, size: tuple[int, int]) -> None:
    vae, pixels = make.vae(), make.image(1, *size, 3)
    latent, posterior, _ = encode(pack, vae, pixels, fit="pad")
    assert ("seamless_fit" in latent) == ("seamless_fit" in posterior) == (size != (20, 24))
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    assert image.shape == (1, *size, 3) and image.is_contiguous()
    scaled = {**latent, "samples": latent["samples"].repeat(1, 1, 2, 2)}  # as a later node may
    (image,) = pack.run("SeamlessVAEDecode", samples=scaled, vae=vae)
    assert image.shape[1:3] == (4 * ((size[0] + 1) // 2), 4 * ((size[1] + 1) // 2))


def test_fits(pack: Pack, make: Makers) -> None:
    vae, pixels = make.vae(), make.image(1, 21, 25, 3)
    latent, *_ = encode(pack, vae, pixels)
    assert torch.equal(latent["samples"], vae.encode(pixels))
    with pytest.raises(ValueError, match="25x21"):
        encode(pack, vae, pixels, fit="error")


def test_clamp(pack: Pack, make: Makers) -> None:
    vae, latent = make.vae(), make.latent()
    with torch.no_grad():
        vae.first_stage_model.decoder.conv_out.bias.add_(0.9)
    (clamped,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae, clamp=True)
    (whole,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae, clamp=False)
    assert whole.max() > 1 and torch.equal(clamped, whole.clamp(0, 1))


@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (2, 1, 8, 8), (1, 1, 8, 8), (3, 8, 8), (0,)], ids=str)
def test_masks_of_any_shape_go_on_with_samples_of_a_posterior(pack: Pack, make: Makers, shape: tuple[int, ...]) -> None:
    _, posterior, _ = encode(pack, make.vae(), make.image(2, 16, 16, 3))
    posterior["noise_mask"] = torch.rand(shape)
    (found,) = pack.run("SeamlessVAESamplePosterior", posterior=posterior, count=2)
    repeated = shape[:1] == (2,)
    want = torch.cat([posterior["noise_mask"]] * 2) if repeated else posterior["noise_mask"]
    assert len(found["samples"]) == 4 and torch.equal(found["noise_mask"], want)


def test_inputs_are_never_changed(pack: Pack, make: Makers) -> None:
    vae, pixels, latent = (
        make.vae(),
        make.image(1, 21, 25, 4),
        make.latent(noise_mask=torch.ones(1, 1, 8, 8), kept="yes"),
    )
    copies = pixels.clone(), {key: value.clone() if torch.is_tensor(value) else value for key, value in latent.items()}
    _, posterior, _ = encode(pack, vae, pixels, sample_mode="sample", fit="pad")
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in posterior.items()}
    pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    pack.run("SeamlessVAESamplePosterior", posterior=posterior, count=2)
    pack.run("SeamlessVAESwap", samples=latent, from_vae=vae, to_vae=vae)
    pack.run("SeamlessLatentScale", samples=latent, vae=vae)
    mask = torch.ones(1, 21, 25)
    pack.run("SeamlessVAEInpaintEncode", pixels=pixels, vae=vae, mask=mask, grow=2, feather=2)
    pack.run("SeamlessVAERoundTrip", pixels=pixels, vae=vae)
    assert torch.equal(pixels, copies[0]) and torch.equal(mask, torch.ones(1, 21, 25))
    for found, expected in ((latent, copies[1]), (posterior, before)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value) if torch.is_tensor(value) else found[key] == value


# The same latents and images, however they are made.


@pytest.mark.parametrize("tile_size", [0, 2, 6, 30, 1000])
@pytest.mark.parametrize("memory_budget", [0.0, 0.03])
@pytest.mark.thorough
def test_exact_tiles(pack: Pack, make: Makers, tile_size: int, memory_budget: float) -> None:
    vae, pixels = make.vae(), make.image(1, 50, 34, 3)
    latent, posterior, _ = encode(pack, vae, pixels)
    tiled = pack.run(
        "SeamlessVAEEncodeTiled", pixels=pixels, vae=vae, mode="exact", tile_size=tile_size, memory_budget=memory_budget
    )
    torch.testing.assert_close(tiled[0]["samples"], latent["samples"], **CLOSE)
    torch.testing.assert_close(tiled[1]["logvar"], posterior["logvar"], **CLOSE)
    (image,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    (strips,) = pack.run(
        "SeamlessVAEDecodeTiled", samples=latent, vae=vae, tile_size=tile_size, memory_budget=memory_budget
    )
    torch.testing.assert_close(strips, image, **CLOSE)


def test_blended_tiles_are_those_of_the_model(pack: Pack, make: Makers) -> None:
    vae, latent, core = make.vae(), make.latent(1, 4, 24, 24), pack.module("vae_core")
    (image,) = pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=vae, mode="blended", tile_size=16, overlap=4)
    tiles = core.TileSpec(size=8, overlap=2, mode="blended")
    expected = core.decode(vae.first_stage_model.autoencoder, latent["samples"], tiling=tiles)
    torch.testing.assert_close(image, (expected / 2 + 0.5).clamp(0, 1).movedim(1, -1), **CLOSE)
    assert (image - vae.decode(latent["samples"])).abs().max() > 1e-3


def test_circular(pack: Pack, make: Makers) -> None:
    vae, latent = make.vae(), make.latent(1, 4, 12, 16)
    (image,) = pack.run("SeamlessVAEDecodeTiled", samples=latent, vae=vae, circular="both")
    rolled = {"samples": latent["samples"].roll((5, 3), (2, 3))}
    (moved,) = pack.run("SeamlessVAEDecodeTiled", samples=rolled, vae=vae, circular="both")
    torch.testing.assert_close(moved, image.roll((10, 6), (1, 2)), **CLOSE)


BAD_TILES = {
    "a tile of 1 pixels is smaller": {"tile_size": 1},
    "blended tiles cannot be circular": {"mode": "blended", "circular": "x"},
    "an overlap of 128 pixels does not fit tiles of 32 pixels": {"mode": "blended", "tile_size": 32},
}


@pytest.mark.parametrize("message", BAD_TILES)
def test_tiles_that_are_none(pack: Pack, make: Makers, host: Host, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack.run("SeamlessVAEDecodeTiled", samples=make.latent(), vae=make.vae(), **BAD_TILES[message])
    assert not host.loads, "nothing heavy has begun"


# Swap, inpaint, scale.


def test_swap(pack: Pack, make: Makers) -> None:
    first, second = make.vae(), make.vae(1, latent_channels=16)
    latent = make.latent(2, 4, 10, 12, noise_mask=torch.ones(2, 1, 20, 24), batch_index=[4, 5], kept="yes")
    latent["downscale_ratio_spacial"] = 16  # of another VAE
    swapped, image = pack.run("SeamlessVAESwap", samples=latent, from_vae=first, to_vae=second)
    torch.testing.assert_close(image, first.decode(latent["samples"]), **CLOSE)
    torch.testing.assert_close(swapped["samples"], second.encode(image), **CLOSE)
    assert swapped["downscale_ratio_spacial"] == second.downscale_ratio and latent["downscale_ratio_spacial"] == 16
    assert swapped.keys() == latent.keys() and swapped["kept"] == "yes" and swapped["batch_index"] == [4, 5]


def test_inpaint_encode(pack: Pack, make: Makers) -> None:
    vae, pixels = make.vae(), make.image(2, 21, 24, 3)
    mask = torch.zeros(1, 21, 24)
    mask[:, 8:12, 8:12] = 1
    (latent,) = pack.run("SeamlessVAEInpaintEncode", pixels=pixels, vae=vae, mask=mask, grow=2, feather=0)
    plain, *_ = encode(pack, vae, pixels, fit="pad")
    assert torch.equal(latent["samples"], plain["samples"]), "the image itself is encoded unchanged"
    expected = torch.zeros(1, 1, 22, 24)
    expected[..., 6:14, 6:14] = 1
    assert torch.equal(latent["noise_mask"], expected)
    (small,) = pack.run("SeamlessVAEInpaintEncode", pixels=pixels, vae=vae, mask=torch.ones(64, 64), grow=0)
    assert torch.equal(small["noise_mask"], torch.ones(1, 1, 22, 24))


def test_one_image_with_several_masks(pack: Pack, make: Makers) -> None:
    """A latent for each, or a sampler would paint by the first alone."""
    vae, pixels = make.vae(), make.image(1, 21, 24, 3)
    masks = torch.zeros(3, 21, 24)
    for index in range(3):
        masks[index, :, 8 * index : 8 * index + 8] = 1
    inpaint = {"pixels": pixels, "vae": vae, "grow": 0}
    (many,) = pack.run("SeamlessVAEInpaintEncode", mask=masks, **inpaint)
    (one,) = pack.run("SeamlessVAEInpaintEncode", mask=masks[1:2], **inpaint)
    assert many["samples"].shape == (3, 4, 11, 12) and many["noise_mask"].shape == (3, 1, 22, 24)
    assert many["batch_index"] == [0, 1, 2], "each is sampled with its own noise"
    assert torch.equal(many["samples"][1:2], one["samples"])
    assert torch.equal(many["noise_mask"][1:2], one["noise_mask"])
    (images,) = pack.run("SeamlessVAEInpaintComposite", samples=many, vae=vae, original=pixels, mask=masks)
    assert images.shape == (3, 21, 24, 3) and torch.equal(images[2, :, :16], pixels[0, :, :16])


def test_composite_keeps_the_original_bit_for_bit(pack: Pack, make: Makers) -> None:
    vae, original = make.vae(), make.image(1, 21, 25, 4)
    latent, *_ = encode(pack, vae, original, fit="pad")
    mask = torch.zeros(1, 21, 25)
    mask[:, :, 10:], mask[:, :, 5:10] = 1, 0.5
    (image,) = pack.run("SeamlessVAEInpaintComposite", samples=latent, vae=vae, original=original, mask=mask)
    (decoded,) = pack.run("SeamlessVAEDecode", samples=latent, vae=vae)
    assert torch.equal(image[:, :, :5], original[:, :, :5]) and torch.equal(image[..., 3], original[..., 3])
    assert torch.equal(image[:, :, 10:, :3], decoded[:, :, 10:])
    torch.testing.assert_close(image[:, :, 5:10, :3], (original[:, :, 5:10, :3] + decoded[:, :, 5:10]) / 2, **CLOSE)


def test_composite_of_a_latent_that_core_cropped(pack: Pack, make: Makers, host: Host) -> None:
    vae, original = make.vae(), make.image(1, 21, 25, 3)
    latent = {"samples": vae.encode(original).repeat(2, 1, 1, 1)}
    (image,) = pack.run(
        "SeamlessVAEInpaintComposite", samples=latent, vae=vae, original=original, mask=torch.ones(1, 21, 25)
    )
    assert image.shape == (2, 21, 25, 3)
    torch.testing.assert_close(image[:, :20, :24], vae.decode(latent["samples"]), **CLOSE)
    assert torch.equal(image[:, 20], original[:, 20].expand(2, -1, -1))
    host.loads.clear()
    with pytest.raises(ValueError, match="decodes to 24x20, but the original image is 40x40"):
        pack.run(
            "SeamlessVAEInpaintComposite",
            samples=latent,
            vae=vae,
            original=make.image(1, 40, 40, 3),
            mask=torch.ones(1, 9, 9),
        )
    with pytest.raises(ValueError, match="3 images, 2 latents, 1 masks"):
        pack.run(
            "SeamlessVAEInpaintComposite",
            samples=latent,
            vae=vae,
            original=make.image(3, 21, 25, 3),
            mask=torch.ones(9, 9),
        )
    assert not host.loads, "nothing was decoded"


def test_scale_there_and_back(pack: Pack, make: Makers) -> None:
    vae = make.vae(scaling_factor=0.5, shift_factor=0.25)
    latent = make.latent(kept="yes")
    (scaled,) = pack.run("SeamlessLatentScale", samples=latent, vae=vae, to="diffusion")
    torch.testing.assert_close(scaled["samples"], (latent["samples"] - 0.25) * 0.5, rtol=0, atol=0)
    (back,) = pack.run("SeamlessLatentScale", samples=scaled, vae=vae, to="raw")
    torch.testing.assert_close(back["samples"], latent["samples"], **CLOSE)
    assert back["kept"] == "yes"


def test_flux2_scale_sample_and_decode(pack: Pack, make: Makers) -> None:
    vae = make.vae(latent_channels=8, patch_size=(2, 2))
    vae.first_stage_model.bn.running_var.uniform_(0.5, 2)
    latent, posterior, _ = encode(pack, vae, make.image(1, 24, 32, 3))
    assert latent["samples"].shape == posterior["logvar"].shape == (1, 32, 6, 8)
    (raw,) = pack.run("SeamlessLatentScale", samples=latent, vae=vae, to="raw")
    assert raw["samples"].shape == (1, 8, 12, 16)
    (packed,) = pack.run("SeamlessLatentScale", samples=raw, vae=vae, to="diffusion")
    torch.testing.assert_close(packed["samples"], latent["samples"], **CLOSE)
    images = [pack.run("SeamlessVAEDecode", samples=each, vae=vae)[0] for each in (latent, raw)]
    torch.testing.assert_close(*images, **CLOSE)
    moments = vae.first_stage_model.autoencoder.encode_reference(make.image(1, 24, 32, 3).movedim(-1, 1) * 2 - 1)
    variance = (moments[:, 8:].exp()).reshape(1, 8, 6, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 32, 6, 8)
    scale = vae.first_stage_model.bn.running_var[:, None, None] + 1e-4
    torch.testing.assert_close(posterior["logvar"].exp(), variance / scale, rtol=1e-4, atol=0)


# What is shown.


def test_round_trip(pack: Pack, make: Makers, host: Host) -> None:
    vae, pixels = make.vae(), make.image(2, 21, 25, 3)
    done = pack.execute("SeamlessVAERoundTrip", pixels=pixels, vae=vae)
    image, error, quality, similarity = done["result"]
    assert image.shape == error.shape == pixels.shape
    expected = -10 * torch.log10((image - pixels).double().square().mean(dim=(1, 2, 3)))
    assert quality == pytest.approx(float(expected.mean()), abs=1e-3) and -1 < similarity < 1
    assert done["ui"]["text"] == [f"PSNR {quality:.2f} dB, SSIM {similarity:.4f}"]
    files = done["ui"]["images"]
    assert len(files) == 6 and all(file["type"] == "temp" for file in files)
    assert Image.open(host.folder / "temp" / files[0]["filename"]).size == (25, 21)
    small = pack.execute("SeamlessVAERoundTrip", pixels=make.image(1, 8, 8, 3), vae=vae)
    assert "too small" in small["ui"]["text"][0]


def test_posterior_preview(pack: Pack, make: Makers, host: Host) -> None:
    _, posterior, _ = encode(pack, make.vae(), make.image(2, 20, 24, 3))
    done = pack.execute("SeamlessPosteriorPreview", posterior=posterior)
    (image,) = done["result"]
    assert image.shape == (2, 80, 192, 3) and image.min() >= 0 and image.max() <= 1
    assert len(done["ui"]["images"]) == 2
    with pytest.raises(
        ValueError, match="log-variance of this posterior is missing.*posterior output of Seamless VAE Encode"
    ):
        pack.run("SeamlessPosteriorPreview", posterior=make.latent())


def test_inspect(pack: Pack, make: Makers) -> None:
    vae = make.vae(scaling_factor=0.5, shift_factor=0.25)
    done = pack.execute("SeamlessVAEInspect", vae=vae)
    (text,) = done["result"]
    assert done["ui"]["text"] == [text]
    parameters = sum(weight.numel() for weight in vae.first_stage_model.autoencoder.parameters()) / 1e6
    for part in (
        *(
            "family: none of the published",
            "latents: 4 channels at 1/2",
            "scale: 0.5, shift 0.25",
            "precision: float32",
        ),
        *("device: cpu", f"parameters: {parameters:.1f} million", "a decode of 1 image of 1024x1024", "GiB"),
    ):
        assert part in text
    (text,) = pack.run("SeamlessVAEInspect", vae=vae, samples=make.latent(3, 4, 10, 12))
    assert "a decode of 3 images of 24x20" in text


@pytest.mark.parametrize("form", ["diffusers", "single_file"])
def test_save(pack: Pack, make: Makers, host: Host, form: str) -> None:
    vae = make.vae()
    inputs = {"vae": vae, "filename_prefix": "vae/mine", "format": form, "dtype": "float16"}
    (first,), (second,) = (pack.run("SeamlessVAESave", **inputs) for _ in range(2))
    ending = "" if form == "diffusers" else ".safetensors"
    assert [path.removeprefix(str(host.folder)).replace("\\", "/") for path in (first, second)] == [
        f"/output/vae/mine_00001{ending}",
        f"/output/vae/mine_00002{ending}",
    ]
    again = pack.module("vae_core").load_vae(second)
    assert again.dtype == torch.float16
    for key, weight in vae.first_stage_model.autoencoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight.half())


@pytest.mark.parametrize("prefix", ["../out", "/tmp/x", "a/../../x", "C:\\x", "..\\x", "", " ", "."])
def test_names_out_of_the_output_folder(pack: Pack, make: Makers, host: Host, prefix: str) -> None:
    with pytest.raises(ValueError, match="is empty or points outside the output folder"):
        pack.run("SeamlessVAESave", vae=make.vae(), filename_prefix=prefix)
    assert not (host.folder / "output").exists()


@pytest.mark.parametrize("prefix", ["a" * 400, "file/x", f"{'b' * 300}/x"])
def test_names_that_nothing_can_be_saved_as(pack: Pack, make: Makers, host: Host, prefix: str) -> None:
    (host.folder / "output").mkdir()
    (host.folder / "output" / "file").write_text("no folder")
    with pytest.raises(ValueError, match="cannot save as .* Use another name"):
        pack.run("SeamlessVAESave", vae=make.vae(), filename_prefix=prefix)


def test_names_in_any_letters(pack: Pack, make: Makers, host: Host) -> None:
    (path,) = pack.run("SeamlessVAESave", vae=make.vae(), filename_prefix="ünï/模型 %year%")
    assert (host.folder / "output" / "ünï") == Path(path).parent and (Path(path) / "config.json").is_file()


def test_results_can_be_sent_to_the_page(pack: Pack, make: Makers) -> None:
    for node, inputs in (
        ("SeamlessVAERoundTrip", {"pixels": make.image(), "vae": make.vae()}),
        ("SeamlessVAEInspect", {"vae": make.vae()}),
        ("SeamlessVAESave", {"vae": make.vae()}),
    ):
        shown = pack.execute(node, **inputs)["ui"]
        assert shown and json.loads(json.dumps(shown)) == shown
