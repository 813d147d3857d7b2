"""The host's own nodes with our VAE, beside the host's own VAE with the same weights in the same run."""

from __future__ import annotations

import pytest
from e2e.conftest import HOST_VAE, SMALL_VAE
from e2e.real_host import Comfy, Workflow
from torch import Tensor

# Two programs of float32 arithmetic in another order: 1e-4 of a range of 1.
TOLERANCE = 1e-4


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def both_vaes(workflow: Workflow) -> dict[str, list]:
    ours = workflow.add("SeamlessVAELoad", vae_name=HOST_VAE, dtype="auto", device="auto", latent_scale="auto")
    return {"ours": ours[0], "theirs": workflow.add("VAELoader", vae_name=HOST_VAE)[0]}


def test_encode_decode_and_inpaint(comfy: Comfy) -> None:
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=132, height=96, batch=2, channels=3, seed=1)[0]
    mask = workflow.add("TestHalfMask", width=64, height=64)[0]
    conditioning = workflow.add("TestConditioning")[0]
    for name, vae in both_vaes(workflow).items():
        latent = workflow.add("VAEEncode", pixels=image, vae=vae)[0]
        decoded = workflow.add("VAEDecode", samples=latent, vae=vae)[0]
        workflow.add("TestKeep", name=f"{name}_plain", image=decoded, latent=latent)
        inpaint = workflow.add("VAEEncodeForInpaint", pixels=image, vae=vae, mask=mask, grow_mask_by=6)[0]
        workflow.add("TestKeep", name=f"{name}_inpaint", latent=inpaint)
        conditioned = workflow.add(
            "InpaintModelConditioning",
            positive=conditioning,
            negative=conditioning,
            vae=vae,
            pixels=image,
            mask=mask,
            noise_mask=True,
        )
        workflow.add("TestKeep", name=f"{name}_conditioned", latent=conditioned[2], conditioning=conditioned[0])
    run = comfy.run(workflow)
    assert run.error is None
    for what in ("plain", "inpaint", "conditioned"):
        ours, theirs = (comfy.kept(f"{name}_{what}")[0] for name in ("ours", "theirs"))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert difference(ours[key], theirs[key]) < TOLERANCE, (what, key)
    assert comfy.kept("ours_plain")[0]["image"].shape == (2, 96, 128, 3)
    assert comfy.kept("ours_conditioned")[0]["concat_latent_image"].shape == (2, 4, 12, 16)


def test_hints_of_a_controlnet(comfy: Comfy) -> None:
    """The host encodes them in the middle of sampling, for the size of what is sampled."""
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=100, height=80, batch=1, channels=3, seed=3)[0]
    noise = workflow.add("TestSeededLatent", width=16, height=12, batch=1, channels=4, seed=3, frames=0)[0]
    conditioning, controlnet = workflow.add("TestConditioning")[0], workflow.add("TestLatentControlNet")[0]
    vaes = both_vaes(workflow)
    for name, vae in vaes.items():
        applied = workflow.add(
            "ControlNetApplyAdvanced",
            **{"positive": conditioning, "negative": conditioning, "control_net": controlnet, "image": image},
            **{"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "vae": vae},
        )
        for part, each in zip(("positive", "negative"), applied, strict=False):
            hint = workflow.add("TestControlHint", conditioning=each, latent=noise)[0]
            workflow.add("TestKeep", name=f"{name}_{part}_hint", latent=hint)
    scaled = workflow.add(
        "ImageScale", image=image, upscale_method="nearest-exact", width=128, height=96, crop="center"
    )
    expected = workflow.add("VAEEncode", pixels=scaled[0], vae=vaes["ours"])[0]
    workflow.add("TestKeep", name="expected_hint", latent=expected)
    assert comfy.run(workflow).error is None
    ours, theirs, negative, expected = (
        comfy.kept(f"{name}_hint")[0]["samples"]
        for name in ("ours_positive", "theirs_positive", "ours_negative", "expected")
    )
    assert difference(ours, theirs) < TOLERANCE and difference(ours, negative) == 0
    assert difference(ours, expected * 0.18215) < TOLERANCE


def test_tiled_nodes_are_exact_with_our_vae(comfy: Comfy) -> None:
    workflow = Workflow()
    image = workflow.add("TestSeededImage", width=256, height=192, batch=1, channels=3, seed=2)[0]
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    for name, vae in both_vaes(workflow).items():
        plain = workflow.add("VAEEncode", pixels=image, vae=vae)[0]
        tiled = workflow.add("VAEEncodeTiled", pixels=image, vae=vae, **tiles)[0]
        workflow.add(
            "TestKeep", name=f"{name}_whole", latent=plain, image=workflow.add("VAEDecode", samples=plain, vae=vae)[0]
        )
        decoded = workflow.add("VAEDecodeTiled", samples=plain, vae=vae, **tiles)[0]
        workflow.add("TestKeep", name=f"{name}_tiled", latent=tiled, image=decoded)
    assert comfy.run(workflow).error is None
    for key in ("samples", "image"):
        whole, tiled = (comfy.kept(f"ours_{how}")[0][key] for how in ("whole", "tiled"))
        assert difference(whole, tiled) < TOLERANCE
        theirs = comfy.kept("theirs_tiled")[0][key]
        assert difference(comfy.kept("theirs_whole")[0][key], theirs) > 10 * TOLERANCE, "the tiles of the host are seen"


def test_a_device_chosen_by_the_core(comfy: Comfy) -> None:
    if "SelectVAEDevice" not in comfy.get("/object_info"):
        pytest.skip("this host has no Select VAE Device")
    workflow = Workflow()
    vae = workflow.add("SeamlessVAELoad", vae_name=SMALL_VAE, dtype="auto", device="auto", latent_scale="auto")[0]
    latent = workflow.add("TestSeededLatent", width=16, height=12, batch=1, channels=4, seed=3, frames=0)[0]
    chosen = workflow.add("SelectVAEDevice", vae=vae, device="default")[0]
    for name, each in (("loaded", vae), ("chosen", chosen)):
        workflow.add("TestKeep", name=name, image=workflow.add("VAEDecode", samples=latent, vae=each)[0])
    assert comfy.run(workflow).error is None
    assert difference(*(comfy.kept(name)[0]["image"] for name in ("loaded", "chosen"))) == 0


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
def test_copies_of_our_vae(comfy: Comfy, how: str) -> None:
    workflow = Workflow()
    vae = workflow.add("SeamlessVAELoad", vae_name=SMALL_VAE, dtype="auto", device="auto", latent_scale="auto")[0]
    latent = workflow.add("TestSeededLatent", width=16, height=12, batch=1, channels=4, seed=3, frames=0)[0]
    copied = workflow.add("TestCopiedVAE", vae=vae, how=how)[0]
    for name, each in (("original", vae), ("copied", copied)):
        workflow.add("TestKeep", name=name, image=workflow.add("VAEDecode", samples=latent, vae=each)[0])
    workflow.add("TestKeep", name="own", image=workflow.add("TestOwnLoop", samples=latent, vae=copied)[0])
    assert comfy.run(workflow).error is None
    original, again, own = (comfy.kept(name)[0]["image"] for name in ("original", "copied", "own"))
    assert difference(original, again) == 0
    assert difference(original, own) < TOLERANCE


def test_a_vae_saved_by_either_side_loads_on_the_other(comfy: Comfy) -> None:
    workflow = Workflow()
    vaes = both_vaes(workflow)
    workflow.add("VAESave", vae=vaes["ours"], filename_prefix="../models/vae/by_host")
    run = comfy.run(workflow)
    assert run.error is not None, "the host keeps to its output folder"
    workflow = Workflow()
    vaes = both_vaes(workflow)
    workflow.add("VAESave", vae=vaes["ours"], filename_prefix="vae/by_host")
    workflow.add("SeamlessVAESave", vae=vaes["theirs"], filename_prefix="vae/by_us", format="single_file", dtype="auto")
    workflow.add("SeamlessVAESave", vae=vaes["ours"], filename_prefix="vae/folder", format="diffusers", dtype="float16")
    run = comfy.run(workflow)
    assert run.error is None
    folder = comfy.folder / "output" / "vae"
    assert (folder / "folder_00001" / "config.json").is_file()
    for name in ("by_host_00001_.safetensors", "by_us_00001.safetensors"):
        (folder / name).rename(comfy.folder / "models" / "vae" / name)

    workflow = Workflow()
    latent = workflow.add("TestSeededLatent", width=10, height=10, batch=1, channels=4, seed=4, frames=0)[0]
    for name, loader in (
        ("original", "VAELoader"),
        ("by_us_00001", "VAELoader"),
        ("by_host_00001_", "SeamlessVAELoad"),
    ):
        others = {"dtype": "auto", "device": "auto", "latent_scale": "auto"} if loader.startswith("Seamless") else {}
        file = HOST_VAE if name == "original" else f"{name}.safetensors"
        vae = workflow.add(loader, vae_name=file, **others)[0]
        workflow.add("TestKeep", name=name, image=workflow.add("VAEDecode", samples=latent, vae=vae)[0])
    assert comfy.run(workflow).error is None
    original, *others = (comfy.kept(name)[0]["image"] for name in ("original", "by_us_00001", "by_host_00001_"))
    for other in others:
        assert difference(original, other) < TOLERANCE
